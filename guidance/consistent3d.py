"""Consistency Distillation Sampling (Consistent3D, Wu et al. 2024)."""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arguments import Consistent3DParams
from guidance.interface import Draw, Guidance, Residual
from guidance.noise import standard_normal_like
from utils.distributed import drawn


class Consistent3DGuidance(Guidance, name="consistent3d"):
    """CDS: the guided prediction at t_1 minus that at t_2 < t_1, one Euler step further down the probability flow.

    t_2 falls with the square root of the run's progress from the upper to the lower end of `consistent3d_t_range`; t_1
    is above it by a draw from `consistent3d_interval` (sail-sg/Consistent3D), at most `max_t_range`. The noise of x_t1
    is one tensor for all views and iterations, drawn once from `noise_seed` and kept with the checkpoint: one a step
    would bring SDS's variance back. `timestep_schedule` is not read. The published guidance falls from 100 to 50:
    `guidance_scale_final`.
    """

    consistent3d: Consistent3DParams
    fixed_noise: Tensor

    def build(self, rng: torch.Generator) -> None:  # noqa: ARG002 - the noise has a seed of its own
        shape = torch.empty(1, self.score_model.latent_channels, *self.score_model.latent_size)
        noise = standard_normal_like(shape, torch.Generator().manual_seed(self.params.noise_seed))
        self.register_buffer("fixed_noise", noise.to(self.device))

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)                                        # at (x_t1, t_1)
        guided_noise = self.guided(predicted, draw.step)
        lower = self._lower(draw.step).expand_as(draw.host_timesteps)
        target = self.on_device(lower)
        moved = self.schedule.ddim_step(draw.noisy_latents, guided_noise, draw.timesteps, target)   # Euler, x_t2
        below = self.predict(dataclasses.replace(draw, host_timesteps=lower, timesteps=target, noisy_latents=moved))
        return Residual(guided_noise - self.guided(below, draw.step), predicted, guided_noise)

    def sample_timesteps(self, count: int, step: int, rng: torch.Generator) -> Int[Tensor, " B"]:
        """t_1, one for all views or one for each with `timestep_per_view`."""
        low, high = (int(end) for end in self.consistent3d.consistent3d_interval)
        high = max(high, low + 1)
        if self.params.timestep_per_view:
            apart = drawn(lambda views: torch.randint(low, high, (views,), generator=rng), count)
        else:
            apart = torch.randint(low, high, (1,), generator=rng).expand(count)
        lower = self.schedule.indices_of(self._lower(step))
        top = max(self.schedule.index_at(self.params.max_t_range), int(lower))
        return self.schedule.timesteps_of((lower + apart).clamp(max=top))

    def sample_noise(
        self,
        latents: Float[Tensor, "B C h w"],
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> Float[Tensor, "B C h w"]:
        return self.fixed_noise.expand_as(latents)

    def _lower(self, step: int) -> Int[Tensor, " 1"]:
        """t_2 at an iteration."""
        last, first = (self.schedule.index_at(end) for end in self.consistent3d.consistent3d_t_range)
        index = first + (last - first) * self.schedule.progress(step) ** 0.5
        return self.schedule.timesteps_of(torch.tensor([round(index)]))
