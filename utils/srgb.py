"""sRGB and linear light, both in [0, 1] (IEC 61966-2-1)."""

import torch
from jaxtyping import Float
from torch import Tensor


def linear_to_srgb(linear: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    linear = linear.clamp(0.0, 1.0)
    return torch.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp_min(1e-9) ** (1 / 2.4) - 0.055
    )


def srgb_to_linear(srgb: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
    srgb = srgb.clamp(0.0, 1.0)
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
