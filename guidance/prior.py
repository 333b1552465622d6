"""What the losses need of a frozen latent diffusion model."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class DiffusionPrior(Protocol):
    """`ScoreModel` is one; the tests have exact ones.

    Attributes:
        alphas_cumprod: ᾱ_t, on the device of the latents.
        latent_channels, latent_size: C and (h, w) of a latent.
    """

    alphas_cumprod: Float[Tensor, " T"]
    latent_channels: int
    latent_size: tuple[int, int]

    def encode_images(
        self, images: Float[Tensor, "B 3 H W"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]: ...

    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]: ...

    def predict_noise(
        self,
        noisy_latents: Float[Tensor, "M C h w"],
        timesteps: Int[Tensor, " M"],
        text: Float[Tensor, "M L D"],
    ) -> Float[Tensor, "M C h w"]: ...
