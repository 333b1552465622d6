"""The algebra that all score distillation losses share: pure functions of predictions."""

import torch
from jaxtyping import Float
from torch import Tensor

from utils.distributed import norm_of_all


def classifier_free(
    noise_base: Float[Tensor, "B C h w"],
    direction: Float[Tensor, "B C h w"],
    guidance_scale: float,
    form: str = "standard",
) -> Float[Tensor, "B C h w"]:
    """Classifier-free guidance from the base prediction along `direction`, which is ε_y - ε_base without Perp-Neg.

    Args:
        form: "standard" is what diffusers and LucidDreamer compute, ε_base + s·Δ. "paper" is Eq. 4, ε_y + s·Δ, which
            is the standard form at s + 1.
    """
    scale = guidance_scale + 1 if form == "paper" else guidance_scale
    return noise_base + scale * direction


def perpendicular_negatives(
    direction: Float[Tensor, "B C h w"],
    negatives: Float[Tensor, "B K C h w"],
    weights: Float[Tensor, "B K"],
) -> Float[Tensor, "B C h w"]:
    """Perp-Neg: Δ + Σ_k w_k (Δ_k - proj_Δ Δ_k), so that a negative view can only push sideways, never against Δ.

    Args:
        direction: Δ of the positive prompt.
        negatives: Δ_k of the negative view prompts, from the same base as `direction`.
        weights: w_k, at most 0.
    """
    positive = direction[:, None]
    inner = (negatives * positive).sum(dim=(2, 3, 4), keepdim=True)
    norm = positive.square().sum(dim=(2, 3, 4), keepdim=True).clamp_min(1e-6)
    sideways = negatives - inner / norm * positive
    return direction + (weights[:, :, None, None, None] * sideways).sum(dim=1)


def clipped(gradient: Float[Tensor, "B C h w"], limit: float) -> Float[Tensor, "B C h w"]:
    """Every element within ±`limit`; 0 is no limit. What is not finite stays, so that the step is skipped."""
    if limit == 0:
        return gradient
    return torch.where(gradient.isfinite(), gradient.clamp(-limit, limit), gradient)


def normalized(gradient: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Divided by the Euclidean norm of the whole batch (CSD, first stage)."""
    return gradient / norm_of_all(gradient).clamp_min(1e-8)


def projection(
    onto: Float[Tensor, "B C h w"], vector: Float[Tensor, "B C h w"]
) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B C h w"]]:
    """r = <vector, onto> / <onto, onto> of each view, and vector - r onto, which is orthogonal to `onto`."""
    inner = (vector * onto).sum(dim=(1, 2, 3), keepdim=True)
    ratio = inner / onto.square().sum(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return ratio, vector - ratio * onto


def norms(tensor: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 1 1 1"]:
    """Euclidean norm of each view."""
    return tensor.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def with_gradient(latents: Float[Tensor, "B C h w"], gradient: Float[Tensor, "B C h w"]) -> Float[Tensor, ""]:
    """A loss whose gradient at `latents` is exactly `gradient`, summed over views as in LucidDreamer.

    Its value is ½‖gradient‖² / B: a magnitude for logs. The squared norm of Algorithm 1 is not differentiated,
    because its literal gradient is not Eq. 19.
    """
    gradient = gradient.detach()
    magnitude = 0.5 * gradient.square().sum() / len(gradient)
    injected = (latents * gradient).sum()
    return magnitude + (injected - injected.detach())


def correlation(first: Tensor, second: Tensor) -> Float[Tensor, ""]:
    """Pooled linear correlation of two predictions, in [-1, 1]."""
    return torch.cosine_similarity(
        (first - first.mean()).flatten(), (second - second.mean()).flatten(), dim=0
    )
