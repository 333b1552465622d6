"""Adversarial Score Distillation (Wei, Zhou, Sun & Zhang 2023)."""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import ASDParams
from guidance.interface import Draw
from guidance.vsd import VSDGuidance


class ASDGuidance(VSDGuidance, name="asd"):
    """ASD: VSD whose LoRA is a discriminator, drawn to the noise and pushed from the prompt's prediction.

    L = ‖ε_lora - ε‖² + γ ‖ε_lora - sg ε_y‖² at one (x_t, t), drawn for it, with γ = -0.75 (2y7c3/ASD). Its minimum is
    (ε + γ ε_y) / (1 + γ) in conditional mean, so γ must be above -1; γ = 0 is VSD at ASD's betas and epsilon of AdamW.
    The pushing prediction has neither guidance nor Perp-Neg, as where the released code has Perp-Neg off.
    """

    asd: ASDParams
    adam: ClassVar[dict[str, Any]] = {"betas": (0.9, 0.99), "eps": 1e-15}

    def batches(self, views: int) -> set[int]:
        """The prompt's prediction that the LoRA is pushed from is asked for alone."""
        return super().batches(views) | {views}

    def lora_loss(self, draw: Draw) -> Float[Tensor, ""]:
        lora_noise = self.lora_noise(draw, self.poses_with_dropout(draw))
        noise_cond = self.score_model.predict_noise(draw.noisy_latents, draw.timesteps, draw.text.positive)
        return F.mse_loss(lora_noise, draw.noise) + self.asd.asd_gamma * F.mse_loss(lora_noise, noise_cond)
