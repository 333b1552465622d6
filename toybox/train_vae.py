"""The autoencoder's stage: squared error of random crops, with latents held near unit variance."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor

from toybox.train_loop import Budget, Loop
from toybox.train_views import Source

BATCH, CROP, RATE = 16, 64, 1.5e-3
_LATENT_NOISE = 0.05
_SCALE_WEIGHT = 1e-3


def train(vae: AutoencoderTiny, source: Source, budget: Budget, checkpoint: Path) -> Loop:
    """Train in place; the averaged weights and the scaling factor to unit variance are in `vae` afterwards."""
    vae.to(memory_format=torch.channels_last)
    loop = Loop("vae", vae, RATE, budget, checkpoint)
    generator = loop.generator
    loop.run(lambda: _loss(vae, _crops(source, generator), generator))
    loop.average.copy_to(vae)
    scale = 1.0 / encode(vae, source.draw(256, generator).images, scaling=1.0).std().item()
    vae.register_to_config(scaling_factor=scale)
    vae.scaling_factor = scale
    return loop


def _loss(vae: AutoencoderTiny, images: Float[Tensor, "B 3 H W"], generator: torch.Generator) -> Tensor:
    """Mean squared error in [-1, 1], and a pull of each latent channel towards mean 0 and variance 1.

    The decoder sees slightly noisy latents, since it will be fed samples rather than codes.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    latents = vae.encode(images, return_dict=False)[0]
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    decoded = vae.decode(latents + _LATENT_NOISE * noise, return_dict=False)[0]
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    spread = (mean.square() + variance - variance.clamp(min=1e-6).log() - 1.0).mean()
    return (decoded - images).square().mean() + _SCALE_WEIGHT * spread


def _crops(source: Source, generator: torch.Generator) -> Float[Tensor, "B 3 64 64"]:
    """Random crops in [-1, 1], a quarter with permuted colours and noise: a render half way is no clean picture."""
    images = source.draw(BATCH, generator).images
    options = {"generator": generator, "device": images.device}
    corners = torch.randint(images.shape[-1] - CROP + 1, (2, BATCH, 1), **options)
    rows, columns = corners + torch.arange(CROP, device=images.device)
    number = torch.arange(BATCH, device=images.device)[:, None, None]
    crops = images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    odd = BATCH // 4
    order = torch.randperm(3, **options)
    level = 0.1 * torch.rand(odd, 1, 1, 1, **options)
    rough = crops[:odd, order] + level * torch.randn(odd, 3, CROP, CROP, **options)
    return 2.0 * torch.cat((rough.clamp(0.0, 1.0), crops[odd:])) - 1.0


@torch.inference_mode()
def encode(
    vae: AutoencoderTiny, images: Float[Tensor, "B 3 H W"], scaling: float | None = None
) -> Float[Tensor, "B 4 h w"]:
    """Scaled latents, as the U-Net sees them, of images in [0, 1]."""
    scale = vae.config.scaling_factor if scaling is None else scaling
    parts = [vae.encode(2.0 * part - 1.0, return_dict=False)[0] for part in images.split(64)]
    return scale * torch.cat(parts)


@torch.inference_mode()
def decode(vae: AutoencoderTiny, latents: Float[Tensor, "B 4 h w"]) -> Float[Tensor, "B 3 H W"]:
    """Images in [0, 1] of scaled latents."""
    scaled = latents / vae.config.scaling_factor
    parts = [vae.decode(part, return_dict=False)[0] for part in scaled.split(64)]
    return (0.5 * torch.cat(parts) + 0.5).clamp(0.0, 1.0)
