"""The one interface of all score distillation losses: images and text in, losses out."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from arguments import GuidanceParams, OptimizationParams
from guidance.distillation import clipped, normalized, with_gradient
from guidance.noise import sample_noise
from guidance.predictions import Predictions, predict
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


@dataclass(frozen=True)
class Draw:
    """x_t and what it was made of: x_0 without gradient, t, ε.

    `rng` gives whatever else a method draws. It is the step's own, so that all methods see the same t and ε.
    """

    latents: Float[Tensor, "B C h w"]
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
        predicted, guided_noise: for the pictures of the process.
        losses: of the method's own estimator, with gradient to it.
        stats: further numbers to log.
    """

    value: Float[Tensor, "B C h w"]
    predicted: Predictions
    guided_noise: Float[Tensor, "B C h w"]
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


class Guidance(nn.Module):
    """Base of the losses. Its `state_dict` holds what the loss trains, never the frozen score model.

    A method is a subclass in a file of its name, `class VSDGuidance(Guidance, name="vsd")` in `guidance/vsd.py`, with
    its `residual`; where it differs there, also its `draw`, `sample_timesteps` or `weight`. What it trains are its
    parameters, their loss is in its `Residual`, and their optimiser is its `optimizer`.

    Args:
        optimization: `warmup_iter` and `iterations` are read: the range of t and what else is annealed go by them.
        rng: draws the initial weights of what the loss trains.

    Attributes:
        name: the word for `GuidanceParams.guidance`.
        optimizer: of the loss's own parameters, None where it has none. The caller steps it.
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
        optimization: OptimizationParams,
        score_model: DiffusionPrior,
        rng: torch.Generator,  # noqa: ARG002 - for the methods that train something
    ) -> None:
        super().__init__()
        self.params = params
        self.iterations = optimization.iterations
        self.score_model = score_model
        self.schedule = NoiseSchedule(
            score_model.alphas_cumprod, params, optimization.warmup_iter, optimization.iterations
        )

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
        draw = self.draw(latents.detach(), text, step, rng)
        residual = self.residual(draw)
        gradient = self.weight(draw) * residual.value.detach()  # ω(t) [...], Eq. 8
        if self.params.gradient_normalize:
            gradient = normalized(gradient)
        gradient = self.params.lambda_guidance * clipped(gradient, self._clip(step))
        loss = with_gradient(latents, gradient)  # reaches θ only
        losses = {self.name: loss, **residual.losses}
        return GuidanceOutput(
            losses=losses,
            stats={
                "timestep": draw.timesteps.float().mean(),
                "residual_rms": residual.value.detach().square().mean().sqrt(),
                "finite": torch.stack([each.detach() for each in losses.values()]).sum().isfinite(),
                **residual.stats,
            },
            trace=Trace.of(
                draw.latents,
                draw.noisy_latents,
                draw.timesteps,
                residual.predicted,
                residual.guided_noise,
                residual.value,
            ),
        )

    def residual(self, draw: Draw) -> Residual:
        """The method: its bracket, and the loss of its estimator."""
        raise NotImplementedError

    def draw(
        self, latents: Float[Tensor, "B C h w"], text: ViewText, step: int, rng: torch.Generator
    ) -> Draw:
        """t, ε and x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Eq. 6)."""
        timesteps = self.sample_timesteps(len(latents), step, rng)
        noise = self.sample_noise(latents, rng)
        noisy_latents = self.schedule.add_noise(latents, noise, timesteps)
        return Draw(latents, timesteps, noise, noisy_latents, text, step, self.rng_of(step))

    def rng_of(self, step: int) -> torch.Generator:
        """A generator of the step's own, by `noise_seed`."""
        return torch.Generator().manual_seed((self.params.noise_seed << 32 | step) % 2**63)

    def fresh(self, draw: Draw) -> Draw:
        """The same x_0 with another ε and a t of each view's own, from the whole schedule: what estimators learn on."""
        timesteps = self.schedule.sample_all_timesteps(len(draw.latents), draw.rng)
        noise = sample_noise(draw.latents, draw.rng, offset=self.params.noise_offset)
        noisy_latents = self.schedule.add_noise(draw.latents, noise, timesteps)
        return Draw(draw.latents, timesteps, noise, noisy_latents, draw.text, draw.step, draw.rng)

    def sample_timesteps(self, count: int, step: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """t, by `timestep_schedule`."""
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
