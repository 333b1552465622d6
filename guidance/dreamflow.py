"""DreamFlow's approximate probability flow (Lee, Sohn & Shin 2024)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from arguments import DreamFlowParams
from guidance.interface import Draw
from guidance.vsd import VSDGuidance


class DreamFlowGuidance(VSDGuidance, name="dreamflow"):
    """DreamFlow: VSD's bracket as steps of a probability flow, x ← x + (σ̂_{i+1} - σ̂_i) [...].

    t is not drawn: it falls over the run in levels of `dreamflow_inner_steps` iterations, each with its own cameras
    (amortised sampling), and ω is the length of the step from a level to the next, σ̂_i - σ̂_{i+1}, divided by its mean
    over the run so that learning rates carry over. `weighting` and `timestep_schedule` are not read.

    We found no released code. The form is from the authors' abstract and the public reviews; the range of t (from 1.0
    to 0.2 in the first stage) and the number of inner steps are inferred. The stages with a mesh and SDXL are not here.
    """

    dreamflow: DreamFlowParams

    def sample_timesteps(
        self,
        count: int,
        step: int,
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> Int[Tensor, " B"]:
        return self._levels()[self._level(step)].expand(count)

    def weight(self, draw: Draw) -> Float[Tensor, "B 1 1 1"]:
        noise_to_signal = self.schedule.noise_to_signal(self._levels())
        steps = noise_to_signal[:-1] - noise_to_signal[1:]                    # σ̂_i - σ̂_{i+1}
        level = self._level(draw.step)
        return (steps[level : level + 1] / steps.mean()).expand(len(draw.latents), -1, -1, -1)

    def _levels(self) -> Int[Tensor, " N"]:
        """The timesteps of all levels, falling, and the one where the last step ends."""
        low, high = self.dreamflow.dreamflow_t_range
        count = -(-self.schedule.total_steps // self.dreamflow.dreamflow_inner_steps)
        shares = torch.linspace(high, low, count + 1, dtype=torch.float64)
        return self.schedule.timesteps_of((shares * self.schedule.index_at(1.0)).round().long())

    def _level(self, step: int) -> int:
        return (min(max(step, 1), self.schedule.total_steps) - 1) // self.dreamflow.dreamflow_inner_steps
