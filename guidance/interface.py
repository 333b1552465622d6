"""The one interface of all score distillation losses: images and text in, losses out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments import GuidanceParams, OptimizationParams
from guidance.noise import sample_noise
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewText
from guidance.schedule import NoiseSchedule
from guidance.trace import Trace


@dataclass(frozen=True)
class GuidanceOutput:
    """Losses to sum and differentiate, detached numbers to log, and tensors to draw.

    `stats["finite"]` is False where a loss or its gradient is not finite: the caller then skips the step.
    """

    losses: dict[str, Float[Tensor, ""]]
    stats: dict[str, Tensor]
    trace: Trace


class Guidance(nn.Module):
    """Base of the losses. Its `state_dict` holds what the loss trains, never the frozen score model.

    Args:
        optimization: `warmup_iter` is read, the steps over which the range of t is annealed.

    Attributes:
        optimizer: of the loss's own parameters, None where it has none. The caller steps it.
    """

    optimizer: torch.optim.Optimizer | None = None

    def __init__(
        self, params: GuidanceParams, optimization: OptimizationParams, score_model: DiffusionPrior
    ) -> None:
        super().__init__()
        self.params = params
        self.score_model = score_model
        self.schedule = NoiseSchedule(score_model.alphas_cumprod, params, optimization.warmup_iter)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], text: ViewText, step: int, rng: torch.Generator
    ) -> GuidanceOutput:
        """The losses of one iteration.

        Args:
            images: renders in [0, 1]; they carry the gradient.
            text: encoded text of the same views.
            step: the training iteration.
            rng: CPU generator of t and ε.
        """
        raise NotImplementedError

    def sample_noise(
        self, latents: Float[Tensor, "B C h w"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]:
        """ε; with `fix_noise` the same tensor at every iteration, drawn from `noise_seed`."""
        if self.params.fix_noise:
            rng = torch.Generator().manual_seed(self.params.noise_seed)
        return sample_noise(latents, rng, offset=self.params.noise_offset)
