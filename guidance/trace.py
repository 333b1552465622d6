"""What an iteration saw, kept for process pictures."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from guidance.predictions import Predictions
from guidance.prior import DiffusionPrior


@dataclass(frozen=True)
class Trace:
    """Detached tensors of one guidance call, `B C h w` but for `timesteps` (B,)."""

    latents: Float[Tensor, "B C h w"]
    noisy_latents: Float[Tensor, "B C h w"]
    timesteps: Int[Tensor, " B"]
    noise_cond: Float[Tensor, "B C h w"]
    noise_base: Float[Tensor, "B C h w"]
    guided_noise: Float[Tensor, "B C h w"]
    residual: Float[Tensor, "B C h w"]

    @classmethod
    def of(
        cls,
        latents: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        predicted: Predictions,
        guided_noise: Tensor,
        residual: Tensor,
    ) -> "Trace":
        """The trace of a step, cut off from the graph."""
        return cls(
            latents.detach(),
            noisy_latents,
            timesteps,
            predicted.cond,
            predicted.base,
            guided_noise,
            residual.detach(),
        )


def predicted_images(trace: Trace, score_model: DiffusionPrior) -> tuple[Float[Tensor, "B 3 H W"], ...]:
    """The pictures that the prior believes in at x_t: x̂_0 of the base and of the guided prediction.

    Values in [0, 1], at the prior's resolution.
    """
    alphas_cumprod = score_model.alphas_cumprod[trace.timesteps].view(-1, 1, 1, 1)
    signal, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
    return tuple(
        score_model.decode_latents((trace.noisy_latents - sigma * noise) / signal)
        for noise in (trace.noise_base, trace.guided_noise)
    )
