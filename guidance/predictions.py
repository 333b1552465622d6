"""What the frozen score model says about x_t, for every text branch, in one call."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from guidance.distillation import classifier_free, perpendicular_negatives
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewText

NEGLIGIBLE = 1e-4  # a Perp-Neg branch with no larger weight is neither evaluated nor added


@dataclass(frozen=True)
class Predictions:
    """ε_φ of one batch of x_t. `negatives` and `negative_weights` are Perp-Neg's; K is 0 without it.

    `extra` is the branch that a method asked for beside these, None where it asked for none.
    """

    cond: Float[Tensor, "B C h w"]
    base: Float[Tensor, "B C h w"]
    negatives: Float[Tensor, "B K C h w"]
    negative_weights: Float[Tensor, "B K"]
    extra: Float[Tensor, "B C h w"] | None = None

    @property
    def direction(self) -> Float[Tensor, "B C h w"]:
        """Δ = ε_y - ε_base, with the perpendicular negatives where there are any."""
        direction = self.cond - self.base
        if self.negatives.shape[1]:
            negatives = self.negatives - self.base[:, None]
            direction = perpendicular_negatives(direction, negatives, self.negative_weights)
        return direction

    def guided(self, guidance_scale: float, form: str = "standard") -> Float[Tensor, "B C h w"]:
        """ε_φ^CFG (Eq. 4), with the perpendicular negatives in its direction where there are any."""
        return classifier_free(self.base, self.direction, guidance_scale, form)


@torch.no_grad()
def predict(
    score_model: DiffusionPrior,
    noisy_latents: Float[Tensor, "B C h w"],
    timesteps: Int[Tensor, " B"],
    text: ViewText,
    *,
    base: Float[Tensor, "B L D"] | None = None,
    base_noise: Float[Tensor, "B C h w"] | None = None,
    extra: Float[Tensor, "B L D"] | None = None,
    extra_views: Bool[Tensor, " B"] | None = None,
) -> Predictions:
    """All branches of all views in one U-Net call, branch-major: base, positive, the negatives that count, the extra.

    Args:
        base: text of the base in the place of `text.base`.
        base_noise: the base's prediction, where another model made it; it is not evaluated then.
        extra: one more text for each view.
        extra_views: the views that need it, on the host; the others are not evaluated and stand at their base.
    """
    count = len(noisy_latents)
    branches, views = (text.negative_weights.abs() > NEGLIGIBLE).T.nonzero(as_tuple=True)
    device = noisy_latents.device
    every = torch.arange(count)
    further = every[:0] if extra is None else every if extra_views is None else every[extra_views]
    bases = every if base_noise is None else every[:0]
    rows = torch.cat([bases, every, views.cpu(), further]).to(device, non_blocking=True)
    branches, views, bases, further = (
        index.to(device, non_blocking=True) for index in (branches, views, bases, further)
    )
    base = text.base if base is None else base
    embeddings = [base[bases], text.positive, text.negatives[views, branches]]
    if extra is not None:
        embeddings.append(extra[further])

    noise = score_model.predict_noise(noisy_latents[rows], timesteps[rows], torch.cat(embeddings))
    at_base, cond, used, beside = noise.split([len(bases), count, len(views), len(further)])
    at_base = at_base if base_noise is None else base_noise
    # a branch that was skipped stands at the base: no direction, whatever its weight
    negatives = at_base[:, None].repeat(1, text.negative_weights.shape[1], 1, 1, 1)
    negatives[views, branches] = used
    extra_noise = None if extra is None else at_base.index_copy(0, further, beside)
    weights = text.negative_weights.to(device, non_blocking=True)
    return Predictions(cond, at_base, negatives, weights, extra_noise)
