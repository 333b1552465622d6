"""The classic interface with the three outputs of 3D Gaussian splatting's code since October 2024."""

from jaxtyping import Float, Int
from torch import Tensor

from diff_gaussian_rasterization import classic
from diff_gaussian_rasterization.classic import GaussianRasterizationSettings
from diff_gaussian_rasterization.reference import NEAR

__all__ = ["GaussianRasterizationSettings", "GaussianRasterizer"]


class GaussianRasterizer(classic.GaussianRasterizer):
    """As the classic one, but returns the inverse depth, which is drawn as a colour by a second pass.

    A call takes twice the time of the classic one. The second pass is differentiated only where `inverse_depth` is
    used, and adds nothing to `means2D.absgrad`.
    """

    def forward(
        self,
        means3D: Float[Tensor, "P 3"],
        means2D: Float[Tensor, "P _"] | None,
        opacities: Float[Tensor, "P 1"],
        shs: Float[Tensor, "P M 3"] | None = None,
        colors_precomp: Float[Tensor, "P 3"] | None = None,
        scales: Float[Tensor, "P 3"] | None = None,
        rotations: Float[Tensor, "P 4"] | None = None,
        cov3D_precomp: Float[Tensor, "P 6"] | None = None,
    ) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "P"], Float[Tensor, "1 H W"]]:
        """color (3, H, W), radii (P,), inverse_depth (1, H, W): the sum of weight over view depth."""
        shape = {"scales": scales, "rotations": rotations, "cov3D_precomp": cov3D_precomp}
        color, radii, _, _ = super().forward(means3D, means2D, opacities, shs, colors_precomp, **shape)
        settings = self.raster_settings
        view = settings.viewmatrix
        depth = means3D @ view[:3, 2] + view[3, 2]
        inverse = depth.clamp_min(NEAR).reciprocal()  # nearer ones are not drawn
        again = classic.GaussianRasterizer(settings._replace(bg=settings.bg.new_zeros(3)), self.backend)
        drawn, _, _, _ = again(
            means3D, means2D, opacities, colors_precomp=inverse[:, None].expand(-1, 3), **shape
        )
        return color, radii, drawn[:1]
