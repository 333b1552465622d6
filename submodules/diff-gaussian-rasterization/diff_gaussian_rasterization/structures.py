"""The C structures that the compiled backends are given (`csrc/scene.h`), filled in from tensors."""

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

from torch import Tensor

from diff_gaussian_rasterization.inputs import Views

INPUTS = ("means3D", "means2D", "opacities", "shs", "colors", "scales", "rotations", "covariances")
"""Tensors of `Gaussians` in the order of the C structures; `means2D` is in none, only its gradient."""


class CGaussians(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("count", "coefficients", "color_views", "shape_views")),
        *(
            (n, c_void_p)
            for n in ("means", "opacities", "shs", "colors", "scales", "rotations", "covariances")
        ),
    ]


class CViews(Structure):
    _fields_ = [
        ("count", c_int64),
        ("width", c_int32),
        ("height", c_int32),
        ("scale_modifier", c_float),
        ("antialiasing", c_int32),
        *((n, c_void_p) for n in ("viewmatrix", "projmatrix", "campos", "background", "tanfov", "degrees")),
    ]


class CImages(Structure):
    _fields_ = [(name, c_void_p) for name in ("color", "depth", "alpha")]


class CGradients(Structure):
    _fields_ = [
        *((n, c_void_p) for n in ("means", "means2d", "absolute2d", "opacities", "shs", "colors")),
        *((n, c_void_p) for n in ("scales", "rotations", "covariances")),
        ("means2d_stride", c_int64),
    ]


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor's data; None for None."""
    return None if tensor is None else tensor.data_ptr()


def gaussians(inputs: dict[str, Tensor | None]) -> CGaussians:
    """`inputs`: contiguous, by the names of INPUTS."""

    def sets(*names: str) -> int:
        return next((len(inputs[name]) for name in names if inputs[name] is not None), 1)

    shs = inputs["shs"]
    return CGaussians(
        inputs["means3D"].shape[0],
        0 if shs is None else shs.shape[1],
        sets("colors"),
        sets("scales", "covariances"),
        *(pointer(inputs[n]) for n in INPUTS if n != "means2D"),
    )


def views(given: Views, degrees: Tensor) -> tuple[CViews, list[Tensor]]:
    """`degrees`: (C,) int32. The tensors must outlive the structure."""
    kept = [
        t.contiguous() for t in (given.viewmatrix, given.projmatrix, given.campos, given.bg, given.tanfov)
    ]
    kept.append(degrees)
    described = CViews(
        len(given), given.width, given.height, given.scale_modifier, given.antialiasing, *map(pointer, kept)
    )
    return described, kept


def gradients(out: dict[str, Tensor | None], absolute: Tensor | None, stride: int) -> CGradients:
    """`out`: gradients by the names of INPUTS; `stride`: columns of `means2D`."""
    return CGradients(
        *map(pointer, (out["means3D"], out["means2D"], absolute)),
        *(pointer(out[name]) for name in INPUTS[2:]),
        stride,
    )
