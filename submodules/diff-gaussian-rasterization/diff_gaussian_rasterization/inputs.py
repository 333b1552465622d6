"""What a rasterizer is given: the Gaussians, the views, and the checks that both pass before any backend sees them.

Conventions, as in the field's code: matrices are transposed (a point is a row vector, `p @ viewmatrix`), the camera
looks along +z with y down, quaternions are (w, x, y, z) and are used as they come (not normalised), integer pixel
coordinates are pixel centres, and the 2-D mean's gradient is in units of normalised device coordinates.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
import torch
from torch import Tensor

MAX_SIDE = 16384
SH_COEFFICIENTS = {0: 1, 1: 4, 2: 9, 3: 16}
CALLED = {"colors": "colors_precomp", "covariances": "cov3D_precomp", "tanfov": "tanfovx, tanfovy"}
"""What callers name a tensor, where we name it otherwise."""
LARGEST_MODIFIER = 1e10
"""Of `scale_modifier`: its square, and that of a scale, are multiplied in float32."""


@dataclass(frozen=True)
class Gaussians:
    """P Gaussians, seen by C views; exactly one of `shs`/`colors` and one of `scales`+`rotations`/`covariances` is set.

    Attributes:
        means3D: (P, 3) centres in the world.
        means2D: (C, P, 3) or (C, P, 2); its values are ignored, its gradient is that of the projected centre.
        opacities: (P, 1) in [0, 1].
        shs: (P, M, 3) spherical-harmonic coefficients, M = (maximal degree + 1)^2.
        colors: (1, P, 3) or (C, P, 3), used as they are.
        scales: (1, P, 3) or (C, P, 3) standard deviations along the axes.
        rotations: (P, 4).
        covariances: (1, P, 6) or (C, P, 6): xx, xy, xz, yy, yz, zz.
    """

    means3D: Tensor
    means2D: Tensor
    opacities: Tensor
    shs: Tensor | None
    colors: Tensor | None
    scales: Tensor | None
    rotations: Tensor | None
    covariances: Tensor | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those attributes that are set, by the names that callers know them by."""
        return {CALLED.get(name, name): value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Views:
    """C cameras that share an image size.

    Attributes:
        viewmatrix, projmatrix: (C, 4, 4), transposed: world to camera, world to clip space.
        campos: (C, 3) camera centres.  bg: (C, 3) background colours.
        tanfov: (C, 2) tangents of half the horizontal and the vertical field of view.
        sh_degrees: active degree of each view.
    """

    viewmatrix: Tensor
    projmatrix: Tensor
    campos: Tensor
    bg: Tensor
    tanfov: Tensor
    sh_degrees: tuple[int, ...]
    width: int
    height: int
    scale_modifier: float
    antialiasing: bool

    def __len__(self) -> int:
        return self.viewmatrix.shape[0]


def _is_of(shape: torch.Size, wanted: tuple[int | None, ...]) -> bool:
    return shape == wanted or (  # mostly, and compared at once: a call asks a dozen times
        len(shape) == len(wanted) and all(w in (None, have) for w, have in zip(wanted, shape, strict=True))
    )


def check_tensor(
    name: str,
    value: object,
    shapes: Sequence[tuple[int | None, ...]],
    like: Tensor | None = None,
    like_name: str = "means3D",
) -> Tensor:
    """`value` itself, if it is a floating tensor of one of `shapes` (None: any size), of `like`'s dtype and device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not any([_is_of(value.shape, shape) for shape in shapes]):
        wanted = " or ".join(
            "(" + ", ".join("*" if s is None else str(s) for s in shape) + ")" for shape in shapes
        )
        raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    if like is not None and value.dtype != like.dtype:
        raise TypeError(f"{name}: expected {like.dtype} as {like_name} has, got {value.dtype}")
    if like is not None and value.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} as {like_name} has, got {value.device}")
    return value


def number(name: str, value: object) -> float:
    """`value` as a float, if it is a number or a tensor of one."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None


def whole(name: str, value: object) -> int:
    """`value` as an int, if it is a whole number: Python's, numpy's, or a tensor of one."""
    if not isinstance(value, (bool, np.bool_)):
        try:
            return index(value)
        except TypeError:
            pass
    raise TypeError(f"{name}: expected an int, got {type(value).__name__}")


def given(tensor: Tensor | None) -> Tensor | None:
    """None for what callers of the field leave out: None or an empty tensor of one dimension."""
    return None if tensor is None or (isinstance(tensor, Tensor) and tensor.shape == (0,)) else tensor


def gaussians(
    means3D: Tensor,
    means2D: Tensor | None,
    opacities: Tensor,
    shs: Tensor | None,
    colors_precomp: Tensor | None,
    scales: Tensor | None,
    rotations: Tensor | None,
    cov3D_precomp: Tensor | None,
    views: int,
) -> Gaussians:
    """Checked Gaussians for that many views; see `rasterize` for shapes.

    Raises:
        TypeError, ValueError: a wrong type, dtype, device or shape, or not exactly one of the exclusive inputs.
    """
    shs, colors_precomp, cov3D_precomp = given(shs), given(colors_precomp), given(cov3D_precomp)
    scales, rotations = given(scales), given(rotations)
    if (shs is None) == (colors_precomp is None):
        found = "neither" if shs is None else "both"
        raise ValueError(f"shs, colors_precomp: expected exactly one of them, got {found}")
    if (cov3D_precomp is None) != (scales is not None and rotations is not None) or (
        cov3D_precomp is not None and (scales is not None or rotations is not None)
    ):
        found = {"scales": scales, "rotations": rotations, "cov3D_precomp": cov3D_precomp}
        names = " and ".join(name for name, value in found.items() if value is not None)
        raise ValueError(
            "scales, rotations, cov3D_precomp: expected either the first two or the last, "
            f"got {names or 'none of them'}"
        )
    check_tensor("means3D", means3D, [(None, 3)])
    count = means3D.shape[0]
    if means2D is None:  # nobody asks for its gradient
        means2D = means3D.new_zeros(views, count, 2)
    check_tensor("means2D", means2D, [(views, count, 3), (views, count, 2)], means3D)
    check_tensor("opacities", opacities, [(count, 1)], means3D)
    if shs is not None:
        check_tensor("shs", shs, [(count, m, 3) for m in SH_COEFFICIENTS.values()], means3D)
    if rotations is not None:
        check_tensor("rotations", rotations, [(count, 4)], means3D)

    def per_view(name: str, value: Tensor | None, size: int) -> Tensor | None:
        if value is None:
            return None
        check_tensor(name, value, [(count, size), (views, count, size)], means3D)
        return value[None] if value.dim() == 2 else value

    return Gaussians(
        means3D,
        means2D,
        opacities,
        shs,
        per_view("colors_precomp", colors_precomp, 3),
        per_view("scales", scales, 3),
        rotations,
        per_view("cov3D_precomp", cov3D_precomp, 6),
    )


def views(
    viewmatrix: Tensor,
    projmatrix: Tensor,
    campos: Tensor,
    bg: Tensor,
    tanfovx: Tensor,
    tanfovy: Tensor,
    image_height: int,
    image_width: int,
    sh_degree: int | Sequence[int],
    scale_modifier: float,
    antialiasing: bool,
    like: Tensor,
    shs: Tensor | None,
) -> Views:
    """Views of checked form, on the device and of the dtype of `like`; `check_values` looks at the numbers.

    Raises:
        TypeError, ValueError: a wrong type, dtype, device or shape, an image side outside 1..16384, or a degree that
            is not 0..3 or that needs more coefficients than `shs` has.
    """
    check_tensor("viewmatrix", viewmatrix, [(None, 4, 4)], like)
    count = viewmatrix.shape[0]
    check_tensor("projmatrix", projmatrix, [(count, 4, 4)], like)
    check_tensor("campos", campos, [(count, 3)], like)
    check_tensor("bg", bg, [(count, 3)], like)
    check_tensor("tanfovx", tanfovx, [(count,)], like)
    check_tensor("tanfovy", tanfovy, [(count,)], like)
    image_width, image_height = whole("image_width", image_width), whole("image_height", image_height)
    for name, side in (("image_width", image_width), ("image_height", image_height)):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name}: expected 1 to {MAX_SIDE} pixels, got {side}")
    try:
        alone = not isinstance(sh_degree, Iterable) or getattr(sh_degree, "ndim", 1) == 0
        degrees = (index(sh_degree),) * count if alone else tuple(map(index, sh_degree))
    except TypeError:
        raise TypeError(f"sh_degree: expected one int or {count} of them, got {sh_degree!r}") from None
    if len(degrees) != count:
        raise ValueError(f"sh_degree: expected one int or {count} of them, got {len(degrees)}")
    for degree in degrees:
        if degree not in SH_COEFFICIENTS:
            raise ValueError(f"sh_degree: expected 0, 1, 2 or 3, got {degree}")
        if shs is not None and shs.shape[1] < SH_COEFFICIENTS[degree]:
            raise ValueError(
                f"sh_degree: {degree} needs {SH_COEFFICIENTS[degree]} coefficients, shs has {shs.shape[1]}"
            )
    scale_modifier = number("scale_modifier", scale_modifier)
    if not 0.0 < scale_modifier <= LARGEST_MODIFIER:
        raise ValueError(
            f"scale_modifier: expected a positive number of at most {LARGEST_MODIFIER:g}, got {scale_modifier}"
        )
    tanfov = torch.stack([tanfovx, tanfovy], dim=1).detach()
    return Views(
        viewmatrix.detach(),
        projmatrix.detach(),
        campos.detach(),
        bg.detach(),
        tanfov,
        degrees,
        image_width,
        image_height,
        scale_modifier,
        bool(antialiasing),
    )


def check_values(views: Views) -> None:
    """Looks at the numbers of `views`, which makes the host wait for a GPU.

    Raises:
        ValueError: a NaN, an infinity, or a field of view that is not positive.
    """
    names = ("viewmatrix", "projmatrix", "campos", "bg", "tanfov")
    require_finite({CALLED.get(name, name): getattr(views, name) for name in names})
    if not bool((views.tanfov > 0).all()):
        raise ValueError("tanfovx, tanfovy: expected positive numbers")


def require_finite(tensors: dict[str, Tensor]) -> None:
    """Raises ValueError that names the first tensor with a NaN or an infinity. One synchronisation for all of them."""
    if not tensors:
        return
    finite = torch.stack([torch.isfinite(value.detach()).all() for value in tensors.values()]).tolist()
    for name, good in zip(tensors, finite, strict=True):
        if not good:
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
