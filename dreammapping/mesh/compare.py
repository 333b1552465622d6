"""How much a textured mesh looks like what it was made from, seen by cameras that did not make it."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dreammapping.mesh.rasterise import rasterise_view
from dreammapping.mesh.texture import Textured
from dreammapping.mesh.views import Seen, sample
from scene.cameras import Cameras

SUPERSAMPLING = 2


@dataclass(frozen=True)
class Likeness:
    """Over all pixels of all views."""

    psnr: float
    """In dB, of images in [0, 1] before the same background."""
    coverage: float
    """Pixels where both are opaque, as a share of those where either is."""


def compare(seen: Seen, mesh: Textured, background: Float[Tensor, "3"]) -> Likeness:
    """Draw the mesh as the cameras of `seen` see it, before a background, and compare."""
    background = background.to(seen.images).view(1, 3, 1, 1)
    errors, both, either = 0.0, 0, 0
    for view in seen.each():
        image, alpha = draw(mesh, view.cameras, background)
        expected = view.images + (1 - view.alphas) * background
        errors += float((image - expected.clamp(0, 1)).square().mean())
        ours, theirs = alpha > 0.5, view.alphas > 0.5
        both += int((ours & theirs).sum())
        either += int((ours | theirs).sum())
    return Likeness(-10 * float(np.log10(max(errors / len(seen), 1e-10))), both / max(either, 1))


def draw(
    mesh: Textured, cameras: Cameras, background: Float[Tensor, "1 3 1 1"]
) -> tuple[Float[Tensor, "1 3 H W"], Float[Tensor, "1 1 H W"]]:
    """Image and alpha of a textured mesh without shading, as one camera sees it."""
    device = background.device
    corners = torch.from_numpy(mesh.faces).to(device)
    vertices = torch.from_numpy(mesh.vertices.astype(np.float32)).to(device)
    uv = torch.from_numpy(mesh.uv.astype(np.float32)).to(device)
    raster = rasterise_view(vertices, corners, cameras, supersampling=SUPERSAMPLING)
    covered = raster.faces >= 0
    picture = torch.from_numpy(mesh.picture).to(device).permute(2, 0, 1)[None].float() / 255
    image = background[0].permute(1, 2, 0).repeat(*covered.shape, 1)
    image[covered] = sample(picture, 2 * raster.values(uv, corners) - 1)
    small = F.avg_pool2d(
        torch.cat([image, covered[..., None].float()], dim=2).permute(2, 0, 1)[None], SUPERSAMPLING
    )
    return small[:, :3], small[:, 3:]
