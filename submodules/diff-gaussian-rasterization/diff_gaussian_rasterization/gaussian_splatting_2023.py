"""The classic interface with the two outputs of 3D Gaussian splatting's first code (2023)."""

from jaxtyping import Float, Int
from torch import Tensor

from diff_gaussian_rasterization import classic
from diff_gaussian_rasterization.classic import GaussianRasterizationSettings

__all__ = ["GaussianRasterizationSettings", "GaussianRasterizer"]


class GaussianRasterizer(classic.GaussianRasterizer):
    """As the classic one, but returns neither depth nor alpha."""

    def forward(
        self, *args: Tensor | None, **kwargs: Tensor | None
    ) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "P"]]:
        """color (3, H, W), radii (P,)."""
        color, radii, _, _ = super().forward(*args, **kwargs)
        return color, radii
