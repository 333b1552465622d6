"""The interface that the field's code expects: one camera, its settings apart from the Gaussians."""

from typing import NamedTuple, SupportsIndex

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diff_gaussian_rasterization import inputs
from diff_gaussian_rasterization.batch import Backend, rasterize
from diff_gaussian_rasterization.reference import NEAR


class GaussianRasterizationSettings(NamedTuple):
    """One camera. Matrices are transposed; `tanfovx` is the tangent of half the horizontal field of view.

    `debug` makes a CUDA device report bad numbers at once (see `rasterize`). `prefiltered` is accepted for
    compatibility and changes nothing: Gaussians are always culled.
    """

    image_height: SupportsIndex
    image_width: SupportsIndex
    tanfovx: float
    tanfovy: float
    bg: Float[Tensor, "3"]
    scale_modifier: float
    viewmatrix: Float[Tensor, "4 4"]
    projmatrix: Float[Tensor, "4 4"]
    sh_degree: int
    campos: Float[Tensor, "3"]
    prefiltered: bool
    debug: bool = False
    antialiasing: bool = False


class GaussianRasterizer(nn.Module):
    """Draws Gaussians with one camera.

    Args:
        backend, absgrad: see `rasterize`.
    """

    def __init__(
        self, raster_settings: GaussianRasterizationSettings, backend: Backend = "auto", absgrad: bool = False
    ) -> None:
        super().__init__()
        self.raster_settings = raster_settings
        self.backend = backend
        self.absgrad = absgrad

    @torch.compiler.disable
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
    ) -> tuple[Float[Tensor, "3 H W"], Int[Tensor, "P"], Float[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
        """color (3, H, W), radii (P,) int32, depth (1, H, W), alpha (1, H, W); see `rasterize` for all of them.

        `means2D.grad[:, :2]` is the gradient of the projected centres in normalised device coordinates; `means2D` may
        be None.

        Raises:
            TypeError, ValueError: as `rasterize`.
        """
        settings = self.raster_settings
        count = len(inputs.check_tensor("means3D", means3D, [(None, 3)]))
        if means2D is not None:
            inputs.check_tensor("means2D", means2D, [(count, 3), (count, 2)])
        inputs.check_tensor("viewmatrix", settings.viewmatrix, [(4, 4)])
        inputs.check_tensor("projmatrix", settings.projmatrix, [(4, 4)])
        inputs.check_tensor("campos", settings.campos, [(3,)])
        inputs.check_tensor("bg", settings.bg, [(3,)])
        tanfovx, tanfovy = (inputs.number(name, getattr(settings, name)) for name in ("tanfovx", "tanfovy"))
        batched = None if means2D is None else means2D[None]
        drawn = rasterize(
            means3D,
            batched,
            opacities,
            shs=shs,
            colors_precomp=colors_precomp,
            scales=scales,
            rotations=rotations,
            cov3D_precomp=cov3D_precomp,
            viewmatrix=settings.viewmatrix[None],
            projmatrix=settings.projmatrix[None],
            campos=settings.campos[None],
            tanfovx=settings.viewmatrix.new_full((1,), tanfovx),
            tanfovy=settings.viewmatrix.new_full((1,), tanfovy),
            image_height=settings.image_height,
            image_width=settings.image_width,
            bg=settings.bg[None],
            sh_degree=settings.sh_degree,
            scale_modifier=settings.scale_modifier,
            antialiasing=settings.antialiasing,
            backend=self.backend,
            absgrad=self.absgrad,
            debug=settings.debug,
        )
        if self.absgrad:
            means2D.absgrad = batched.absgrad[0]
        return drawn.color[0], drawn.radii[0], drawn.depth[0], drawn.alpha[0]

    @torch.no_grad()
    def mark_visible(self, positions: Float[Tensor, "P 3"]) -> Bool[Tensor, "P"]:
        """True where a position lies beyond the near plane, wherever it projects to."""
        view = inputs.check_tensor("viewmatrix", self.raster_settings.viewmatrix, [(4, 4)])
        inputs.check_tensor("positions", positions, [(None, 3)], view, "viewmatrix")
        return positions @ view[:3, 2] + view[3, 2] > NEAR

    markVisible = mark_visible
