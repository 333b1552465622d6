"""The U-Net's stage: noise prediction on a pool of latents, from text states computed once."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from toybox import world
from toybox.models import build_scheduler, tokenize
from toybox.speed import fastest, half
from toybox.train_loop import Budget, Loop, share
from toybox.train_vae import encode
from toybox.train_views import Source, pair_captions

_EMPTY_SHARE, _VIEW_SHARE = 0.1, 0.85
_MOST_WEIGHT = 20.0
_ENCODED = 256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How the U-Net is trained; `scaled` for a machine that does less."""

    batch: int
    rate: float
    decay: float
    """Of the running average of the weights."""
    latents: int
    """How many there are at a time."""
    renewed: int
    """How many of them are new at every step."""
    renders_every: int
    """Steps between two renewals of the renders."""
    half: bool
    compiled: bool
    publish_seconds: float = 600.0


class Material:
    """Latents of random pictures and of mirror images, renewed little by little, and the text states of every caption.

    Of several processes that train together, each holds and draws its own.
    """

    def __init__(
        self,
        source: Source,
        vae: AutoencoderTiny,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        count: int,
        renewed: int,
    ) -> None:
        self._source, self._vae, self._renewed, self._next = (
            source,
            vae.to(memory_format=torch.channels_last),
            renewed,
            0,
        )
        device, (rank, processes) = source.device, share()
        self._generator = torch.Generator(device).manual_seed(3 + 1_000_003 * rank)
        count //= processes
        size = source.draw(1, self._generator).images.shape[-1] // 4
        self.latents = torch.empty(count, 4, size, size, dtype=torch.float16, device=device)
        self.pair = torch.empty(count, dtype=torch.int64, device=device)
        self.view = torch.empty_like(self.pair)
        for start in range(0, count, _ENCODED):
            self._encode(slice(start, min(start + _ENCODED, count)))
        log.info("unet: encoded %d latents, deviation %.3f", count, self.latents.float().std().item())
        variants = [caption_states(encoder, tokenizer, pair_captions(view)) for view in (None, *world.VIEWS)]
        self.states = torch.stack(variants, 1)
        self.empty = caption_states(encoder, tokenizer, [""])[0]

    def renew(self) -> None:
        """Replace the oldest latents, as many as are renewed at a step."""
        if self._renewed:
            stop = min(self._next + self._renewed, len(self.latents))
            self._encode(slice(self._next, stop))
            self._next = stop % len(self.latents)

    def _encode(self, place: slice) -> None:
        batch = self._source.draw(place.stop - place.start, self._generator)
        flipped = torch.rand(len(batch.pair), generator=self._generator, device=batch.pair.device) < 0.5
        images = torch.where(flipped[:, None, None, None], batch.images.flip(-1), batch.images)
        self.latents[place] = encode(self._vae, images).half()
        self.pair[place], self.view[place] = batch.pair, batch.view

    def sample(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B L D"]]:
        """Random latents with the states of their captions: with the view word, without it, or none at all."""
        options = {"generator": generator, "device": self.latents.device}
        chosen = torch.randint(len(self.latents), (count,), **options)
        draw = torch.rand(2, count, **options)
        variant = torch.where(draw[0] < _VIEW_SHARE, 1 + self.view[chosen], 0)
        states = self.states[self.pair[chosen], variant]
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
    source: Source,
    material: Material,
    settings: Settings,
    budget: Budget,
    checkpoint: Path,
    publish: Callable[[Loop], None] | None = None,
) -> Loop:
    """Train in place; the averaged weights are in `unet` afterwards. `publish` is called with the loop now and then."""
    unet.to(memory_format=torch.channels_last)
    loop = Loop("unet", unet, settings.rate, budget, checkpoint, settings.decay)
    generator = loop.generator
    count = settings.batch // loop.processes
    schedule = build_scheduler().alphas_cumprod.to(unet.device)

    def loss_of(predict: Callable) -> Tensor:
        latents, states = material.sample(count, generator)
        steps = torch.randint(len(schedule), (count,), generator=generator, device=unet.device)
        noise = torch.randn(latents.shape, generator=generator, device=unet.device)
        with half(unet.device, settings.half):
            return noise_loss(predict, latents, states, steps, noise, schedule)

    def trial(predict: Callable) -> None:
        loss_of(predict).backward()
        unet.zero_grad()

    unet.train()
    predict = fastest(unet, trial, settings.compiled and loop.progress < 1.0, "unet")

    def loss() -> Tensor:
        material.renew()
        if loop.step % settings.renders_every == 0:
            source.renew()
        return loss_of(predict)

    loop.run(loss, None if publish is None else lambda: publish(loop), settings.publish_seconds)
    loop.average.copy_to(unet)
    return loop


def noise_loss(
    unet: Callable,
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
    return (weight * (predicted.float() - noise).square().mean(dim=(1, 2, 3))).mean()
