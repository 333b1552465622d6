"""How well an estimator predicts the noise, by timestep: running means over equal ranges of t."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from utils.distributed import gathered

BINS = 10
MEMORY = 0.95
"""Share of the old mean that a new value leaves: about the last twenty values count."""


class TimestepBins(nn.Module):
    """Mean squared error and correlation of a prediction with ε in `BINS` ranges of t.

    A range that was not seen yet has error 1 and correlation 0, those of predicting nothing. Near-zero error at small
    t, where the noise cannot be known from ε_y of many different renders, means that the estimator knows the one
    render that there is: the method has become SDS.
    """

    error: Tensor
    correlation: Tensor

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.width = -(-timesteps // BINS)
        self.register_buffer("error", torch.ones(BINS))
        self.register_buffer("correlation", torch.zeros(BINS))

    @torch.no_grad()
    def update(
        self,
        timesteps: Int[Tensor, " B"],
        prediction: Float[Tensor, "B C h w"],
        noise: Float[Tensor, "B C h w"],
    ) -> None:
        """Count one batch; values that are not finite are left out."""
        errors = (prediction - noise).square().flatten(1).mean(dim=1)
        agreement = F.cosine_similarity(_centred(prediction), _centred(noise), dim=1)
        timesteps, errors, agreement = (gathered(each) for each in (timesteps, errors, agreement))
        bins = timesteps // self.width
        means, values = torch.stack([self.error, self.correlation]), torch.stack([errors, agreement])
        known, added = values.isfinite(), (1 - MEMORY) * values
        for index in range(len(bins)):  # one after another: several views may share a range
            place = slice(index, index + 1)  # a single number as an index would be waited for
            before = means[:, bins[place]]
            means[:, bins[place]] = torch.where(known[:, place], MEMORY * before + added[:, place], before)
        self.error.copy_(means[0])
        self.correlation.copy_(means[1])

    def error_at(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """The running error at each view's t."""
        return self.error[timesteps // self.width]

    def stats(self, name: str) -> dict[str, Float[Tensor, ""]]:
        """`<name>_error/t100-199` and the like, for the log."""
        named = {}
        for index, (error, agreement) in enumerate(
            zip(self.error.clone(), self.correlation.clone(), strict=True)
        ):
            label = f"t{index * self.width:03d}-{(index + 1) * self.width - 1:03d}"
            named[f"{name}_error/{label}"] = error
            named[f"{name}_correlation/{label}"] = agreement
        return named


def _centred(tensor: Tensor) -> Tensor:
    flat = tensor.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)
