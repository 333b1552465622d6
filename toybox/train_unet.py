"""The U-Net's stage: noise prediction on latents encoded once, from text states computed once."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toybox import world
from toybox.models import build_scheduler, tokenize
from toybox.train_loop import Budget, Loop, share
from toybox.train_vae import encode
from toybox.train_views import Views, pair_captions

BATCH, RATE = 32, 1e-3
_EMPTY_SHARE, _VIEW_SHARE = 0.1, 0.75
_MOST_WEIGHT = 20.0

_log = logging.getLogger(__name__)


class Material:
    """Latents (2 N, 4, h, w) of views and of their mirror images, and the text states of every caption.

    Of several processes that train together, each holds and draws its own share of the views.
    """

    def __init__(
        self, views: Views, vae: AutoencoderTiny, encoder: CLIPTextModel, tokenizer: CLIPTokenizer
    ) -> None:
        self.views = views
        rank, processes = share()
        self.mine = torch.arange(rank, len(views), processes)
        straight, mirrored = [], []
        for chunk in self.mine.split(256):
            images = views.pixels(chunk)
            straight.append(encode(vae, images).half())
            mirrored.append(encode(vae, images.flip(-1)).half())
        self.latents = torch.cat(straight + mirrored)
        _log.info(
            "unet: encoded %d latents, deviation %.3f", len(self.latents), self.latents.float().std().item()
        )
        variants = [caption_states(encoder, tokenizer, pair_captions(view)) for view in (None, *world.VIEWS)]
        self.states = torch.stack(variants, 1)
        self.mine = self.mine.to(self.states.device)
        self.empty = caption_states(encoder, tokenizer, [""])[0]

    def sample(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B L D"]]:
        """Random latents with the states of their captions: with the view word, without it, or none at all."""
        chosen = torch.randint(len(self.latents), (count,), generator=generator).to(self.latents.device)
        draw = torch.rand(2, count, generator=generator).to(self.latents.device)
        source = self.mine[chosen % len(self.mine)]
        variant = torch.where(draw[0] < _VIEW_SHARE, 1 + self.views.view[source], 0)
        states = self.states[self.views.pair[source], variant]
        states = torch.where((draw[1] < _EMPTY_SHARE)[:, None, None], self.empty, states)
        return self.latents[chosen].float(), states


@torch.no_grad()
def caption_states(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]
) -> Float[Tensor, "N L D"]:
    """The text tower's last hidden states, as the pipeline's `encode_prompt` makes them."""
    tokens = tokenize(tokenizer, captions).to(encoder.device)
    return torch.cat([encoder(part).last_hidden_state for part in tokens.split(128)])


def train(
    unet: UNet2DConditionModel,
    material: Material,
    budget: Budget,
    checkpoint: Path,
    publish: Callable[[Loop], None] | None = None,
) -> Loop:
    """Train in place; the averaged weights are in `unet` afterwards.

    `publish` is called every ten minutes with the loop.
    """
    unet.to(memory_format=torch.channels_last)
    loop = Loop("unet", unet, RATE, budget, checkpoint, decay=0.999)
    generator = loop.generator
    count = BATCH // loop.processes
    schedule = build_scheduler().alphas_cumprod.to(unet.device)

    def loss() -> Tensor:
        latents, states = material.sample(count, generator)
        steps = torch.randint(len(schedule), (count,), generator=generator).to(unet.device)
        noise = torch.randn(latents.shape, generator=generator).to(unet.device)
        return noise_loss(unet, latents, states, steps, noise, schedule)

    loop.run(loss, None if publish is None else lambda: publish(loop))
    loop.average.copy_to(unet)
    return loop


def noise_loss(
    unet: UNet2DConditionModel,
    latents: Float[Tensor, "B 4 h w"],
    states: Float[Tensor, "B L D"],
    steps: Tensor,
    noise: Float[Tensor, "B 4 h w"],
    alphas_cumprod: Float[Tensor, " T"],
) -> Tensor:
    """Mean squared error of the predicted noise over alphas_cumprod, which is the error of a v-prediction.

    A plain mean would leave next to nothing for the steps of much noise, where shapes are decided. The weight is at
    most 20, since at the last steps only chance is left to learn.
    """
    alpha = alphas_cumprod[steps]
    noisy = alpha.sqrt()[:, None, None, None] * latents + (1.0 - alpha).sqrt()[:, None, None, None] * noise
    noisy = noisy.contiguous(memory_format=torch.channels_last)
    predicted = unet(noisy, steps, states, return_dict=False)[0]
    weight = (1.0 / alpha).clamp(max=_MOST_WEIGHT)
    return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
