"""ε_lora(x_t, t, y, c): low-rank adapters on the frozen U-Net's attention, which may be told the camera.

The estimator of VSD, DreamFlow, ASD and LODS. Imports peft.
"""

import torch
from jaxtyping import Float, Int
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from guidance.noise import seeded
from guidance.prior.protocol import UNetPrior

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
NAME = "estimator"
POSE = 16


def remove_adapters(unet: nn.Module) -> None:
    """Take out of a U-Net what a `LoRA` has put into it; its own layers stay as they were."""
    for parent in list(unet.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(parent, name, child.get_base_layer())
    if hasattr(unet, "peft_config"):
        del unet.peft_config


class LoRA(nn.Module):
    """The U-Net of `score_model` with adapters that count inside this module's calls alone.

    One U-Net serves both: outside these calls it gives the frozen model's bits. Its `state_dict` holds the adapters
    and the camera's MLP, in float32 whatever the U-Net's type.

    Args:
        score_model: its U-Net is given the adapters, at the attention's q, k, v and output.
        rank: of the adapters (diffusers' default is 4).
        scale: factor on what they add.
        with_camera: a two-layer MLP of the camera-to-world matrix is added to the time embedding (ProlificDreamer).
        rng: draws the initial weights. The adapters start as no change: up at 0, down from N(0, 1/rank²), which is
            diffusers' start and so every source's (peft's own shrinks with the layer's width).
    """

    def __init__(
        self, score_model: UNetPrior, *, rank: int, scale: float, with_camera: bool, rng: torch.Generator
    ) -> None:
        super().__init__()
        self._score_model = score_model
        unet = score_model.unet
        width = unet.time_embedding.linear_2.out_features
        with seeded(rng):
            inject_adapter_in_model(
                LoraConfig(
                    r=rank, lora_alpha=rank * scale, target_modules=ATTENTION, init_lora_weights="gaussian"
                ),
                unet,
                NAME,
            )
            self.camera = (
                nn.Sequential(nn.Linear(POSE, width), nn.SiLU(), nn.Linear(width, width))
                if with_camera
                else None
            )
        self._layers = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
        adapters = {name: value for name, value in unet.named_parameters() if f".{NAME}." in name}
        for value in adapters.values():
            value.data = value.data.float()
        # a parameter's name in a ParameterDict has no dots
        self.adapters = nn.ParameterDict({name.replace(".", "/"): value for name, value in adapters.items()})
        self.to(score_model.alphas_cumprod.device)
        score_model.estimators(list(self.parameters()))
        self._switch(False)

    def forward(
        self,
        noisy_latents: Float[Tensor, "B C h w"],
        timesteps: Int[Tensor, " B"],
        text: Float[Tensor, "B L D"],
        poses: Float[Tensor, "B 4 4"] | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """ε_lora, float32, with gradient to this module's parameters; no poses count as zeros."""
        camera = self._camera_of(len(noisy_latents), poses)
        self._switch(True)
        try:
            return self._score_model.predict_noise_with_gradient(noisy_latents, timesteps, text, camera)
        finally:
            self._switch(False)

    def _switch(self, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        for parameter in self.adapters.values():  # peft also freezes what it disables
            parameter.requires_grad_(True)

    def _camera_of(self, count: int, poses: Tensor | None) -> Tensor | None:
        """What the cameras add to the time embedding."""
        if self.camera is None:
            return None
        weight = self.camera[0].weight
        flat = weight.new_zeros(count, POSE) if poses is None else poses.reshape(count, POSE).to(weight)
        return self.camera(flat)
