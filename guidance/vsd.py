"""Variational Score Distillation (ProlificDreamer, Wang et al. 2023)."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import LoRAParams
from guidance.interface import Draw, Guidance, Residual
from utils.distributed import drawn
from utils.optimizers import fused_on_card


class VSDGuidance(Guidance, name="vsd"):
    """VSD: the noise is replaced by what a LoRA, trained along on the renders, predicts from x_t and the camera.

    As in thu-ml/prolificdreamer: the frozen term sees the view's prompt with guidance, the LoRA the bare prompt
    without; the LoRA takes one step an iteration, on a (t, ε) of its own with t from the whole schedule; the camera is
    withheld at times. θ sees the LoRA from before its step. One U-Net serves both terms. The LoRA's error is that of ε
    (the official LoRA on a v-prediction model is trained on v, which weighs small t less).
    """

    lora_params: LoRAParams
    adam: ClassVar[dict[str, Any]] = {}
    """What the LoRA's AdamW has beside torch's own: nothing, as in thu-ml/prolificdreamer."""

    def build(self, rng: torch.Generator) -> None:
        rank = self.lora_params.lora_rank
        self.lora = self.score_model.build_lora(rank=rank, scale=1.0, with_camera=True, rng=rng)
        options = {**self.adam, **fused_on_card(self.device)}
        self.optimizer = torch.optim.AdamW(self.lora.parameters(), lr=self.lora_params.lora_lr, **options)

    def prepare(self, draw: Draw) -> Draw:
        """Set the learning rate, which rises linearly over `lora_warmup_iter`."""
        length = self.lora_params.lora_warmup_iter
        warm = min(draw.step / length, 1.0) if length else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.lora_params.lora_lr * warm
        return draw

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)                         # ε_φ(x_t, t, ·)
        guided_noise = self.guided(predicted, draw.step)       # ε_φ^CFG, Eq. 4
        with torch.no_grad():
            lora_noise = self.lora_noise(draw, draw.text.poses)               # ε_lora(x_t, t, y, c)
        losses = {"lora": self.lora_loss(self.redraw(draw))}
        return Residual(guided_noise - lora_noise, predicted, guided_noise, losses)

    def lora_loss(self, draw: Draw) -> Float[Tensor, ""]:
        """E ‖ε_lora(x_t, t, y, c) - ε‖²."""
        return F.mse_loss(self.lora_noise(draw, self.poses_with_dropout(draw)), draw.noise)

    def lora_noise(self, draw: Draw, poses: Float[Tensor, "B 4 4"] | None) -> Float[Tensor, "B C h w"]:
        """The LoRA's prediction for the bare prompt."""
        return self.lora(draw.noisy_latents, draw.timesteps, draw.text.rows("subject"), poses)

    def poses_with_dropout(self, draw: Draw) -> Float[Tensor, "B 4 4"] | None:
        """The cameras, zeroed with chance `lora_camera_dropout`; None where there are none."""
        if draw.text.poses is None:
            return None
        kept = drawn(lambda views: torch.rand(views, generator=draw.rng), len(draw.latents))
        kept = kept >= self.lora_params.lora_camera_dropout
        return draw.text.poses * kept.to(draw.text.poses, non_blocking=True).view(-1, 1, 1)
