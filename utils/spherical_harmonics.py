"""Real spherical harmonics as 3D Gaussian Splatting orders and signs them, up to degree 3.

A colour is `eval_sh(...) + 0.5`, then clamped at 0. Band l holds 2l + 1 coefficients, in the order m = -l..l,
with the Condon-Shortley sign (band 1 is -y, +z, -x).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

C0 = 0.28209479177387814
"""Band 0: 1 / (2 sqrt(pi))."""

C1 = math.sqrt(3 / (4 * math.pi))
C2 = (math.sqrt(15 / (4 * math.pi)), math.sqrt(5 / (16 * math.pi)), math.sqrt(15 / (16 * math.pi)))
C3 = (
    math.sqrt(35 / (32 * math.pi)),
    math.sqrt(105 / (4 * math.pi)),
    math.sqrt(21 / (32 * math.pi)),
    math.sqrt(7 / (16 * math.pi)),
    math.sqrt(105 / (16 * math.pi)),
)

MAX_DEGREE = 3


def coefficient_count(degree: int) -> int:
    """Coefficients per channel of all bands up to `degree`."""
    return (degree + 1) ** 2


def rgb_to_sh_dc(rgb: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Band-0 coefficients of a colour in [0, 1] that is the same from all sides."""
    return (rgb - 0.5) / C0


def sh_dc_to_rgb(sh_dc: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Colour of the band-0 coefficients, not clamped."""
    return sh_dc * C0 + 0.5


def sh_basis(degree: int, directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N K"]:
    """The `(degree + 1)^2` basis functions at unit directions."""
    x, y, z = directions.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    bands = [torch.full_like(x, C0)]
    if degree >= 1:
        bands += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        bands += [
            C2[0] * x * y,
            -C2[0] * y * z,
            C2[1] * (2 * zz - xx - yy),
            -C2[0] * x * z,
            C2[2] * (xx - yy),
        ]
    if degree >= 3:
        bands += [
            -C3[0] * y * (3 * xx - yy),
            C3[1] * x * y * z,
            -C3[2] * y * (4 * zz - xx - yy),
            C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            -C3[2] * x * (4 * zz - xx - yy),
            C3[4] * z * (xx - yy),
            -C3[0] * x * (xx - 3 * yy),
        ]
    return torch.stack(bands, dim=-1)


def eval_sh(degree: int, sh: Float[Tensor, "N K 3"], dirs: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Evaluate the bands up to `degree` at unit directions; a colour has 0.5 added to it."""
    basis = sh_basis(degree, dirs)
    return torch.einsum("nk,nkc->nc", basis, sh[:, : basis.shape[1]])


def rotate_sh(sh: Float[Tensor, "N K 3"], rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "N K 3"]:
    """Turn the functions that `sh` describes: the result at direction `R d` is the input at `d`.

    A rotation maps each band onto itself, so its matrix follows from the basis at 2l + 1 directions; more of
    them, in float64, make it exact to rounding.
    """
    degree = math.isqrt(sh.shape[1]) - 1
    directions = _spread_directions(64)
    turned = sh_basis(degree, directions)
    original = sh_basis(degree, directions @ rotation.double().cpu())  # rows are R^T d
    rotated = [sh[:, :1]]
    for band in range(1, degree + 1):
        part = slice(band**2, (band + 1) ** 2)
        matrix = torch.linalg.lstsq(turned[:, part], original[:, part]).solution
        rotated.append(torch.einsum("jk,nkc->njc", matrix.to(sh), sh[:, part]))
    return torch.cat(rotated, dim=1)


def _spread_directions(count: int) -> Float[Tensor, "N 3"]:
    """A Fibonacci lattice on the unit sphere, float64."""
    index = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * index + 1) / count
    azimuth = index * math.pi * (3 - math.sqrt(5))
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], dim=-1)
