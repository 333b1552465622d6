"""Attention with heads wider than fused kernels are made for, as products of matrices."""

from typing import Any

from torch import nn

WIDEST = 256
"""Channels of a head up to which a fused kernel is fast. In the image encoder of Stable Diffusion one head has 512:
there the backward pass of PyTorch's fused kernel took 15 of an iteration's 82 ms of kernels on an H200, for 0.2 TFLOP.
"""


def set_wide_heads(network: nn.Module, *, fused: bool) -> None:
    """Let the attentions of a network whose heads are wider than `WIDEST` be fused, diffusers' default, or not.

    Products of matrices keep the scores: 2 bytes for each pair of pixels of the latents, 134 MB for four views.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    processor: Any = AttnProcessor2_0() if fused else AttnProcessor()
    for module in network.modules():
        if isinstance(module, Attention) and module.inner_dim // module.heads > WIDEST:
            module.set_processor(processor)
