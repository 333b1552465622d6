"""Variational Distribution Mapping with Distribution Coefficient Annealing: the paper's loss."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import GuidanceParams, OptimizationParams
from guidance.bins import TimestepBins
from guidance.degradation import build_degradation
from guidance.distillation import correlation
from guidance.interface import Draw, Guidance, Residual
from guidance.prior import DiffusionPrior
from guidance.warm_start import load_part


class VDMGuidance(Guidance, name="vdm"):
    """VDM + DCA: Algorithm 1, lines 7 to 12.

    Both losses use the same t and ε, and the output of M_ψ from before its update (Algorithm 1 samples once and
    updates last). The injected gradient is Eq. 19 with classifier-free guidance in the place of its first term, times
    `lambda_guidance`; λ_t scales M_ψ only.

    Beyond the paper, each behind its setting: `operator_init` starts M_ψ from another run's, `lookahead` updates M_ψ
    before θ sees its output, and `dca_learned` reads λ_t off how well M_ψ predicts the noise.
    """

    def __init__(
        self,
        params: GuidanceParams,
        optimization: OptimizationParams,
        score_model: DiffusionPrior,
        rng: torch.Generator,
    ) -> None:
        super().__init__(params, optimization, score_model, rng)
        shape = (score_model.latent_channels, *score_model.latent_size)
        self.degradation = build_degradation(params, shape, rng)
        if params.operator_init:
            load_part(self.degradation, params.operator_init, "degradation", "GuidanceParams.operator_init")
        self.bins = TimestepBins(len(score_model.alphas_cumprod))
        self.to(score_model.alphas_cumprod.device)
        self.optimizer = torch.optim.Adam(self.degradation.parameters(), lr=params.operator_lr, fused=True)
        self.dca_cutoff = params.dca_cutoff if params.dca else 0

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)                                    # ε_φ, without Jacobian (Fig. 3)
        guided_noise = self.guided(predicted, draw.step)                  # ε_φ^CFG, Eq. 4

        operand = guided_noise if self.params.operator_input == "cfg" else predicted.cond
        mapped_noise = self.degradation(operand, draw.timesteps)          # M_ψ(ε_φ), Eq. 13
        loss_degradation = F.mse_loss(mapped_noise, draw.noise)           # L_op, Eq. 17: reaches ψ only
        losses = {"degradation": loss_degradation}
        if self.params.lookahead:
            self._update(loss_degradation)                                # ψ first, then θ
            with torch.no_grad():
                mapped_noise = self.degradation(operand, draw.timesteps)
            losses = {}

        mapped_noise = mapped_noise.detach()
        self.bins.update(draw.timesteps, mapped_noise, draw.noise)
        dca = self._dca_weight(draw)                                      # λ_t, Eq. 18
        residual = guided_noise - dca * mapped_noise                      # Eq. 19
        stats = {
            "dca_weight": dca.mean(),
            "operator_error": loss_degradation.detach(),
            "operator_correlation": correlation(mapped_noise, draw.noise),
            **self.bins.stats("operator"),
        }
        return Residual(residual, predicted, guided_noise, losses, stats)

    def _dca_weight(self, draw: Draw) -> Float[Tensor, "B 1 1 1"]:
        if self.params.dca and self.params.dca_learned:
            return (1 - self.bins.error_at(draw.timesteps)).clamp(0, 1).view(-1, 1, 1, 1)
        return self.schedule.dca_weight(draw.timesteps, self.dca_cutoff)

    def _update(self, loss: Float[Tensor, ""]) -> None:
        if loss.isfinite():
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
