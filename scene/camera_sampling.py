"""Random training cameras: what they are drawn from, and how that widens during training."""

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams, OptimizationParams
from scene.cameras import Cameras, build_cameras

Range = tuple[float, float]


@dataclass(frozen=True)
class CameraRanges:
    """What random cameras are drawn from: `fov` radians, `radius` world units, angles in degrees."""

    fov: Range
    radius: Range
    polar_deg: Range
    azimuth_deg: Range


def camera_ranges(params: GenerateCamParams, optimization: OptimizationParams, step: int) -> CameraRanges:
    """The ranges at `step`: closer, narrower and further round at every relaxation.

    Relaxations happen at multiples of `scale_up_cameras_iter` from `progressive_view_iter` on, up to the
    `max_*` ranges. Like upstream, `use_progressive` turns them off (`relax_cameras` reads it).
    """
    fov, radius = params.fovy_range, params.radius_range
    polar, azimuth = params.theta_range, params.phi_range
    factor = optimization.phi_scale_up_factor
    for _ in range(_relaxations(optimization, step)):
        fov = (
            max(params.max_fovy_range[0], fov[0] * optimization.fovy_scale_up_factor[0]),
            min(params.max_fovy_range[1], fov[1] * optimization.fovy_scale_up_factor[1]),
        )
        # Both entries of max_radius_range are floors: cameras only ever come closer.
        radius = (
            max(params.max_radius_range[0], radius[0] * optimization.scale_up_factor),
            max(params.max_radius_range[1], radius[1] * optimization.scale_up_factor),
        )
        polar = (
            max(params.max_theta_range[0], polar[0] / factor),
            min(params.max_theta_range[1], polar[1] * factor),
        )
        azimuth = (
            max(params.max_phi_range[0], azimuth[0] * factor),
            min(params.max_phi_range[1], azimuth[1] * factor),
        )
    return CameraRanges(tuple(fov), tuple(radius), tuple(polar), tuple(azimuth))


def _relaxations(optimization: OptimizationParams, step: int) -> int:
    """How many multiples of the period lie in [progressive_view_iter, step]."""
    if not optimization.relax_cameras:
        return 0
    period, first = optimization.scale_up_cameras_iter, max(optimization.progressive_view_iter, 1)
    return max(step // period - (first - 1) // period, 0)


class CameraSampler:
    """Random training cameras, drawn without replacement from a stack that shares one field of view.

    Whenever it runs dry, it is refilled with `stack_size` (upstream `batch`) cameras of the step's ranges.
    """

    def __init__(self, params: GenerateCamParams, optimization: OptimizationParams, stack_size: int) -> None:
        self.params = params
        self.optimization = optimization
        self.stack_size = stack_size
        nowhere = torch.zeros(0, dtype=torch.float64)
        self._stack = build_cameras(
            params, params.default_fovy, nowhere, nowhere, nowhere, supersampling=params.SSAA
        )

    def sample(self, count: int, step: int, rng: torch.Generator) -> Cameras:
        """Take `count` cameras."""
        taken = []
        for _ in range(count):
            if len(self._stack) == 0:
                self._stack = random_cameras(
                    self.stack_size, self.params, camera_ranges(self.params, self.optimization, step), rng
                )
            index = int(torch.randint(len(self._stack), (), generator=rng))
            taken.append(self._stack[[index]])
            self._stack = self._stack[[other for other in range(len(self._stack)) if other != index]]
        return Cameras.concatenate(taken)

    def state_dict(self) -> dict[str, Tensor]:
        return self._stack.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._stack = dataclasses.replace(self._stack, **state)


def random_cameras(
    count: int, params: GenerateCamParams, ranges: CameraRanges, rng: torch.Generator
) -> Cameras:
    """Draw cameras with one field of view: position in `ranges`, jittered if `jitter_pose`.

    Polar angle and azimuth crowd the middle of their ranges if `rand_cam_gamma` > 1. With probability
    `uniform_sphere_rate`, a camera's direction is uniform on the whole sphere instead. Images are `SSAA`
    times as large as `image_w` by `image_h`.
    """
    fov = float(_draw(1, ranges.fov, 1.0, rng))
    radius = _draw(count, ranges.radius, 1.0, rng)
    polar = _draw(count, ranges.polar_deg, params.rand_cam_gamma, rng)
    azimuth = _draw(count, ranges.azimuth_deg, params.rand_cam_gamma, rng)
    if params.uniform_sphere_rate > 0:
        anywhere = torch.rand(count, generator=rng) < params.uniform_sphere_rate
        polar = torch.where(anywhere, _draw(count, (-1.0, 1.0), 1.0, rng).acos().rad2deg(), polar)
        azimuth = torch.where(anywhere, _draw(count, (-180.0, 180.0), 1.0, rng), azimuth)
    jitter = None
    if params.jitter_pose:
        jitter = torch.stack(
            [
                params.jitter_center * (torch.rand(count, 3, generator=rng, dtype=torch.float64) - 0.5),
                params.jitter_target * torch.randn(count, 3, generator=rng, dtype=torch.float64),
                params.jitter_up * torch.randn(count, 3, generator=rng, dtype=torch.float64),
            ]
        )
    return build_cameras(params, fov, polar, azimuth, radius, jitter=jitter, supersampling=params.SSAA)


def _draw(count: int, bounds: Range, gamma: float, rng: torch.Generator) -> Float[Tensor, "B"]:
    """`mid + half * sign * u^gamma` with uniform u and a fair sign: uniform in `bounds` for gamma 1."""
    low, high = bounds
    uniform = torch.rand(count, generator=rng, dtype=torch.float64)
    sign = 2.0 * torch.randint(2, (count,), generator=rng) - 1.0
    return (low + high) / 2 + (high - low) / 2 * sign * uniform**gamma
