"""The classic interface with GaussianDreamer's three outputs."""

from jaxtyping import Float, Int
from torch import Tensor

from diff_gaussian_rasterization import classic
from diff_gaussian_rasterization.classic import GaussianRasterizationSettings

__all__ = ["GaussianRasterizationSettings", "GaussianRasterizer"]


class GaussianRasterizer(classic.GaussianRasterizer):
    """As the classic one, but does not return alpha."""

    def forward(
        self, *args: Tensor | None, **kwargs: Tensor | None
    ) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "P"], Float[Tensor, "1 H W"]]:
        """color (3, H, W), radii (P,), depth (1, H, W): the sum of weight times view depth."""
        color, radii, depth, _ = super().forward(*args, **kwargs)
        return color, radii, depth
