"""Interval Score Matching (LucidDreamer, Liang et al. 2023): what the paper's host program runs."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.interface import Draw, Guidance, Residual
from guidance.noise import noise_of_views
from guidance.prompts import ViewText


@dataclass(frozen=True)
class Inverted(Draw):
    """x_t by DDIM inversion, and the prediction at the level before it."""

    interval_noise: Float[Tensor, "B C h w"]


class ISMGuidance(Guidance, name="ism"):
    """ISM: the guided prediction at t minus the unconditional one at s = t - δ, on one inversion path x_0 → x_s → x_t.

    The path starts at the lowest level, with ε, and climbs in steps of `xs_delta_t`, at most `xs_inv_steps`, with the
    prediction for `inverse_text`. δ falls from `delta_t_start` to `delta_t` over the warm-up. All keys are
    LucidDreamer's; where s is the lowest level its program spends one evaluation more, on a step of no length.
    """

    def batches(self, views: int) -> set[int]:
        """The inversion asks for one prompt alone."""
        return super().batches(views) | {views}

    def draw(
        self, latents: Float[Tensor, "B C h w"], text: ViewText, step: int, rng: torch.Generator
    ) -> Inverted:
        params, schedule = self.params, self.schedule
        drawn = self.sample_timesteps(len(latents), step, rng)                          # t
        noise = self.sample_noise(latents, rng)                                         # ε
        rng = self.rng_of(step)
        before = (schedule.indices_of(drawn) - self.interval(step)).clamp_min(0)    # s
        level = (before - params.xs_delta_t * params.xs_inv_steps).clamp_min(0)
        path = schedule.add_noise(latents, noise, self._at(level))
        while (level < before).any():
            following = torch.minimum(level + params.xs_delta_t, before)
            path = self._climb(path, level, following, text, rng)
            level = following
        target = self._unconditional(path, level, text)                                 # ε_φ(x_s, s)
        added = noise_of_views(latents, rng) if params.xs_eta > 0 else 0.0
        timesteps = self.on_device(drawn)
        noisy = schedule.ddim_step(path, target, self._at(before), timesteps, added, params.xs_eta)
        return Inverted(latents, drawn, timesteps, noise, noisy, text, step, rng, target)

    def residual(self, draw: Inverted) -> Residual:
        predicted = self.predict(draw)                                                  # ε_φ(x_t, t, ·)
        guided_noise = self.guided(predicted, draw.step)                                # ε_φ^CFG, Eq. 4
        return Residual(guided_noise - draw.interval_noise, predicted, guided_noise)

    def interval(self, step: int) -> int:
        """δ at an iteration, in scheduler indices."""
        params = self.params
        if not params.annealing_intervals:
            return params.delta_t
        above = self.schedule.warm_up(step) * (params.delta_t_start - params.delta_t)
        return params.delta_t + math.ceil(above) if params.perpneg else int(params.delta_t + above)

    def _at(self, level: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return self.on_device(self.schedule.timesteps_of(level))

    def _climb(
        self,
        path: Float[Tensor, "B C h w"],
        level: Int[Tensor, " B"],
        following: Int[Tensor, " B"],
        text: ViewText,
        rng: torch.Generator,
    ) -> Float[Tensor, "B C h w"]:
        """One step of the inversion."""
        noise_pred = self._unconditional(path, level, text)
        added = noise_of_views(path, rng) if self.params.xs_eta > 0 else 0.0
        levels = (self._at(each) for each in (level, following))
        return self.schedule.ddim_step(path, noise_pred, *levels, added, self.params.xs_eta)

    def _unconditional(
        self, path: Float[Tensor, "B C h w"], level: Int[Tensor, " B"], text: ViewText
    ) -> Float[Tensor, "B C h w"]:
        """The prediction that the inversion follows; above a `denoise_guidance_scale` of 1, guided to the base."""
        timesteps, scale = self._at(level), self.params.denoise_guidance_scale
        noise = self.score_model.predict_noise(path, timesteps, text.rows("inverse"))
        if scale > 1:
            base = self.score_model.predict_noise(path, timesteps, text.base)
            noise = noise + scale * (base - noise)
        return noise
