"""Variational Distribution Mapping with Distribution Coefficient Annealing: the paper's loss."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import GuidanceParams, OptimizationParams
from guidance.degradation import build_degradation
from guidance.distillation import correlation, with_gradient
from guidance.interface import Guidance, GuidanceOutput
from guidance.predictions import predict
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewText
from guidance.trace import Trace


class VDMGuidance(Guidance):
    """VDM + DCA: Algorithm 1, lines 5 to 12.

    Both losses use the same t and ε, and the output of M_ψ from before its update (Algorithm 1 samples once and
    updates last). The injected gradient is Eq. 19 with classifier-free guidance in the place of its first term, times
    `lambda_guidance`; λ_t scales M_ψ only.
    """

    def __init__(
        self,
        params: GuidanceParams,
        optimization: OptimizationParams,
        score_model: DiffusionPrior,
        rng: torch.Generator,
    ) -> None:
        super().__init__(params, optimization, score_model)
        shape = (score_model.latent_channels, *score_model.latent_size)
        self.degradation = build_degradation(params, shape, rng).to(score_model.alphas_cumprod.device)
        self.optimizer = torch.optim.Adam(self.degradation.parameters(), lr=params.operator_lr, fused=True)
        self.dca_cutoff = params.dca_cutoff if params.dca else 0

    def forward(
        self, images: Float[Tensor, "B 3 H W"], text: ViewText, step: int, rng: torch.Generator
    ) -> GuidanceOutput:
        latents = self.score_model.encode_images(images, rng)                        # x_0, the gradient flows to θ
        timesteps = self.schedule.sample_timesteps(len(latents), step, rng)          # t
        noise = self.sample_noise(latents, rng)                                      # ε
        noisy_latents = self.schedule.add_noise(latents.detach(), noise, timesteps)  # x_t, Eq. 6
        predicted = predict(self.score_model, noisy_latents, timesteps, text)        # ε_φ, without Jacobian (Fig. 3)
        guided_noise = predicted.guided(self.params.guidance_scale, self.params.cfg_form)  # ε_φ^CFG, Eq. 4

        operand = guided_noise if self.params.operator_input == "cfg" else predicted.cond
        mapped_noise = self.degradation(operand, timesteps)                          # M_ψ(ε_φ), Eq. 13
        loss_degradation = F.mse_loss(mapped_noise, noise)                           # L_op, Eq. 17: reaches ψ only

        dca = self.schedule.dca_weight(timesteps, self.dca_cutoff)                   # λ_t, Eq. 18
        residual = guided_noise - dca * mapped_noise.detach()                        # Eq. 19
        gradient = self.params.lambda_guidance * self.schedule.weight(timesteps) * residual
        loss_vdm = with_gradient(latents, gradient)                                  # L_VDM: reaches θ only

        return GuidanceOutput(
            losses={"vdm": loss_vdm, "degradation": loss_degradation},
            stats={
                "timestep": timesteps.float().mean(),
                "dca_weight": dca.mean(),
                "residual_rms": residual.square().mean().sqrt(),
                "operator_correlation": correlation(mapped_noise.detach(), noise),
                "finite": (loss_vdm + loss_degradation).detach().isfinite(),
            },
            trace=Trace.of(latents, noisy_latents, timesteps, predicted, guided_noise, residual),
        )
