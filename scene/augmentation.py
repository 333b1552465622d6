"""What LucidDreamer varies in its training renders, sampled beside the renderer so that `render` stays a function."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import ModelParams
from utils.random import standard_normal

SCALE_NOISE = 0.2**0.5 / 4
"""Standard deviation of the relative noise on the Gaussians' scales (upstream `scale_aug_ratio`)."""
SH_NOISE = 0.2**0.5
"""Standard deviation of the relative noise on the spherical harmonics (upstream `shs_aug_ratio`)."""


@dataclass(frozen=True)
class Augmentation:
    """One draw for a batch of B views of N Gaussians.

    Attributes:
        backgrounds: one colour for each view, (B, 3).
        sh_degrees: the degree that each view evaluates.
        scale_factors: what each view multiplies the scales by, (B, N, 3), or None.
        sh_factors: what the batch multiplies the spherical harmonics by, (N, K, 3), or None.
    """

    backgrounds: Float[Tensor, "B 3"]
    sh_degrees: list[int]
    scale_factors: Float[Tensor, "B N 3"] | None
    sh_factors: Float[Tensor, "N K 3"] | None


def sample_augmentation(
    params: ModelParams,
    views: int,
    sh_shape: tuple[int, int, int],
    active_degree: int,
    rng: torch.Generator,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Augmentation:
    """Draw backgrounds, degrees and noise for `views` training renders of Gaussians with features of `sh_shape`.

    Noise comes on `device`, the rest on the CPU.
    """
    gaussians = sh_shape[0]
    backgrounds = sample_backgrounds(params, views, rng)
    flat = torch.rand(views, generator=rng) < params.sh_deg_aug_ratio
    sh_degrees = [0 if is_flat else active_degree for is_flat in flat.tolist()]

    noisy = torch.rand(views, generator=rng) < params.scale_aug_ratio
    scale_factors = None
    if noisy.any():
        noise = standard_normal((views, gaussians, 3), rng, device) * SCALE_NOISE
        scale_factors = (1.0 + noise * noisy.view(-1, 1, 1).to(device, non_blocking=True)).clamp_min(0.0)

    sh_factors = None
    if torch.rand((), generator=rng) < params.shs_aug_ratio:
        sh_factors = 1.0 + standard_normal(sh_shape, rng, device) * SH_NOISE
    return Augmentation(backgrounds, sh_degrees, scale_factors, sh_factors)


def sample_backgrounds(params: ModelParams, views: int, rng: torch.Generator) -> Float[Tensor, "B 3"]:
    """One colour for each view.

    A view keeps the base background (white or black) with probability `1 - bg_aug_ratio`; otherwise it gets
    black or one random colour, evenly (upstream `bg_aug_ratio`, facts of its renderer).
    """
    base = torch.full((views, 3), 1.0 if params.white_background else 0.0)
    augmented, coloured = (torch.rand(views, 1, generator=rng) for _ in range(2))
    colour = torch.where(coloured < 0.5, torch.rand(views, 3, generator=rng), 0.0)
    return torch.where(augmented < params.bg_aug_ratio, colour, base)


def sample_flip(rng: torch.Generator) -> bool:
    """Whether the whole batch is mirrored left to right before it is encoded (one half of the iterations)."""
    return bool(torch.rand((), generator=rng) < 0.5)
