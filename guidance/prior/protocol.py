"""What the losses need of a frozen latent diffusion model."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class DiffusionPrior(Protocol):
    """`ScoreModel` is one; the tests have exact ones.

    Attributes:
        alphas_cumprod: ᾱ_t, on the device of the latents.
        latent_channels, latent_size: C and (h, w) of a latent.
        text_shape: L and D of an encoded text.
    """

    alphas_cumprod: Float[Tensor, " T"]
    latent_channels: int
    latent_size: tuple[int, int]
    text_shape: tuple[int, int]

    def encode_images(
        self, images: Float[Tensor, "B 3 H W"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]: ...

    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]: ...

    def predict_noise(
        self,
        noisy_latents: Float[Tensor, "M C h w"],
        timesteps: Int[Tensor, " M"],
        text: Float[Tensor, "M L D"],
    ) -> Float[Tensor, "M C h w"]:
        """ε_φ(x_t, t, y), without gradient."""
        ...

    def predict_noise_with_gradient(
        self,
        noisy_latents: Float[Tensor, "M C h w"],
        timesteps: Int[Tensor, " M"],
        text: Float[Tensor, "M L D"],
        camera: Float[Tensor, "M E"] | None = None,
    ) -> Float[Tensor, "M C h w"]:
        """ε_φ(x_t, t, y), with gradient to what estimators train: the text, or a LoRA.

        Args:
            camera: added to the time embedding, where that is.
        """
        ...

    def estimators(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Announce parameters whose gradient passes through the model."""
        ...

    def build_lora(self, *, rank: int, scale: float, with_camera: bool, rng: torch.Generator) -> nn.Module:
        """A trainable ε_lora(x_t, t, y, c) on the frozen model: `guidance.prior.lora.LoRA`."""
        ...


class UNetPrior(DiffusionPrior, Protocol):
    """A prior whose noise is predicted by a U-Net of diffusers' layout, into which adapters can be put."""

    unet: nn.Module
