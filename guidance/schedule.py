"""The forward process of the diffusion model: ᾱ_t and every coefficient that is a function of t alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arguments import GuidanceParams
from utils.distributed import drawn

WEIGHTINGS = {
    "ism": lambda alphas_cumprod: ((1 - alphas_cumprod) / alphas_cumprod).sqrt(),
    "sds": lambda alphas_cumprod: 1 - alphas_cumprod,
    "uniform": torch.ones_like,
    "fantasia3d": lambda alphas_cumprod: alphas_cumprod.sqrt() * (1 - alphas_cumprod),
}
STEPS_OFFSET = 1  # Stable Diffusion's DDIM: scheduler index k means timestep k + 1


class NoiseSchedule:
    """ᾱ_t, x_t, ω(t), λ_t, the steps between noise levels, and the range that t is drawn from.

    Timesteps are drawn and reckoned with on the host; the tables take them from there or from their own device.

    Tables are computed in float64 and kept in float32, one value per timestep in [0, T). Coefficients come back
    as `B 1 1 1`, ready to scale latents.

    Args:
        alphas_cumprod: ᾱ_t of the score model; its device is the schedule's device.
        params: `weighting`, `t_range`, `max_t_range`, `timestep_schedule`, `num_train_timesteps` and
            `timestep_per_view` are read.
        warmup_steps: iterations over which the upper end of the range of t falls (LucidDreamer's `warmup_iter`).
        total_steps: iterations of the run, over which the schedules `linear` and `sqrt` fall.
    """

    def __init__(
        self,
        alphas_cumprod: Float[Tensor, " T"],
        params: GuidanceParams,
        warmup_steps: int = 1500,
        total_steps: int = 5000,
    ) -> None:
        exact = alphas_cumprod.double()
        self.alphas_cumprod = exact.float()
        self._signal = exact.sqrt().float()
        self._sigma = (1 - exact).sqrt().float()
        self._variance = (1 - exact).float()
        self._weight = WEIGHTINGS[params.weighting](exact).float()
        self._params = params
        self._warmup_steps, self.total_steps = warmup_steps, total_steps

    def add_noise(
        self, latents: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], timesteps: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Eq. 6)."""
        return _at(self._signal, timesteps) * latents + _at(self._sigma, timesteps) * noise

    def signal(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
        """√ᾱ_t."""
        return _at(self._signal, timesteps)

    def sigma(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
        """σ_t = √(1 - ᾱ_t)."""
        return _at(self._sigma, timesteps)

    def noise_to_signal(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
        """σ̂_t = √((1 - ᾱ_t) / ᾱ_t): the noise level where x_t is divided by its signal (variance exploding)."""
        return self.sigma(timesteps) / self.signal(timesteps)

    def denoised(
        self,
        noisy_latents: Float[Tensor, "B C h w"],
        noise_pred: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
    ) -> Float[Tensor, "B C h w"]:
        """x̂_0 = (x_t - σ_t ε̂) / √ᾱ_t."""
        return (noisy_latents - self.sigma(timesteps) * noise_pred) / self.signal(timesteps)

    def ddim_step(
        self,
        noisy_latents: Float[Tensor, "B C h w"],
        noise_pred: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        target: Int[Tensor, " B"],
        noise: Float[Tensor, "B C h w"] | float = 0.0,
        eta: float = 0.0,
    ) -> Float[Tensor, "B C h w"]:
        """From `timesteps` to `target` (Song et al. 2021, Eq. 12): down is denoising, up is inversion.

        At η = 0 it is an Euler step of length σ̂_target - σ̂_t in the variance-exploding coordinates x_t / √ᾱ_t.

        Args:
            noise: further noise, used where `eta` > 0. In an inversion η's variance is that of the step downwards
                between the same two levels (LucidDreamer's program has another bound, and no file that uses it).
        """
        clean = self.denoised(noisy_latents, noise_pred, timesteps)
        low, high = torch.minimum(timesteps, target), torch.maximum(timesteps, target)
        step = (1 - (self.signal(high) / self.signal(low)).square()).clamp_min(0).sqrt()
        sigma = torch.minimum(eta * self.sigma(low) / self.sigma(high) * step, self.sigma(target))
        kept = (self.sigma(target).square() - sigma.square()).clamp_min(0).sqrt()
        return self.signal(target) * clean + kept * noise_pred + sigma * noise

    def weight(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
        """ω(t), which the paper leaves open: the choice that `weighting` names."""
        return _at(self._weight, timesteps)

    def dca_weight(self, timesteps: Int[Tensor, " B"], cutoff: int = 300) -> Float[Tensor, "B 1 1 1"]:
        """λ_t = 1 for t > `cutoff`, 1 - ᾱ_t for t <= `cutoff` (Eq. 18); a cut-off of 0 is λ_t = 1 for every t."""
        annealed = (timesteps <= cutoff).view(-1, 1, 1, 1) & (cutoff > 0)
        return torch.where(annealed, _at(self._variance, timesteps), 1.0)

    def index_range(self, step: int) -> tuple[int, int]:
        """Scheduler indices k in [low, high) that iteration `step` draws from, by `timestep_schedule`.

        warmup: LucidDreamer's, the upper end falls linearly from `max_t_range` to that of `t_range`.
        two_stage: ProlificDreamer's, the upper end drops at once when the warm-up is over.
        linear, sqrt: one index, which falls from `max_t_range` to the lower end of `t_range` over the whole run
        (DreamGaussian's; HiFA's).
        """
        count = self._index_count
        low_fraction, high_fraction = self._params.t_range
        low = int(count * low_fraction)
        if self._params.timestep_schedule in ("linear", "sqrt"):
            progress = self.progress(step)
            fall = progress**0.5 if self._params.timestep_schedule == "sqrt" else progress
            index = round(count * self._params.max_t_range * (1 - fall) + low * fall)
            return index, index + 1
        warm_up = self.warm_up(step)
        if self._params.timestep_schedule == "two_stage":
            warm_up = float(warm_up > 0)
        high = int(count * high_fraction) + int(
            int(count * (self._params.max_t_range - high_fraction)) * warm_up
        )
        return low, max(high, low + 1)

    def warm_up(self, step: int) -> float:
        """What is left of the warm-up: 1 at its start, 0 when it is over."""
        return 1 - min(step / self._warmup_steps, 1.0) if self._warmup_steps > 0 else 0.0

    def progress(self, step: int) -> float:
        """Share of the run that is over: 0 at the first iteration, towards 1 at the last."""
        return min(max(step - 1, 0) / self.total_steps, 1.0)

    def sample_timesteps(self, count: int, step: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """t of `count` views: one draw that all views share, or one a view with `timestep_per_view`.

        The batch's shared t is what lets an operator that is not told t follow its amplitude.
        """
        low, high = self.index_range(step)
        if not self._params.timestep_per_view:
            return self.timesteps_of(torch.randint(low, high, (1,), generator=rng).expand(count))
        return self.timesteps_of(
            drawn(lambda views: torch.randint(low, high, (views,), generator=rng), count)
        )

    def sample_all_timesteps(self, count: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """One t of the whole schedule for each of `count` views: what estimators of Table 1 are trained on."""
        total = len(self.alphas_cumprod)
        return drawn(lambda views: torch.randint(0, total, (views,), generator=rng), count)

    def timesteps_of(self, indices: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The timesteps that scheduler indices mean, where those are."""
        total = len(self.alphas_cumprod)
        return (indices * (total // self._index_count) + STEPS_OFFSET).clamp(0, total - 1)

    def indices_of(self, timesteps: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        """The scheduler indices that mean these timesteps."""
        return (timesteps - STEPS_OFFSET) // (len(self.alphas_cumprod) // self._index_count)

    def index_at(self, share: float) -> int:
        """The scheduler index at a share of the schedule, as `t_range` gives shares."""
        return int(self._index_count * share)

    @property
    def _index_count(self) -> int:
        return self._params.num_train_timesteps or len(self.alphas_cumprod)


def _at(table: Float[Tensor, " T"], timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    return table[timesteps.to(table.device, non_blocking=True)].view(-1, 1, 1, 1)
