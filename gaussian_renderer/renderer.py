"""`render`: all cameras of a batch in one call of the rasterizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from diff_gaussian_rasterization import rasterize
from jaxtyping import Float
from torch import Tensor

from scene.cameras import Cameras
from scene.density import Footprint
from scene.gaussian_model import GaussianModel

Z_NEAR, Z_FAR = 0.01, 100.0
BACKGROUND_DISTANCE = 10.0
"""Where `disparity` puts what no Gaussian covers, world units."""
COVERED = 0.9
"""Alpha from which a pixel counts as object in `disparity`."""


@dataclass(frozen=True, eq=False)
class Views:
    """B rendered images, and what density control needs of them.

    `images` are RGB as the rasterizer made them (not clamped), `alphas` lie in [0, 1], `depths` are sums of
    blending weight times distance along the view axis (not divided by alpha).
    """

    images: Float[Tensor, "B 3 H W"]
    alphas: Float[Tensor, "B 1 H W"]
    depths: Float[Tensor, "B 1 H W"]
    footprint: Footprint


@runtime_checkable
class Covered(Protocol):
    """What `disparity` asks of views, whatever was rendered."""

    @property
    def alphas(self) -> Float[Tensor, "B 1 H W"]: ...

    @property
    def depths(self) -> Float[Tensor, "B 1 H W"]: ...


def render(
    gaussians: GaussianModel,
    cameras: Cameras,
    background: Float[Tensor, "*#B 3"],
    *,
    scales: Float[Tensor, "*#B N 3"] | None = None,
    sh: Float[Tensor, "N K 3"] | None = None,
    sh_degree: int | Sequence[int] | None = None,
    backend: str = "auto",
    direct_rgb: bool = False,
    debug: bool = False,
) -> Views:
    """Splat `gaussians` into `cameras`.

    Args:
        background: One colour, or one for each view.
        scales: Take the place of `gaussians.scales`, for all views or each its own.
        sh: Takes the place of `gaussians.sh`.
        sh_degree: Degree in use, for all views or each its own; `gaussians.active_sh_degree` if not given.
        direct_rgb: Colours are sigmoid(`sh_dc`), no harmonics (upstream `convert_SHs_python`).
        debug: The kernels check their inputs and outputs.
    """
    views = len(cameras)
    device = gaussians.means.device
    cameras = cameras.to(device)
    means2d = torch.zeros((views, len(gaussians), 3), device=device, requires_grad=torch.is_grad_enabled())
    images, radii, depths, alphas = rasterize(
        gaussians.means,
        means2d,
        gaussians.opacities,
        shs=None if direct_rgb else gaussians.sh if sh is None else sh,
        colors_precomp=gaussians.sh_dc[:, 0].sigmoid() if direct_rgb else None,
        scales=gaussians.scales if scales is None else scales,
        rotations=gaussians.rotations,
        **camera_arguments(cameras),
        bg=background.to(device).expand(views, 3),
        sh_degree=gaussians.active_sh_degree if sh_degree is None else sh_degree,
        backend=backend,
        debug=debug,
    )
    return Views(images, alphas, depths, Footprint(means2d, radii))


def usable(backend: str, device: torch.device) -> str:
    """A backend of the rasterizer, or "auto" where a device has not its kernels: a run may be looked at elsewhere."""
    return "auto" if backend in ("cpu", "cuda") and backend != device.type else backend


def camera_arguments(cameras: Cameras) -> dict[str, Any]:
    """What `rasterize` asks of B cameras: matrices transposed, tangents of half the fields of view."""
    return {
        "viewmatrix": cameras.world_to_camera.transpose(1, 2).contiguous(),
        "projmatrix": (projections(cameras) @ cameras.world_to_camera).transpose(1, 2).contiguous(),
        "campos": cameras.centers,
        "tanfovx": (cameras.fov_x / 2).tan(),
        "tanfovy": (cameras.fov_y / 2).tan(),
        "image_height": cameras.height,
        "image_width": cameras.width,
    }


def projections(cameras: Cameras) -> Float[Tensor, "B 4 4"]:
    """Perspective matrices for column vectors: w is the distance along the view axis, z in [0, 1]."""
    matrices = cameras.world_to_camera.new_zeros(len(cameras), 4, 4)
    matrices[:, 0, 0] = 1 / (cameras.fov_x / 2).tan()
    matrices[:, 1, 1] = 1 / (cameras.fov_y / 2).tan()
    matrices[:, 2, 2] = Z_FAR / (Z_FAR - Z_NEAR)
    matrices[:, 2, 3] = -Z_FAR * Z_NEAR / (Z_FAR - Z_NEAR)
    matrices[:, 3, 2] = 1.0
    return matrices


def disparity(views: Covered, cameras: Cameras) -> Float[Tensor, "B 1 H W"]:
    """LucidDreamer's depth picture: 1 at the nearest pixel, 0 at the object's farthest and in the background.

    A view without any difference in distance (an empty one, say) is 0 everywhere.
    """
    transmittances = 1.0 - views.alphas
    focal = (0.5 / (cameras.fov_x / 2).tan()).to(views.depths).view(-1, 1, 1, 1)
    inverse = focal / (views.depths + BACKGROUND_DISTANCE * transmittances + 1e-5)
    covered = transmittances <= 1.0 - COVERED
    covered = covered | ~covered.flatten(1).any(dim=1).view(-1, 1, 1, 1)
    farthest = inverse.masked_fill(~covered, torch.inf).amin(dim=(1, 2, 3), keepdim=True)
    nearest = inverse.amax(dim=(1, 2, 3), keepdim=True)
    span = (nearest - farthest).clamp_min(1e-5)
    return ((inverse - farthest) / span).clamp(0.0, 1.0)
