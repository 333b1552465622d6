"""The one interface of all score distillation losses: images and text in, losses out."""

import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arguments import GuidanceParams
from arguments.config import group_classes
from guidance.distillation import clipped, normalized, with_gradient
from guidance.noise import sample_noise
from guidance.predictions import Predictions, predict
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewText
from guidance.schedule import NoiseSchedule


@dataclass(frozen=True)
class Draw:
    """x_t and what it was made of: x_0 without gradient, t, ε.

    `host_timesteps` are t once more, on the host: what is decided by t does not wait for the device.
    `rng` gives whatever else a method draws. It is the step's own, so that all methods see the same t and ε.
    """

    latents: Float[Tensor, "B C h w"]
    host_timesteps: Int[Tensor, " B"]
    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    noisy_latents: Float[Tensor, "B C h w"]
    text: ViewText
    step: int
    rng: torch.Generator


@dataclass(frozen=True)
class Residual:
    """What a method is: its bracket in g = ω(t) [...].

    Attributes:
        value: the bracket; its gradient is never taken.
        predicted, guided_noise: what the prior said of x_t, for the pictures of the process; without gradient.
        losses: of the method's own estimator, with gradient to it.
        stats: further numbers to log.
    """

    value: Float[Tensor, "B C h w"]
    predicted: Predictions
    guided_noise: Float[Tensor, "B C h w"]
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)

    def detached(self) -> "Residual":
        """The same without graph, and so without the losses."""
        return replace(self, value=self.value.detach(), losses={})


@dataclass(frozen=True)
class GuidanceOutput:
    """Losses to sum and differentiate, detached numbers to log, and what they were made of.

    Whether the step is taken is not decided here, but by who steps the optimisers, on all losses and gradients.

    Attributes:
        residual: without graph, its `losses` empty: they are among these `losses`.
    """

    losses: dict[str, Float[Tensor, ""]]
    stats: dict[str, Tensor]
    draw: Draw
    residual: Residual


