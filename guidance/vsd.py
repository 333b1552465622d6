"""Variational Score Distillation (ProlificDreamer, Wang et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import GuidanceParams, OptimizationParams
from guidance.interface import Draw, Guidance, Residual
from guidance.prior import DiffusionPrior


class VSDGuidance(Guidance, name="vsd"):
    """VSD: the noise is replaced by what a LoRA, trained along on the renders, predicts from x_t and the camera.

    As in thu-ml/prolificdreamer: the frozen term sees the view's prompt with guidance, the LoRA the bare prompt
    without; the LoRA takes one step an iteration, on a fresh (t, ε) with t from the whole schedule; the camera is
    withheld at times. θ sees the LoRA from before its step. One U-Net serves both terms. The LoRA's error is that of ε
    (the official LoRA on a v-prediction model is trained on v, which weighs small t less).
    """

    def __init__(
        self,
        params: GuidanceParams,
        optimization: OptimizationParams,
        score_model: DiffusionPrior,
        rng: torch.Generator,
    ) -> None:
        super().__init__(params, optimization, score_model, rng)
        self.lora = score_model.build_lora(rank=params.lora_rank, scale=1.0, with_camera=True, rng=rng)
        self.optimizer = torch.optim.AdamW(self.lora.parameters(), lr=params.lora_lr)

    def residual(self, draw: Draw) -> Residual:
        self._warm_up(draw.step)
        predicted = self.predict(draw)                         # ε_φ(x_t, t, ·)
        guided_noise = self.guided(predicted, draw.step)       # ε_φ^CFG, Eq. 4
        with torch.no_grad():
            lora_noise = self.lora_noise(draw, draw.text.poses)               # ε_lora(x_t, t, y, c)
        losses = {"lora": self.lora_loss(self.fresh(draw))}
        return Residual(guided_noise - lora_noise, predicted, guided_noise, losses)

    def lora_loss(self, fresh: Draw) -> Float[Tensor, ""]:
        """E ‖ε_lora(x_t, t, y, c) - ε‖²."""
        return F.mse_loss(self.lora_noise(fresh, self._withheld(fresh)), fresh.noise)

    def lora_noise(self, draw: Draw, poses: Float[Tensor, "B 4 4"] | None) -> Float[Tensor, "B C h w"]:
        """The LoRA's prediction for the bare prompt."""
        return self.lora(draw.noisy_latents, draw.timesteps, draw.text.rows("subject"), poses)

    def _withheld(self, draw: Draw) -> Float[Tensor, "B 4 4"] | None:
        """The cameras, some of them zeroed."""
        if draw.text.poses is None:
            return None
        told = torch.rand(len(draw.latents), generator=draw.rng) >= self.params.lora_camera_dropout
        return draw.text.poses * told.to(draw.text.poses).view(-1, 1, 1)

    def _warm_up(self, step: int) -> None:
        """The learning rate, rising linearly over `lora_warmup_iter`."""
        share = min(step / self.params.lora_warmup_iter, 1.0) if self.params.lora_warmup_iter else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.params.lora_lr * share
