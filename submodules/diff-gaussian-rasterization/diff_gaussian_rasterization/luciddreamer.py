"""The classic interface with LucidDreamer's three outputs, to be imported in the place of its rasterizer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diff_gaussian_rasterization import classic
from diff_gaussian_rasterization.classic import GaussianRasterizationSettings

__all__ = ["GaussianRasterizationSettings", "GaussianRasterizer"]


class GaussianRasterizer(classic.GaussianRasterizer):
    """As the classic one, but returns depth and transmittance stacked."""

    def forward(
        self, *args: Tensor | None, **kwargs: Tensor | None
    ) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "P"], Float[Tensor, "2 H W"]]:
        """color (3, H, W), radii (P,), depth_alpha (2, H, W): depth, then the transmittance 1 - alpha."""
        color, radii, depth, alpha = super().forward(*args, **kwargs)
        return color, radii, torch.cat([depth, 1.0 - alpha])
