"""Cameras: where they stand, how they are drawn at random, and how their ranges widen during training.

A camera at radius r, polar angle theta (from +z) and azimuth phi stands at
r (sin theta sin phi, sin theta cos phi, cos theta): azimuth 0 is in front (+y), 90 on +x, 180 at the back.
Camera axes are OpenCV's: x right, y down, z forward.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams, OptimizationParams

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of B pinhole cameras that share one image size.

    `world_to_camera` multiplies column vectors; fields of view are radians; `azimuth_deg` lies in
    (-180, 180]. Angles and `radius` are those asked for, before any jitter (prompts go by them).
    """

    world_to_camera: Float[Tensor, "B 4 4"]
    fov_x: Float[Tensor, "B"]
    fov_y: Float[Tensor, "B"]
    azimuth_deg: Float[Tensor, "B"]
    polar_deg: Float[Tensor, "B"]
    radius: Float[Tensor, "B"]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.world_to_camera)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Cameras":
        return dataclasses.replace(self, **{name: value[index] for name, value in self.tensors().items()})

    @property
    def centers(self) -> Float[Tensor, "B 3"]:
        """Positions in the world."""
        rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -torch.einsum("bij,bi->bj", rotation, translation)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold one row for each camera."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> "Cameras":
        return dataclasses.replace(self, **{name: value.to(device) for name, value in self.tensors().items()})

    @classmethod
    def concatenate(cls, parts: Sequence["Cameras"]) -> "Cameras":
        """All cameras of `parts`, which share one image size, in order."""
        return dataclasses.replace(
            parts[0],
            **{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()},
        )


def spherical_to_cartesian(
    polar_deg: Float[Tensor, "B"], azimuth_deg: Float[Tensor, "B"], radius: Float[Tensor, "B"]
) -> Float[Tensor, "B 3"]:
    """World positions of polar angle (from +z), azimuth (from +y towards +x) and distance."""
    polar, azimuth = polar_deg.deg2rad(), azimuth_deg.deg2rad()
    unit = torch.stack([polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos(), polar.cos()], dim=-1)
    return radius[:, None] * unit


def look_at(
    centers: Float[Tensor, "B 3"], targets: Float[Tensor, "B 3"], ups: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 4 4"]:
    """World-to-camera matrices of cameras at `centers` that see `targets` in the middle and `ups` upwards."""
    forward = F.normalize(targets - centers, dim=-1)
    right = F.normalize(torch.linalg.cross(forward, ups), dim=-1)
    down = torch.linalg.cross(forward, right)
    matrices = torch.eye(4).to(centers).repeat(len(centers), 1, 1)
    matrices[:, :3, :3] = torch.stack([right, down, forward], dim=1)
    matrices[:, :3, 3] = -torch.einsum("bij,bj->bi", matrices[:, :3, :3], centers)
    return matrices


def wrap_degrees(angles: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The same directions in (-180, 180]."""
    return 180.0 - (180.0 - angles) % 360.0


def orbit(
    count: int, params: GenerateCamParams, *, polar_deg: float | None = None, elevated_ring: bool = False
) -> Cameras:
    """A ring of `count` cameras for tests and videos, starting in front and turning towards +x.

    Args:
        polar_deg: Angle from +z; `default_polar` if not given.
        elevated_ring: Append a second ring at two thirds of that angle, in whole degrees.
    """
    polar_deg = params.default_polar if polar_deg is None else polar_deg
    rings = [polar_deg, math.floor(2 / 3 * polar_deg)] if elevated_ring else [polar_deg]
    polar = torch.tensor(rings, dtype=torch.float64).repeat_interleave(count)
    azimuth = (360.0 / count * torch.arange(count, dtype=torch.float64)).repeat(len(rings))
    radius = torch.full_like(polar, params.default_radius)
    return _build(params, params.default_fovy, polar, azimuth, radius)


def _build(
    params: GenerateCamParams,
    fov: float,
    polar_deg: Float[Tensor, "B"],
    azimuth_deg: Float[Tensor, "B"],
    radius: Float[Tensor, "B"],
    *,
    jitter: Float[Tensor, "3 B 3"] | None = None,
    supersampling: int = 1,
) -> Cameras:
    """Cameras that look at the origin; `jitter` offsets centres, targets and up vectors.

    `fov` (radians) spans the width, as upstream, in spite of its setting's name; square images do not care.
    """
    centers = spherical_to_cartesian(polar_deg, azimuth_deg, radius)
    ups = torch.tensor([0.0, 0.0, 1.0]).to(centers).repeat(len(centers), 1)
    # Straight above or below, +z says nothing about up; the direction in which the polar angle shrinks does.
    at_pole = (polar_deg.deg2rad().sin().abs() < 1e-4)[:, None]
    ups = torch.where(
        at_pole, spherical_to_cartesian(polar_deg - 90.0, azimuth_deg, torch.ones_like(radius)), ups
    )
    targets = torch.zeros_like(centers)
    if jitter is not None:
        centers, targets, ups = centers + jitter[0], targets + jitter[1], ups + jitter[2]
    fov_y = 2 * math.atan(math.tan(fov / 2) * params.image_h / params.image_w)
    return Cameras(
        world_to_camera=look_at(centers, targets, ups).float(),
        fov_x=torch.full((len(centers),), fov),
        fov_y=torch.full((len(centers),), fov_y),
        azimuth_deg=wrap_degrees(azimuth_deg - params.default_azimuth).float(),
        polar_deg=polar_deg.float(),
        radius=radius.float(),
        width=params.image_w * supersampling,
        height=params.image_h * supersampling,
    )


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
        self._stack = _build(
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
    return _build(params, fov, polar, azimuth, radius, jitter=jitter, supersampling=params.SSAA)


def _draw(count: int, bounds: Range, gamma: float, rng: torch.Generator) -> Float[Tensor, "B"]:
    """`mid + half * sign * u^gamma` with uniform u and a fair sign: uniform in `bounds` for gamma 1."""
    low, high = bounds
    uniform = torch.rand(count, generator=rng, dtype=torch.float64)
    sign = 2.0 * torch.randint(2, (count,), generator=rng) - 1.0
    return (low + high) / 2 + (high - low) / 2 * sign * uniform**gamma


def cameras_json(cameras: Cameras) -> list[dict[str, Any]]:
    """What SIBR viewers read from `cameras.json`: camera-to-world poses, and focal lengths in pixels."""
    rotations = cameras.world_to_camera[:, :3, :3].transpose(1, 2).tolist()
    positions = cameras.centers.tolist()
    return [
        {
            "id": index,
            "img_name": index,
            "width": cameras.width,
            "height": cameras.height,
            "position": positions[index],
            "rotation": rotations[index],
            "fy": cameras.height / (2 * math.tan(float(cameras.fov_y[index]) / 2)),
            "fx": cameras.width / (2 * math.tan(float(cameras.fov_x[index]) / 2)),
        }
        for index in range(len(cameras))
    ]
