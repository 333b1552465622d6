"""Depths at which a share of the light has been stopped: surfaces, where mean depths lie between front and back."""

import torch
from diff_gaussian_rasterization import rasterize
from jaxtyping import Float
from torch import Tensor

from gaussian_renderer.renderer import camera_arguments
from scene.cameras import Cameras
from scene.gaussian_model import GaussianModel

SLICES = 12
"""Slices of the depth; each takes two channels, and three are rendered at a time."""


@torch.no_grad()
def depths_at(
    gaussians: GaussianModel, cameras: Cameras, share: float = 0.5, *, backend: str = "auto"
) -> Float[Tensor, "B 1 H W"]:
    """Distances along the view axis at which Gaussians have stopped `share` of the light; inf where they do not.

    A share of 0.5 gives the median depth. The Gaussians of a view are cut into slices by their distance. What all
    slices up to one add to a pixel, and the mean distance of that, are rendered as colours: of the slice in which the
    share is reached both are known, and within it the light is taken to fall evenly around that mean. So a thin
    surface is met exactly.
    """
    cameras = cameras.to(gaussians.means.device)
    to_camera = cameras.world_to_camera[:, 2]
    distances = torch.einsum("bj,nj->bn", to_camera[:, :3], gaussians.means) + to_camera[:, 3:]
    seen = gaussians.opacities[:, 0] > 1 / 255
    in_front = torch.where(seen & (distances > 0), distances, torch.nan)
    low, high = (in_front.nanquantile(end, dim=1) for end in (0.001, 0.999))
    edges = torch.lerp(
        low[:, None], high[:, None], torch.arange(1, SLICES, device=low.device, dtype=low.dtype) / SLICES
    )
    far = torch.full_like(low, torch.inf)[:, None]
    edges = torch.cat([edges, far], dim=1)  # (B, SLICES), the last one beyond all

    up_to = (distances[:, None] <= edges[:, :, None]).float()  # (B, SLICES, N)
    channels = torch.cat([up_to, up_to * distances[:, None]], dim=1)
    sums = torch.cat(
        [
            _colors(gaussians, cameras, three.transpose(1, 2).contiguous(), backend)
            for three in channels.split(3, dim=1)
        ],
        dim=1,
    )
    weights, moments = sums.split(SLICES, dim=1)
    before = torch.nn.functional.pad(weights, (0, 0, 0, 0, 1, 0))[:, :-1]
    here = (weights < share).sum(dim=1, keepdim=True)  # the slice in which it is reached
    nowhere = here == SLICES
    here = here.clamp(max=SLICES - 1)
    light = (weights.gather(1, here) - before.gather(1, here)).clamp_min(1e-6)
    before_moments = torch.nn.functional.pad(moments, (0, 0, 0, 0, 1, 0))[:, :-1]
    mean = (moments.gather(1, here) - before_moments.gather(1, here)) / light
    ends = [in_front.nan_to_num(torch.inf).amin(dim=1), in_front.nan_to_num(-torch.inf).amax(dim=1)]
    bounds = torch.cat([ends[0][:, None], edges[:, :-1], ends[1][:, None]], dim=1)[:, :, None, None]
    bounds = bounds.expand(-1, -1, *mean.shape[2:])
    near, beyond = bounds.gather(1, here), bounds.gather(1, here + 1)
    mean = torch.minimum(torch.maximum(mean, near), beyond)  # which rounding may leave, of little light
    spread = torch.minimum(mean - near, beyond - mean).clamp_min(0)
    part = (share - before.gather(1, here)) / light
    return torch.where(nowhere, torch.inf, mean + spread * (2 * part - 1))


def _colors(
    gaussians: GaussianModel, cameras: Cameras, colors: Float[Tensor, "B N C"], backend: str
) -> Float[Tensor, "B C H W"]:
    """Sums of weight times colour, of 3 or fewer channels."""
    channels = colors.shape[2]
    colors = torch.nn.functional.pad(colors, (0, 3 - channels))
    images, *_ = rasterize(
        gaussians.means,
        None,
        gaussians.opacities,
        colors_precomp=colors,
        scales=gaussians.scales,
        rotations=gaussians.rotations,
        **camera_arguments(cameras),
        bg=colors.new_zeros(len(cameras), 3),
        sh_degree=0,
        backend=backend,
    )
    return images[:, :channels]
