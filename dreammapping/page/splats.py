"""Gaussians as a browser draws them: 16-byte texels that a shader unpacks, in the world's frame.

Texels of one Gaussian follow each other. The first two hold, as little-endian 32-bit words,

    x, y, z (float32)        | red, green (halves)
    blue, opacity (halves)   | log scale 0, 1 (halves) | log scale 2 (half), qx | qy, qz (signed, 16 bits)

and those that follow, 8 halves each, the harmonics above band 0: coefficient by coefficient, red, green and blue. The
quaternion is a unit one with w > 0, which follows from the others. `templates/splats.js` is the reader.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from scene.gaussian_model import GaussianModel
from utils.rotations import multiply_quaternions
from utils.spherical_harmonics import sh_dc_to_rgb

TEXEL = 16
"""Bytes: four channels of 32 bits."""
MOST_BYTES = 12_000_000
"""Of what a page embeds: 375,000 Gaussians without harmonics."""


@dataclass(frozen=True)
class Splats:
    """Packed Gaussians.

    Attributes:
        data: `count` times `texels` texels.
        texels: of one Gaussian: 2, 4, 5 or 8 for the degrees 0 to 3.
        total: the Gaussians that there were; the `count` that show most of themselves were kept, in their order.
    """

    data: bytes
    count: int
    texels: int
    degree: int
    total: int


@torch.no_grad()
def pack(gaussians: GaussianModel, *, direct_rgb: bool = False, most_bytes: int = MOST_BYTES) -> Splats:
    """Pack Gaussians, so many as fit into `most_bytes`.

    Args:
        direct_rgb: colours are sigmoid(`sh_dc`), no harmonics, as in `gaussian_renderer.render`.
    """
    degree, total = 0 if direct_rgb else gaussians.active_sh_degree, len(gaussians)
    rest_count = 3 * ((degree + 1) ** 2 - 1)
    texels = 2 + -(-rest_count // 8)
    kept = most_visible(gaussians, max(most_bytes // (TEXEL * texels), 1))
    gaussians = GaussianModel(**{name: getattr(gaussians, name)[kept] for name in gaussians.parameter_names})
    colors = gaussians.sh_dc[:, 0].sigmoid() if direct_rgb else sh_dc_to_rgb(gaussians.sh_dc[:, 0])
    quats = _upright(gaussians.rotations)[:, 1:]

    table = np.zeros((len(kept), texels * 4), "<u4")
    table[:, :3] = gaussians.means.detach().numpy().astype("<f4").view("<u4")
    shorts = table.view("<u2")
    shorts[:, 6:13] = _halves(torch.cat([colors, gaussians.opacities, gaussians.log_scales], dim=1))
    shorts[:, 13:16] = (quats.numpy() * 32767).round().astype("<i2").view("<u2")
    shorts[:, 16 : 16 + rest_count] = _halves(gaussians.sh_rest.flatten(1)[:, :rest_count])
    return Splats(table.tobytes(), len(kept), texels, degree, total)


def _upright(quats: torch.Tensor) -> torch.Tensor:
    """Rotations whose ellipsoids are the same and whose w is at least 1/2, so that it follows from the others.

    Half a turn about one of its own axes changes no ellipsoid, and brings x, y or z into the place of w.
    """
    turned = multiply_quaternions(quats[:, None], torch.eye(4))
    best = turned[torch.arange(len(quats)), turned[..., 0].abs().argmax(dim=1)]
    return torch.where(best[:, :1] < 0, -best, best)


def most_visible(gaussians: GaussianModel, most: int) -> torch.Tensor:
    """Indices, in order, of the `most` Gaussians with the largest opacity times area."""
    if len(gaussians) <= most:
        return torch.arange(len(gaussians))
    areas = gaussians.log_scales.topk(2, dim=1).values.sum(dim=1) + F.logsigmoid(
        gaussians.opacity_logits[:, 0]
    )
    return areas.topk(most).indices.sort().values


def _halves(values: torch.Tensor) -> np.ndarray:
    """As half precision; what is beyond its range becomes its largest number."""
    return values.clamp(-65504.0, 65504.0).numpy().astype("<f2").view("<u2")
