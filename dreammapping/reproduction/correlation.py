"""Figure 11: how far ε_φ(x_t, t, y) and the noise ε that is in x_t are linearly correlated, and how it varies.

Puccetti's coefficient (2022) is the trace of the covariance of two vectors over the largest that their own covariances
allow: ρ = tr Σ_xy / tr (Σ_x^½ Σ_y Σ_x^½)^½, in [-1, 1]. With ε ~ N(0, I) the denominator is tr Σ_y^½, which cannot be
estimated of whole latents, whose dimensions are more than the samples; so there are three numbers:

* `on_crops`: ρ, estimated on square crops at all places, where there are enough;
* `lower_bound`: tr Σ_xy / (d tr Σ_y)^½, which is ρ where Σ_y is a multiple of I, and never above it in magnitude;
* `stationary`: ρ of whole latents, as if their covariance did not change from place to place.

All take predictions and noise `(N, C, h, w)`, N of them over pictures and noises, and compute in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "N C h w"]

CROP = 4
"""Side of a crop, in latent pixels: of larger ones the toybox's 64 pictures would have too few."""
STEPS = tuple(range(20, 981, 48))
"""Values of t: 21 of them."""


@dataclass(frozen=True)
class Point:
    """What is found at one t.

    Attributes:
        variance: of an element of ε_φ, over pictures and noises.
        on_crops: None where there are fewer than `ENOUGH` crops of different pictures or places for each of their
            dimensions.
    """

    t: int
    variance: float
    lower_bound: float
    stationary: float
    on_crops: float | None
    samples: int


ENOUGH = 10


def variance(predictions: Latents) -> float:
    """Mean over elements of their variance over samples: tr Σ_y / d."""
    return _centred(predictions).square().sum(dim=0).mean().item() / (len(predictions) - 1)


def lower_bound(predictions: Latents, noise: Latents) -> float:
    """tr Σ_xy / (d tr Σ_y)^½, the variance of the noise being 1."""
    elements = predictions[0].numel()
    return _covariance_trace(predictions, noise) / (elements * variance(predictions) ** 0.5)


def on_crops(
    predictions: Latents, noise: Latents, crop: int = CROP, *, pictures: int | None = None
) -> float | None:
    """Puccetti's coefficient of crops of crop x crop at all places that do not overlap, with their own mean.

    None where there are too few: Σ_y^½ of few samples is too small, and ρ too large.

    Args:
        pictures: of how many pictures the N are, whose noises add no more pictures; None: each of another.
    """
    crop = min(crop, *predictions.shape[-2:])
    found, there = (_crops(each, crop) for each in (predictions, noise))
    samples, dimensions = found.shape
    places = samples // len(predictions)
    if places * (len(predictions) if pictures is None else pictures) < ENOUGH * dimensions:
        return None
    found = found - found.mean(dim=0)
    covariance = found.T @ found / (samples - 1)
    shared = (found * (there - there.mean(dim=0))).sum().item() / (samples - 1)
    return shared / _root_trace(covariance)


def stationary(predictions: Latents, noise: Latents) -> float:
    """Puccetti's coefficient where the covariance of two places depends on their distance alone, around the edges.

    The C x C spectra of all frequencies are then Σ_y in blocks, and so are their roots Σ_y^½.
    """
    count, channels = predictions.shape[:2]
    waves = torch.fft.fft2(_centred(predictions), norm="ortho").reshape(count, channels, -1)
    spectra = torch.einsum("ncf,nkf->fck", waves, waves.conj()) / (count - 1)
    return _covariance_trace(predictions, noise) / _root_trace(spectra)


def point(t: int, predictions: Latents, noise: Latents, *, pictures: int | None = None) -> Point:
    """All numbers at one t; `pictures` as of `on_crops`."""
    return Point(
        t,
        variance(predictions),
        lower_bound(predictions, noise),
        stationary(predictions, noise),
        on_crops(predictions, noise, pictures=pictures),
        len(predictions),
    )


def falls(points: Iterable[Point]) -> float:
    """Spearman's rank correlation of t and the lower bound: 1 where ρ falls with every step towards t = 0."""
    from scipy.stats import spearmanr

    found = list(points)
    return float(spearmanr([each.t for each in found], [each.lower_bound for each in found]).statistic)


def _covariance_trace(predictions: Latents, noise: Latents) -> float:
    return (_centred(predictions) * _centred(noise)).sum().item() / (len(predictions) - 1)


def _centred(latents: Latents) -> Latents:
    latents = latents.double()
    return latents - latents.mean(dim=0)


def _crops(latents: Latents, crop: int) -> Float[Tensor, "M D"]:
    _, channels, height, width = latents.shape
    whole = latents.double()[..., : height // crop * crop, : width // crop * crop]
    parts = whole.unfold(2, crop, crop).unfold(3, crop, crop)
    return parts.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * crop * crop)


def _root_trace(covariances: Tensor) -> float:
    """Sum of the traces of the square roots of symmetric matrices."""
    return torch.linalg.eigvalsh(covariances).clamp_min(0.0).sqrt().sum().item()
