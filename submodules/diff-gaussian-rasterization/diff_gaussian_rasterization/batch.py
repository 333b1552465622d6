"""`rasterize`: many cameras in one call. Chooses the backend."""

from collections.abc import Sequence
from typing import Literal, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from diff_gaussian_rasterization import cpu, cuda, inputs, reference
from diff_gaussian_rasterization.reference import Outputs

Backend = Literal["auto", "cpu", "torch", "cuda"]


@torch.compiler.disable  # a compiled function is cut here: what the kernels do cannot be traced
def rasterize(
    means3D: Float[Tensor, "P 3"],
    means2D: Float[Tensor, "C P _"] | None,
    opacities: Float[Tensor, "P 1"],
    *,
    shs: Float[Tensor, "P M 3"] | None = None,
    colors_precomp: Float[Tensor, "*C P 3"] | None = None,
    scales: Float[Tensor, "*C P 3"] | None = None,
    rotations: Float[Tensor, "P 4"] | None = None,
    cov3D_precomp: Float[Tensor, "*C P 6"] | None = None,
    viewmatrix: Float[Tensor, "C 4 4"],
    projmatrix: Float[Tensor, "C 4 4"],
    campos: Float[Tensor, "C 3"],
    tanfovx: Float[Tensor, "C"],
    tanfovy: Float[Tensor, "C"],
    image_height: SupportsIndex,
    image_width: SupportsIndex,
    bg: Float[Tensor, "C 3"],
    sh_degree: int | Sequence[int],
    scale_modifier: float = 1.0,
    antialiasing: bool = False,
    backend: Backend = "auto",
    absgrad: bool = False,
    debug: bool = False,
) -> Outputs:
    """Draws P Gaussians as C cameras see them.

    Args:
        means2D: (C, P, 3) or (C, P, 2) of any values; its `.grad` after the backward pass is the gradient of the
            projected centres in units of normalised device coordinates: pixel gradient times (W/2, H/2), third 0.
            None where nobody asks for it.
        shs, colors_precomp: exactly one; colours may differ between the views.
        scales, rotations, cov3D_precomp: the first two or the last; scales and covariances may differ between the
            views. Quaternions are (w, x, y, z) and are not normalised here.
        viewmatrix, projmatrix: transposed (world to camera; world to clip space). Cameras look along +z, y is down.
        sh_degree: active degree, one for all views or one for each.
        backend: "cpu" is the compiled kernel (float32), "cuda" the kernels for a CUDA device (float32), "torch" the
            reference (any device and float type); "auto" takes the fastest that fits the tensors.
        absgrad: also fill `means2D.absgrad` (C, P, 2) in the backward pass: per-pixel gradients added up by absolute
            value, in the units of `means2D.grad`.
        debug: wait for a CUDA device, so that a NaN or an infinity is reported by this call and not by a later one.

    Returns:
        color (C, 3, H, W) on `bg`; radii (C, P) int32 in pixels, 0 where not drawn; depth (C, 1, H, W), the sum of
        weight times view depth; alpha (C, 1, H, W), the sum of weights. Their gradients are constants to a second
        derivative (`create_graph=True`), except those of the backend "torch".

    Raises:
        TypeError, ValueError: an input of wrong type, dtype, device or shape, exclusive inputs, a NaN or an infinity.
        RuntimeError: `backend="cpu"` where the kernel was not built, `backend="cuda"` where it cannot be compiled, or
            more to draw than memory or indices hold.
    """
    if backend not in ("auto", "cpu", "torch", "cuda"):
        raise ValueError(f'backend: expected "auto", "cpu", "torch" or "cuda", got {backend!r}')
    if absgrad and means2D is None:
        raise ValueError("means2D: expected a tensor that absgrad can be added to, got None")
    scene = inputs.gaussians(
        means3D,
        means2D,
        opacities,
        shs,
        colors_precomp,
        scales,
        rotations,
        cov3D_precomp,
        len(viewmatrix) if isinstance(viewmatrix, Tensor) and viewmatrix.dim() else 0,
    )
    views = inputs.views(
        viewmatrix,
        projmatrix,
        campos,
        bg,
        tanfovx,
        tanfovy,
        image_height,
        image_width,
        sh_degree,
        scale_modifier,
        antialiasing,
        means3D,
        scene.shs,
    )
    if backend == "cuda" or (backend == "auto" and cuda.fits(means3D) and cuda.available(means3D.device)):
        if not cuda.fits(means3D):
            raise ValueError(
                'backend "cuda": expected float32 tensors on a CUDA device, '
                f"got {means3D.dtype} on {means3D.device}"
            )
        return cuda.render(scene, views, absgrad, debug)
    inputs.check_values(views)
    if backend == "cpu" or (backend == "auto" and cpu.fits(means3D) and cpu.available()):
        return cpu.render(scene, views, absgrad)
    return reference.render(scene, views, absgrad)
