"""Learn to Optimize Denoising Scores, with a learned embedding (Yang, Chen et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from arguments import LODSParams
from guidance.interface import Draw, Guidance, Residual
from guidance.predictions import Predictions
from utils.optimizers import fused_on_card


class LODSGuidance(Guidance, name="lods"):
    """LODS: SDS / s whose null branch is learned on the renders: ε_y - (1 - 1/s) ε_null - ε / s.

    The null text is the negative prompt's embedding plus a learned offset, 0 at the start; its loss is ‖ε_null - ε‖² on
    a (t, ε) of its own with t from the whole schedule (yangxiaofeng/LODS). As s grows the bracket tends to
    ε_y - ε_null. The bracket is 1/s of SDS's: a run takes a larger `lambda_guidance`.
    """

    lods: LODSParams

    def build(self, rng: torch.Generator) -> None:
        learned, rate = self.build_null(rng)
        options = {"betas": (0.9, 0.99), "eps": 1e-15, "weight_decay": 0.0, **fused_on_card(self.device)}
        self.optimizer = torch.optim.AdamW(learned, lr=rate, **options)

    def build_null(self, rng: torch.Generator) -> tuple[list[nn.Parameter], float]:  # noqa: ARG002 - starts at 0
        """Make what is learned; returns its parameters and their learning rate."""
        self.null_offset = nn.Parameter(torch.zeros(self.score_model.text_shape, device=self.device))
        return self.score_model.estimators([self.null_offset]), self.lods.lods_lr

    def residual(self, draw: Draw) -> Residual:
        noise_weight = 1 / self.lods.lods_scale
        predicted = self.predict_null(draw)                                   # ε_y, ε_null
        noise_cond = predicted.base + predicted.direction                     # ε_y, with Perp-Neg where it is on
        residual = noise_cond - (1 - noise_weight) * predicted.base - noise_weight * draw.noise
        losses = {"null": self.null_loss(self.redraw(draw))}
        return Residual(residual, predicted, self.guided(predicted, draw.step), losses)

    def predict_null(self, draw: Draw) -> Predictions:
        """ε_φ with the learned text as its base."""
        return self.predict(draw, base=self._null_text(draw).detach())

    def null_loss(self, draw: Draw) -> Float[Tensor, ""]:
        """E ‖ε_null(x_t, t) - ε‖²."""
        return F.mse_loss(self.null_noise(draw), draw.noise)

    def null_noise(self, draw: Draw) -> Float[Tensor, "B C h w"]:
        """ε_null(x_t, t), with gradient to what is learned."""
        return self.score_model.predict_noise_with_gradient(
            draw.noisy_latents, draw.timesteps, self._null_text(draw)
        )

    def _null_text(self, draw: Draw) -> Float[Tensor, "B L D"]:
        return draw.text.rows("negative") + self.null_offset.to(draw.text.positive.dtype)
