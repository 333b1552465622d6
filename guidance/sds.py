"""Score Distillation Sampling: the baseline."""

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.distillation import with_gradient
from guidance.interface import Guidance, GuidanceOutput
from guidance.predictions import predict
from guidance.prompts import ViewText
from guidance.trace import Trace


class SDSGuidance(Guidance):
    """SDS (Eq. 9): the residual is the guided prediction minus the very noise that made x_t."""

    def forward(
        self, images: Float[Tensor, "B 3 H W"], text: ViewText, step: int, rng: torch.Generator
    ) -> GuidanceOutput:
        latents = self.score_model.encode_images(images, rng)                        # x_0
        timesteps = self.schedule.sample_timesteps(len(latents), step, rng)          # t
        noise = self.sample_noise(latents, rng)                                      # ε
        noisy_latents = self.schedule.add_noise(latents.detach(), noise, timesteps)  # x_t, Eq. 6
        predicted = predict(self.score_model, noisy_latents, timesteps, text)        # ε_φ
        guided_noise = predicted.guided(self.params.guidance_scale, self.params.cfg_form)  # ε_φ^CFG, Eq. 4

        residual = guided_noise - noise                                              # Eq. 9
        gradient = self.params.lambda_guidance * self.schedule.weight(timesteps) * residual
        loss_sds = with_gradient(latents, gradient)

        return GuidanceOutput(
            losses={"sds": loss_sds},
            stats={
                "timestep": timesteps.float().mean(),
                "residual_rms": residual.square().mean().sqrt(),
                "finite": loss_sds.detach().isfinite(),
            },
            trace=Trace.of(latents, noisy_latents, timesteps, predicted, guided_noise, residual),
        )
