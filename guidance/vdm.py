"""Variational Distribution Mapping with Distribution Coefficient Annealing: the paper's loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import VDMParams
from guidance.bins import TimestepBins
from guidance.degradation import build_degradation
from guidance.distillation import correlation
from guidance.interface import Draw, Guidance, Residual
from guidance.predictions import Predictions
from guidance.warm_start import load_part
from utils.distributed import part_of_mean, sum_gradients
from utils.optimizers import not_finite, step_unless
from utils.replay import Replayed


@dataclass(frozen=True)
class Lookahead(Draw):
    """What M_ψ took its step on: the prediction and its loss before."""

    predicted: Predictions
    loss: Float[Tensor, ""]


class VDMGuidance(Guidance, name="vdm"):
    """VDM + DCA: Algorithm 1, lines 7 to 12.

    Both losses use the same t and ε, and the output of M_ψ from before its update (Algorithm 1 samples once and
    updates last). The injected gradient is Eq. 19 with classifier-free guidance in the place of its first term, times
    `lambda_guidance`; λ_t scales M_ψ only.

    Beyond the paper, each behind its setting: `operator_init` starts M_ψ from another run's, `lookahead` updates M_ψ
    before θ sees its output, and `dca_learned` reads λ_t off how well M_ψ predicts the noise.
    """

    vdm: VDMParams
    _replayed: Replayed | None = None

    def build(self, rng: torch.Generator) -> None:
        shape = (self.score_model.latent_channels, *self.score_model.latent_size)
        self.degradation = build_degradation(self.vdm, shape, rng)
        if self.vdm.operator_init:
            load_part(self.degradation, self.vdm.operator_init, "degradation", "VDMParams.operator_init")
        self.bins = TimestepBins(len(self.score_model.alphas_cumprod))
        self.to(self.device)
        self.optimizer = torch.optim.Adam(self.degradation.parameters(), lr=self.vdm.operator_lr, fused=True)
        self.dca_cutoff = self.vdm.dca_cutoff if self.vdm.dca else 0

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)                                    # ε_φ, without Jacobian (Fig. 3)
        guided_noise = self.guided(predicted, draw.step)                  # ε_φ^CFG, Eq. 4

        mapped_noise = self.mapped(predicted, draw)                       # M_ψ(ε_φ), Eq. 13
        loss_degradation = F.mse_loss(mapped_noise, draw.noise)           # L_op, Eq. 17: reaches ψ only
        losses = {"degradation": loss_degradation}
        if isinstance(draw, Lookahead):                                   # ψ has had its step
            loss_degradation, losses = draw.loss, {}

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

    def prepare(self, draw: Draw) -> Draw:
        """With `lookahead`, ψ's step, unless its loss or gradient is not finite; the prediction is made once."""
        if not self.vdm.lookahead:
            return draw
        predicted = self.predict(draw)
        loss = F.mse_loss(self.mapped(predicted, draw), draw.noise)
        part_of_mean(loss).backward()
        (everywhere,) = sum_gradients(self.degradation.parameters(), loss)
        step_unless(self.optimizer, not_finite(everywhere, self.degradation.parameters()))
        self.optimizer.zero_grad(set_to_none=True)
        return Lookahead(**vars(draw), predicted=predicted, loss=loss.detach())

    def predict(self, draw: Draw, **branches: Tensor | None) -> Predictions:
        return draw.predicted if isinstance(draw, Lookahead) else super().predict(draw, **branches)

    def mapped(self, predicted: Predictions, draw: Draw) -> Float[Tensor, "B C h w"]:
        """M_ψ(ε_φ), with gradient to ψ."""
        guided = self.vdm.operator_input == "cfg"
        operand = self.guided(predicted, draw.step) if guided else predicted.cond
        return (self._replayed or self.degradation)(operand, draw.timesteps)

    def record(self, views: int) -> None:
        rng = torch.Generator(self.device).manual_seed(0)
        shape = (views, self.score_model.latent_channels, *self.score_model.latent_size)

        def sample() -> tuple[Tensor, Tensor]:
            last = len(self.score_model.alphas_cumprod)
            timesteps = torch.randint(last, (views,), generator=rng, device=self.device)
            return torch.randn(shape, generator=rng, device=self.device), timesteps

        self._replayed = Replayed("the degradation operator", self.degradation)
        self._replayed.record(sample)

    def _dca_weight(self, draw: Draw) -> Float[Tensor, "B 1 1 1"]:
        if self.vdm.dca and self.vdm.dca_learned:
            return (1 - self.bins.error_at(draw.timesteps)).clamp(0, 1).view(-1, 1, 1, 1)
        return self.schedule.dca_weight(draw.timesteps, self.dca_cutoff)
