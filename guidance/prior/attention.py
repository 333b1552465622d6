"""Attention with heads wider than fused kernels are made for, as products of matrices."""

from typing import Any

import torch
from torch import Tensor, nn

WIDEST = 256
"""Channels of a head up to which a fused kernel is fast. In the image encoder of Stable Diffusion one head has 512:
there the backward pass of PyTorch's fused kernel took 15 of an iteration's 82 ms of kernels on an H200, for 0.2 TFLOP.
"""


class Products:
    """Attention of an image's pixels to each other, in the place of an autoencoder's `AttnProcessor2_0`.

    It keeps the scores: in half precision 2 bytes for each pair of pixels, 134 MB for four views of 64 x 64. Called by
    diffusers with `hidden_states`, B C h w, and returns the same shape; without text, mask and time embedding.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,  # noqa: ARG002 - diffusers warns of what is not named, and compiles in pieces
        attention_mask: None = None,  # noqa: ARG002
        temb: None = None,  # noqa: ARG002
    ) -> Tensor:
        rows = attn.group_norm(hidden_states.flatten(2)).transpose(1, 2)
        query, key, value = (
            attn.head_to_batch_dim(project(rows)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        shares = torch.bmm(query * attn.scale, key.transpose(1, 2)).softmax(dim=-1)
        found = attn.to_out[0](attn.batch_to_head_dim(torch.bmm(shares, value)))
        found = found.transpose(1, 2).reshape(hidden_states.shape)
        return (found + hidden_states) / attn.rescale_output_factor


def set_wide_heads(network: nn.Module, *, fused: bool) -> None:
    """Let an autoencoder's attentions whose heads are wider than `WIDEST` be fused, diffusers' default, or not."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    processor: Any = AttnProcessor2_0() if fused else Products()
    for module in network.modules():
        if not isinstance(module, Attention) or module.inner_dim // module.heads <= WIDEST:
            continue
        if module.group_norm is not None and module.spatial_norm is None and module.residual_connection:
            module.set_processor(processor)
