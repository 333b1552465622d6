"""Learn to Optimize Denoising Scores, with a LoRA (Yang, Chen et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments import LoRAParams
from guidance.interface import Draw
from guidance.lods import LODSGuidance
from guidance.predictions import Predictions


class LODSLoRAGuidance(LODSGuidance, name="lods_lora"):
    """LODS whose null branch is a LoRA on the U-Net with the negative prompt, at scale 0.5 and without camera.

    The released settings have that prompt "<new1>" (yangxiaofeng/LODS, configs/lods-ngp-lora.yaml); with an empty one
    the null text is empty.
    """

    lora_params: LoRAParams

    def build_null(self, rng: torch.Generator) -> tuple[list[nn.Parameter], float]:
        rank, scale = self.lora_params.lora_rank, self.lods.lods_lora_scale
        self.lora = self.score_model.build_lora(rank=rank, scale=scale, with_camera=False, rng=rng)
        return list(self.lora.parameters()), self.lods.lods_lora_lr

    def batches(self, views: int) -> set[int]:
        """Without the base, which the LoRA predicts."""
        return {count - views for count in super().batches(views)}

    def predict_null(self, draw: Draw) -> Predictions:
        with torch.no_grad():
            null_noise = self.null_noise(draw)
        return self.predict(draw, base_noise=null_noise)

    def null_noise(self, draw: Draw) -> Float[Tensor, "B C h w"]:
        return self.lora(draw.noisy_latents, draw.timesteps, draw.text.rows("negative"))
