"""Distances between two sets of pictures, by their features: FID and its heirs.

All take features `(N, D)` and `(M, D)` of one encoder (`encoders.py`), at least two of each, and compute in float64.
Lower is nearer. Only KID's mean is free of the numbers N and M; FID falls by a lot as they grow, so that two FIDs
compare at equal numbers alone.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from utils.errors import UserError
from utils.frechet import frechet_distance

DIRECTIONS = 1000
"""Random directions of MIND."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_ROWS = 512
"""Rows of a kernel that are held at once."""


@dataclass(frozen=True)
class Distances:
    """All of them between `pictures` pictures and `references` references."""

    pictures: int
    references: int
    fid: float
    kid: float
    cmmd: float
    mind: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def distances(
    pictures: Float[Tensor, "N D"], references: Float[Tensor, "M D"], *, seed: int = 0
) -> Distances:
    """All four distances; `seed` chooses the directions of MIND.

    Raises:
        UserError: there are fewer than two pictures or references.
    """
    for name, features in (("pictures", pictures), ("references", references)):
        if len(features) < 2:
            raise UserError(f"distances: expected at least 2 {name}, got {len(features)}; give more")
    rng = torch.Generator().manual_seed(seed)
    return Distances(
        len(pictures),
        len(references),
        fid=fid(pictures, references),
        kid=kid(pictures, references),
        cmmd=cmmd(pictures, references),
        mind=mind(pictures, references, rng),
    )


def fid(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """Fréchet distance (Heusel et al. 2017), by eigenvalues, which also fewer pictures than features have.

    Pooled over the views and prompts of a system it is 3D-FID (ProlificDreamer).
    """
    return frechet_distance(first, second)


def kid(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """Kernel distance (Bińkowski et al. 2018): MMD² of the kernel (x·y / D + 1)³, unbiased, over all pairs.

    It can be negative. Published values are means over random subsets, of which this is the limit.
    """
    first, second = first.double(), second.double()

    def total(x: Tensor, y: Tensor) -> Tensor:
        return _sum((part @ y.T / x.shape[1] + 1.0).pow(3) for part in x.split(_ROWS))

    def without_itself(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(dim=1) / x.shape[1] + 1.0).pow(3).sum()
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    cross = total(first, second) / (len(first) * len(second))
    return (without_itself(first) + without_itself(second) - 2.0 * cross).item()


def cmmd(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """CLIP's MMD (Jayasumana et al. 2024): 1000 MMD² of a Gaussian kernel of σ = 10 between unit vectors, biased.

    The published values have the features of CLIP ViT-L/14 at 336 pixels.
    """
    first, second = (_unit(features.double()) for features in (first, second))

    def mean(x: Tensor, y: Tensor) -> Tensor:
        kernel = (torch.expm1((part @ y.T - 1.0) / CMMD_SIGMA**2) for part in x.split(_ROWS))
        return _sum(kernel) / (len(x) * len(y))  # of kernel - 1, which the difference below does not see

    return (CMMD_SCALE * (mean(first, first) + mean(second, second) - 2.0 * mean(first, second))).item()


def mind(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"], rng: torch.Generator) -> float:
    """Sliced Wasserstein distance (MIND, Berthet et al. 2026): squared, mean over 1000 random directions."""
    dimensions = first.shape[1]
    total = torch.zeros((), dtype=torch.float64)
    for count in [100] * (DIRECTIONS // 100):
        directions = _unit(torch.randn(count, dimensions, generator=rng, dtype=torch.float64))
        total += squared_wasserstein(first.double() @ directions.T, second.double() @ directions.T).sum()
    return total.item() / DIRECTIONS


def squared_wasserstein(first: Float[Tensor, "N K"], second: Float[Tensor, "M K"]) -> Float[Tensor, " K"]:
    """Squared 2-Wasserstein distance of the numbers in each column: of their quantile functions, which are steps."""
    ends = [torch.arange(1, len(each) + 1, dtype=torch.int64) for each in (first, second)]
    # A whole multiple of both steps, so that equal ends are equal numbers.
    cuts = torch.cat([ends[0] * len(second), ends[1] * len(first)]).unique()
    widths = cuts.diff(prepend=cuts.new_zeros(1))
    steps = [
        each.sort(dim=0).values[(cuts - 1) // (len(first) * len(second) // len(each))]
        for each in (first, second)
    ]
    return (widths[:, None] * (steps[0] - steps[1]).square()).sum(dim=0) / (len(first) * len(second))


def _sum(parts: Iterator[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts]).sum()


def _unit(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return torch.nn.functional.normalize(rows, dim=1)
