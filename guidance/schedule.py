"""The forward process of the diffusion model: ᾱ_t and every coefficient that is a function of t alone."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arguments import GuidanceParams

WEIGHTINGS = {
    "ism": lambda alphas_cumprod: ((1 - alphas_cumprod) / alphas_cumprod).sqrt(),
    "sds": lambda alphas_cumprod: 1 - alphas_cumprod,
    "uniform": torch.ones_like,
    "fantasia3d": lambda alphas_cumprod: alphas_cumprod.sqrt() * (1 - alphas_cumprod),
}
STEPS_OFFSET = 1  # Stable Diffusion's DDIM: scheduler index k means timestep k + 1


class NoiseSchedule:
    """ᾱ_t, x_t, ω(t), λ_t, and the range that t is drawn from.

    Tables are computed in float64 and kept in float32, one value per timestep in [0, T). Coefficients come back
    as `B 1 1 1`, ready to scale latents.

    Args:
        alphas_cumprod: ᾱ_t of the score model; its device is the schedule's device.
        params: `weighting`, `t_range`, `max_t_range`, `num_train_timesteps` and `timestep_per_view` are read.
        warmup_steps: iterations over which the upper end of the range of t falls (LucidDreamer's `warmup_iter`).
    """

    def __init__(
        self, alphas_cumprod: Float[Tensor, " T"], params: GuidanceParams, warmup_steps: int = 1500
    ) -> None:
        exact = alphas_cumprod.double()
        self.alphas_cumprod = exact.float()
        self._signal = exact.sqrt().float()
        self._sigma = (1 - exact).sqrt().float()
        self._variance = (1 - exact).float()
        self._weight = WEIGHTINGS[params.weighting](exact).float()
        self._params = params
        self._warmup_steps = warmup_steps

    def add_noise(
        self, latents: Float[Tensor, "B C h w"], noise: Float[Tensor, "B C h w"], timesteps: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C h w"]:
        """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε (Eq. 6)."""
        return _at(self._signal, timesteps) * latents + _at(self._sigma, timesteps) * noise

    def weight(self, timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
        """ω(t), which the paper leaves open: the choice that `weighting` names."""
        return _at(self._weight, timesteps)

    def dca_weight(self, timesteps: Int[Tensor, " B"], cutoff: int = 300) -> Float[Tensor, "B 1 1 1"]:
        """λ_t = 1 for t > `cutoff`, 1 - ᾱ_t for t <= `cutoff` (Eq. 18); a cut-off of 0 is λ_t = 1 for every t."""
        annealed = (timesteps <= cutoff).view(-1, 1, 1, 1) & (cutoff > 0)
        return torch.where(annealed, _at(self._variance, timesteps), 1.0)

    def index_range(self, step: int) -> tuple[int, int]:
        """LucidDreamer's annealed range: scheduler indices k in [low, high) that iteration `step` draws from."""
        count = self._index_count
        low_fraction, high_fraction = self._params.t_range
        warm_up = 1 - min(step / self._warmup_steps, 1.0) if self._warmup_steps > 0 else 0.0
        low = int(count * low_fraction)
        high = int(count * high_fraction) + int(
            int(count * (self._params.max_t_range - high_fraction)) * warm_up
        )
        return low, max(high, low + 1)

    def sample_timesteps(self, count: int, step: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """t of `count` views: one draw that all views share, or one a view with `timestep_per_view`.

        The batch's shared t is what lets an operator that is not told t follow its amplitude.
        """
        low, high = self.index_range(step)
        draws = count if self._params.timestep_per_view else 1
        indices = torch.randint(low, high, (draws,), generator=rng).expand(count)
        total = len(self.alphas_cumprod)
        timesteps = (indices * (total // self._index_count) + STEPS_OFFSET).clamp(max=total - 1)
        return timesteps.to(self.alphas_cumprod.device, non_blocking=True)

    @property
    def _index_count(self) -> int:
        return self._params.num_train_timesteps or len(self.alphas_cumprod)


def _at(table: Float[Tensor, " T"], timesteps: Int[Tensor, " B"]) -> Float[Tensor, "B 1 1 1"]:
    return table[timesteps].view(-1, 1, 1, 1)