class Guidance(nn.Module):
    """Base of the losses. Its `state_dict` holds what the loss trains, never the frozen score model.

    A method is a subclass in a file of its name, `class VSDGuidance(Guidance, name="vsd")` in `guidance/vsd.py`, with
    its `residual`; where it differs there, also its `draw`, `sample_timesteps` or `weight`. The groups of settings that
    are its own it declares, `lora_params: LoRAParams`, and is handed. What it trains it makes in `build`: parameters,
    whose loss is in its `Residual`, and their `optimizer`. What it must do before its residual it does in `prepare`.

    Args:
        params: what all losses share.
        schedule: of the score model, over the length of this run.
        rng: draws the initial weights of what the loss trains.
        own: the groups that the method declares, by attribute; see `settings`.

    Attributes:
        name: the word for `GuidanceParams.guidance`.
        optimizer: of the loss's own parameters, None where it has none. Who calls the guidance steps it after the
            backward pass; `residual` never does.
    """

    name: str
    methods: dict[str, type["Guidance"]] = {}  # noqa: RUF012 - the one registry, filled below
    optimizer: torch.optim.Optimizer | None = None

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        Guidance.methods[name] = cls

    def __init__(
        self,
        params: GuidanceParams,
        schedule: NoiseSchedule,
        score_model: DiffusionPrior,
        rng: torch.Generator,
        **own: Any,
    ) -> None:
        super().__init__()
        self.params, self.schedule, self.score_model = params, schedule, score_model
        for attribute, group in own.items():
            setattr(self, attribute, group)
        self.build(rng)

    @classmethod
    def settings(cls) -> dict[str, type]:
        """The groups of settings that the method and its bases declare, by attribute."""
        declared = {
            name: kind
            for each in reversed(cls.__mro__)
            if issubclass(each, Guidance)
            for name, kind in inspect.get_annotations(each).items()
        }
        return {name: kind for name, kind in declared.items() if kind in group_classes().values()}

    def build(self, rng: torch.Generator) -> None:
        """Make what the method trains, on the score model's device."""

    def batches(self, views: int) -> set[int]:
        """How many latents a step may give the frozen U-Net at once, to be compiled and recorded before the first one.

        Here prompt and base of every view, and of any number of views one or two of Perp-Neg's.
        """
        return set(range(2 * views, self.params.branches * views + 1))

    def record(self, views: int) -> None:
        """Let a card launch what the method trains as one CUDA graph, if it is worth that and can be."""

    @property
    def device(self) -> torch.device:
        """Where the score model is."""
        return self.score_model.alphas_cumprod.device

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
        return self.distill(self.score_model.encode_images(images, rng), text, step, rng)

    def distill(
        self, latents: Float[Tensor, "B C h w"], text: ViewText, step: int, rng: torch.Generator
    ) -> GuidanceOutput:
        """As `forward`, from the latents, which carry the gradient: Algorithm 1 from line 5 on."""
        draw = self.prepare(self.draw(latents.detach(), text, step, rng))
        residual = self.residual(draw)
        gradient = self.weight(draw) * residual.value.detach()  # ω(t) [...], Eq. 8
        if self.params.gradient_normalize:
            gradient = normalized(gradient)
        gradient = self.params.lambda_guidance * clipped(gradient, self._clip(step))
        loss = with_gradient(latents, gradient)  # reaches θ only
        stats = {
            "timestep": draw.timesteps.float().mean(),
            "residual_rms": residual.value.detach().square().mean().sqrt(),
            **residual.stats,
        }
        return GuidanceOutput({self.name: loss, **residual.losses}, stats, draw, residual.detached())

    def prepare(self, draw: Draw) -> Draw:
        """What comes before the residual: training something first, or setting a rate; may add to the draw."""
        return draw

    def residual(self, draw: Draw) -> Residual:
        """The method: its bracket, and the loss of its estimator. Trains nothing."""
        raise NotImplementedError

    def draw(
        self, latents: Float[Tensor, "B C h w"], text: ViewText, step: int, rng: torch.Generator
    ) -> Draw:
        """t, ε and x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Eq. 6)."""
        drawn = self.sample_timesteps(len(latents), step, rng)
        noise = self.sample_noise(latents, rng)
        return self._noised(latents, drawn, noise, text, step, self.rng_of(step))

    def rng_of(self, step: int) -> torch.Generator:
        """A generator of the step's own, by `noise_seed`."""
        return torch.Generator().manual_seed((self.params.noise_seed << 32 | step) % 2**63)

    def redraw(self, draw: Draw) -> Draw:
        """The same x_0 with another ε and a t of each view's own, from the whole schedule: what estimators learn on."""
        drawn = self.schedule.sample_all_timesteps(len(draw.latents), draw.rng)
        noise = sample_noise(draw.latents, draw.rng, offset=self.params.noise_offset)
        return self._noised(draw.latents, drawn, noise, draw.text, draw.step, draw.rng)

    def _noised(
        self,
        latents: Float[Tensor, "B C h w"],
        drawn: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"],
        text: ViewText,
        step: int,
        rng: torch.Generator,
    ) -> Draw:
        timesteps = self.on_device(drawn)
        noisy_latents = self.schedule.add_noise(latents, noise, timesteps)
        return Draw(latents, drawn, timesteps, noise, noisy_latents, text, step, rng)

    def on_device(self, timesteps: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Timesteps of the host on the score model's device, without waiting for it."""
        return timesteps.to(self.device, non_blocking=True)

    def sample_timesteps(self, count: int, step: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """t, by `timestep_schedule`; on the host."""
        return self.schedule.sample_timesteps(count, step, rng)

    def sample_noise(
        self, latents: Float[Tensor, "B C h w"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]:
        """ε; with `fix_noise` the same tensor at every iteration, drawn from `noise_seed`."""
        if self.params.fix_noise:
            rng = torch.Generator().manual_seed(self.params.noise_seed)
        return sample_noise(latents, rng, offset=self.params.noise_offset)

    def weight(self, draw: Draw) -> Float[Tensor, "B 1 1 1"]:
        """ω(t), by `weighting`."""
        return self.schedule.weight(draw.timesteps)

    def predict(self, draw: Draw, **branches: Tensor | None) -> Predictions:
        """ε_φ(x_t, t, ·) for the view's text and its base, and whatever else `predict` is asked for."""
        return predict(self.score_model, draw.noisy_latents, draw.timesteps, draw.text, **branches)

    def guided(self, predicted: Predictions, step: int) -> Float[Tensor, "B C h w"]:
        """ε_φ^CFG (Eq. 4) at the iteration's guidance scale."""
        return predicted.guided(self.guidance_scale(step), self.params.cfg_form)

    @torch.no_grad()
    def predicted_images(
        self, output: GuidanceOutput
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"]]:
        """The pictures that the prior believes in at x_t: x̂_0 of the base and of the guided prediction.

        Values in [0, 1], at the prior's resolution.
        """
        draw, said = output.draw, output.residual
        base, guided = (
            self.score_model.decode_latents(self.schedule.denoised(draw.noisy_latents, noise, draw.timesteps))
            for noise in (said.predicted.base, said.guided_noise)
        )
        return base, guided

    def guidance_scale(self, step: int) -> float:
        """`guidance_scale`, going linearly to `guidance_scale_final` over the run where that is set."""
        first, last = self.params.guidance_scale, self.params.guidance_scale_final
        return first if last is None else first + (last - first) * self.schedule.progress(step)

    def text_scale(self, step: int) -> float:
        """s' of Eq. 4, the weight of ε_y - ε_0 beside ε_y: s - 1 in diffusers' form."""
        scale = self.guidance_scale(step)
        return scale if self.params.cfg_form == "paper" else scale - 1

    def _clip(self, step: int) -> float:
        first, last = self.params.gradient_clip
        return first + (last - first) * min(max(step - 1, 0) / self.params.gradient_clip_iter, 1.0)
