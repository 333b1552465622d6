"""The Fréchet distance of two sets of features."""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(first: Float[Tensor, "N D"], second: Float[Tensor, "M D"]) -> float:
    """Squared Wasserstein distance of the Gaussians fitted to two sets of features (Heusel et al. 2017, eq. 6)."""
    first, second = first.double(), second.double()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    here, there = first.T.cov(), second.T.cov()
    values, axes = torch.linalg.eigh(here)
    root = axes * values.clamp(min=0.0).sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ there @ root).clamp(min=0.0).sqrt().sum()
    return (shift + here.trace() + there.trace() - 2.0 * cross).item()
