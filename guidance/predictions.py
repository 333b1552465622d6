"""What the frozen score model says about x_t, for every text branch, in one call."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.distillation import classifier_free, perpendicular_negatives
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewText

NEGLIGIBLE = 1e-4  # a Perp-Neg branch with no larger weight is neither evaluated nor added


@dataclass(frozen=True)
class Predictions:
    """ε_φ of one batch of x_t. `negatives` and `negative_weights` are Perp-Neg's; K is 0 without it."""

    cond: Float[Tensor, "B C h w"]
    base: Float[Tensor, "B C h w"]
    negatives: Float[Tensor, "B K C h w"]
    negative_weights: Float[Tensor, "B K"]

    def guided(self, guidance_scale: float, form: str = "standard") -> Float[Tensor, "B C h w"]:
        """ε_φ^CFG (Eq. 4), with the perpendicular negatives in its direction where there are any."""
        direction = self.cond - self.base
        if self.negatives.shape[1]:
            negatives = self.negatives - self.base[:, None]
            direction = perpendicular_negatives(direction, negatives, self.negative_weights)
        return classifier_free(self.base, direction, guidance_scale, form)


@torch.no_grad()
def predict(
    score_model: DiffusionPrior,
    noisy_latents: Float[Tensor, "B C h w"],
    timesteps: Int[Tensor, " B"],
    text: ViewText,
) -> Predictions:
    """All branches of all views in one U-Net call, branch-major: base, positive, then the negatives that count."""
    count = len(noisy_latents)
    branches, views = (text.negative_weights.abs() > NEGLIGIBLE).T.nonzero(as_tuple=True)
    device = noisy_latents.device
    every = torch.arange(count)
    rows = torch.cat([every, every, views.cpu()]).to(device, non_blocking=True)
    branches, views = (index.to(device, non_blocking=True) for index in (branches, views))
    embeddings = torch.cat([text.base, text.positive, text.negatives[views, branches]])

    noise = score_model.predict_noise(noisy_latents[rows], timesteps[rows], embeddings)
    base, cond, used = noise.split([count, count, len(views)])
    # a branch that was skipped stands at the base: no direction, whatever its weight
    negatives = base[:, None].repeat(1, text.negative_weights.shape[1], 1, 1, 1)
    negatives[views, branches] = used
    return Predictions(cond, base, negatives, text.negative_weights.to(device, non_blocking=True))
