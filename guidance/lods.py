"""Learn to Optimize Denoising Scores, with a learned embedding (Yang, Chen et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arguments import GuidanceParams, OptimizationParams
from guidance.interface import Draw, Guidance, Residual
from guidance.predictions import Predictions
from guidance.prior import DiffusionPrior


class LODSGuidance(Guidance, name="lods"):
    """LODS: SDS / s whose null branch is learned on the renders: ε_y - (1 - 1/s) ε_null - ε / s.

    The null text is the negative prompt's embedding plus a learned offset, 0 at the start; its loss is ‖ε_null - ε‖² on
    a fresh (t, ε) with t from the whole schedule (yangxiaofeng/LODS). As s grows the bracket tends to ε_y - ε_null. The
    bracket is 1/s of SDS's: a run takes a larger `lambda_guidance`.
    """

    def __init__(
        self,
        params: GuidanceParams,
        optimization: OptimizationParams,
        score_model: DiffusionPrior,
        rng: torch.Generator,
    ) -> None:
        super().__init__(params, optimization, score_model, rng)
        learned, rate = self.build_null(rng)
        self.optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def build_null(self, rng: torch.Generator) -> tuple[list[nn.Parameter], float]:  # noqa: ARG002 - starts at 0
        """Make what is learned; returns its parameters and their learning rate."""
        device = self.score_model.alphas_cumprod.device
        self.null_offset = nn.Parameter(torch.zeros(self.score_model.text_shape, device=device))
        return self.score_model.estimators([self.null_offset]), self.params.lods_lr

    def residual(self, draw: Draw) -> Residual:
        share = 1 / self.params.lods_scale
        predicted = self.predict_null(draw)                                   # ε_y, ε_null
        noise_cond = predicted.base + predicted.direction                     # ε_y, with Perp-Neg where it is on
        residual = noise_cond - (1 - share) * predicted.base - share * draw.noise
        fresh = self.fresh(draw)
        losses = {"null": F.mse_loss(self.null_noise(fresh), fresh.noise)}
        return Residual(residual, predicted, self.guided(predicted, draw.step), losses)

    def predict_null(self, draw: Draw) -> Predictions:
        """ε_φ with the learned text as its base."""
        return self.predict(draw, base=self._null_text(draw).detach())

    def null_noise(self, draw: Draw) -> Float[Tensor, "B C h w"]:
        """ε_null(x_t, t), with gradient to what is learned."""
        return self.score_model.predict_noise_with_gradient(
            draw.noisy_latents, draw.timesteps, self._null_text(draw)
        )

    def _null_text(self, draw: Draw) -> Float[Tensor, "B L D"]:
        return draw.text.rows("negative") + self.null_offset.to(draw.text.positive.dtype)
