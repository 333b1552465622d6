"""Learned Manifold Corrective (LMC-SDS, Alldieck, Kolotouros & Sminchisescu 2024)."""

import dataclasses
import itertools
import logging

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import LMCParams
from guidance.degradation import ULite
from guidance.interface import Draw, Guidance, Residual
from guidance.noise import noise_of_views, seeded
from guidance.warm_start import load_part
from utils.distributed import drawn, gathered, part_of_mean, sum_gradients
from utils.optimizers import fused_on_card

log = logging.getLogger(__name__)


class LMCGuidance(Guidance, name="lmc"):
    """LMC-SDS: ε_φ^CFG - b, where b is the noise as the model's own blur at t leaves it, learned before the run.

    A shallow network imitates what the model makes of images: b_ψ(x_0, t) ≈ x̂_0(x_t; t, ""), and enters as
    b = (x_t - √ᾱ_t b_ψ(x_0, t)) / σ_t (`lmc_space: image`); or it imitates the prediction itself, b = b_ψ(x_t, t) ≈
    ε_φ(x_t, t, ""), as the paper's Table 1 has it (`noise`).

    Low confidence: the idea is from the abstract, the bracket from Table 1, everything else is inferred: the network
    (U-Lite with group normalisation and time), what it is trained on (`lmc_bank` latents that the model itself
    generates for the prompt, by DDIM with guidance), for how long, and the guidance scale. It is trained at the first
    iteration, or comes from `lmc_init`, and is kept with the checkpoints.
    """

    lmc: LMCParams
    trained: Tensor

    def build(self, rng: torch.Generator) -> None:
        with seeded(rng):
            self.corrective = ULite(self.score_model.latent_channels, norm="group", timed=True)
        if self.lmc.lmc_init:
            load_part(self.corrective, self.lmc.lmc_init, "corrective", "LMCParams.lmc_init")
        self.corrective.to(self.device).requires_grad_(False)
        self.register_buffer("trained", torch.tensor(bool(self.lmc.lmc_init)))  # on the host, where it is asked

    def batches(self, views: int) -> set[int]:
        """What the corrective learns from is the prediction for one prompt."""
        return super().batches(views) | {views}

    def prepare(self, draw: Draw) -> Draw:
        """At the first iteration, train the corrective."""
        if not self.trained:
            self.pretrain(draw)
        return draw

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)
        guided_noise = self.guided(predicted, draw.step)
        return Residual(guided_noise - self.corrected(draw), predicted, guided_noise)

    def corrected(self, draw: Draw) -> Float[Tensor, "B C h w"]:
        """b at (x_t, t)."""
        if self.lmc.lmc_space == "noise":
            return self.imitation(draw)
        signal, sigma = self.schedule.signal(draw.timesteps), self.schedule.sigma(draw.timesteps)
        return (draw.noisy_latents - signal * self.imitation(draw)) / sigma

    def imitation(self, draw: Draw) -> Float[Tensor, "B C h w"]:
        """b_ψ, which starts near its input."""
        operand = draw.noisy_latents if self.lmc.lmc_space == "noise" else draw.latents
        return operand + self.corrective(operand, draw.timesteps)

    def pretrain(self, draw: Draw) -> None:
        """Generate the bank and train b_ψ on it."""
        spent = self.score_model.evaluations.forward
        params, bank = self.lmc, self.generate(draw)
        self.corrective.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            self.corrective.parameters(), lr=params.lmc_lr, **fused_on_card(self.device)
        )
        for step in range(1, params.lmc_steps + 1):
            chosen = drawn(
                lambda views: torch.randint(len(bank), (views,), generator=draw.rng), len(draw.latents)
            )
            chosen = chosen.to(bank.device, non_blocking=True)
            sample = self.redraw(dataclasses.replace(draw, latents=bank[chosen]))
            noise = self.score_model.predict_noise(
                sample.noisy_latents, sample.timesteps, draw.text.rows("empty")
            )
            with torch.enable_grad():
                loss = self.error(sample, noise)
            optimizer.zero_grad()
            part_of_mean(loss).backward()
            sum_gradients(self.corrective.parameters())
            optimizer.step()
            if step % 500 == 0 or step == params.lmc_steps:
                log.info("manifold corrective: step %d of %d, error %.4f", step, params.lmc_steps, float(loss.detach()))
        self.corrective.requires_grad_(False)
        self.trained.fill_(True)
        self.score_model.evaluations.pretraining += self.score_model.evaluations.forward - spent

    def error(self, draw: Draw, noise: Float[Tensor, "B C h w"]) -> Float[Tensor, ""]:
        """How far b_ψ is from the model's image, or from its prediction `noise`.

        Images at large t, where x̂_0 is vague, count by their signal-to-noise ratio: as their error shows in b.
        """
        if self.lmc.lmc_space == "noise":
            return F.mse_loss(self.imitation(draw), noise)
        wanted = self.schedule.denoised(draw.noisy_latents, noise, draw.timesteps)
        weight = self.schedule.noise_to_signal(draw.timesteps).square().reciprocal().clamp(max=1)
        return (weight * (self.imitation(draw) - wanted).square()).mean()

    @torch.no_grad()
    def generate(self, draw: Draw) -> Float[Tensor, "N C h w"]:
        """The bank: samples of the model for the views' prompts, by deterministic DDIM."""
        params, samples = self.lmc, []
        top = self.schedule.index_at(1.0) - 1
        levels = torch.linspace(top, 0, params.lmc_sampling_steps + 1).round().long()
        while sum(map(len, samples)) < params.lmc_bank:
            latents = noise_of_views(draw.latents, draw.rng)
            for level, following in itertools.pairwise(levels):
                drawn, end = (self.schedule.timesteps_of(each.expand(len(latents))) for each in (level, following))
                timesteps, target = self.on_device(drawn), self.on_device(end)
                here = dataclasses.replace(
                    draw, host_timesteps=drawn, timesteps=timesteps, noisy_latents=latents
                )
                guided_noise = self.guided(self.predict(here), draw.step)
                latents = self.schedule.ddim_step(latents, guided_noise, timesteps, target)
            samples.append(gathered(latents))
        return torch.cat(samples)[: params.lmc_bank]
