"""The compiled CPU kernel, called through its plain C interface (`csrc/rasterizer.h`)."""

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diff_gaussian_rasterization import structures
from diff_gaussian_rasterization.inputs import CALLED, Gaussians, Views, require_finite
from diff_gaussian_rasterization.reference import Outputs
from diff_gaussian_rasterization.structures import INPUTS, CGaussians, CGradients, CImages, CViews, pointer

logger = logging.getLogger(__name__)

_threads: int | None = None

_NOT_FINITE, OUT_OF_MEMORY, _TOO_MANY_PAIRS = 1, 2, 3
_SOFT_PAUSE = 1
_PROCESS = os.getpid()


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """The compiled library; None, with one warning, where it was not built."""
    path = Path(__file__).with_name("libgaussians" + (".dll" if sys.platform == "win32" else ".so"))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning(
            "the compiled CPU rasterizer is missing (%s): the PyTorch path is used and takes 70 to 332 times as long; "
            "radiance fields take longer, too; reinstall diff-gaussian-rasterization where a C++ compiler is found, or "
            "the network, to fetch one",
            error,
        )
        return None
    library.gs_forward.argtypes = [
        *(POINTER(CGaussians), POINTER(CViews), c_int, POINTER(CImages), c_void_p, POINTER(c_void_p)),
    ]
    library.gs_backward.argtypes = [
        *(c_void_p, POINTER(CGaussians), POINTER(CViews), c_int),
        *(POINTER(CImages), POINTER(CImages), POINTER(CGradients)),
    ]
    library.gs_release.argtypes, library.gs_release.restype = [c_void_p], None
    library.gs_interpolate.argtypes = [c_void_p, c_int32, c_void_p, c_int64, c_int, c_void_p]
    library.gs_interpolate_backward.argtypes = [c_void_p, c_void_p, c_int64, c_int32, c_int, c_void_p]
    library.gs_instruction_sets.restype = c_char_p
    library.gs_use_instruction_set.argtypes = [c_char_p]
    return library


def available() -> bool:
    """Whether the compiled CPU kernel was built; logs one warning if it was not."""
    return kernel() is not None


def fits(tensor: Tensor) -> bool:
    """Whether the kernel takes tensors like this one."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32


def set_num_threads(threads: int | None) -> None:
    """Threads of the CPU kernel; None: as many as torch has (`torch.get_num_threads()`). Results do not depend on it.

    Raises:
        ValueError: fewer than one.
    """
    global _threads
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"set_num_threads: expected 1 to 1024 threads, or None, got {threads}")
    _threads = threads


def get_num_threads() -> int:
    """Threads that the CPU kernel uses."""
    return _threads if _threads is not None else torch.get_num_threads()


@functools.cache
def _openmp_pause() -> Callable[[int], int] | None:
    """OpenMP 5.0's `omp_pause_resource_all` of the library that torch uses; None where there is none."""
    try:
        return ctypes.CDLL(None).omp_pause_resource_all
    except (AttributeError, OSError, TypeError):  # an older library, or Windows
        return None


def rest_torch_threads() -> None:
    """Ends torch's idle threads, or lets them sleep; torch starts them again by itself.

    They spin for milliseconds after each of its operations, on the cores that the kernel's own threads need. In a
    forked process none of them is left, and OpenMP would wait for them for ever.
    """
    pause = _openmp_pause()
    if pause is not None and get_num_threads() > 1 and os.getpid() == _PROCESS:
        pause(_SOFT_PAUSE)


def instruction_sets() -> tuple[str, ...]:
    """Builds of the kernel that this machine can run, best first; empty if there is none."""
    library = kernel()
    return tuple(library.gs_instruction_sets().decode().split()) if library else ()


def use_instruction_set(name: str) -> None:
    """Makes all later calls use one of `instruction_sets()`; the first is used unless told otherwise.

    Raises:
        ValueError: there is none of that name.
    """
    library = kernel()
    if library is None or not library.gs_use_instruction_set(name.encode()):
        raise ValueError(f"use_instruction_set: expected one of {instruction_sets()}, got {name!r}")


def render(gaussians: Gaussians, views: Views, absgrad: bool = False) -> Outputs:
    """Draws every view; as `reference.render`.

    Raises:
        TypeError, ValueError: tensors that are not float32 on the CPU, or with a NaN or an infinity.
        RuntimeError: the kernel was not built, or there is more to draw than fits its indices or the memory.
    """
    if kernel() is None:
        raise RuntimeError(
            'backend "cpu": the compiled rasterizer is missing; reinstall where a C++ compiler is found'
        )
    if gaussians.means3D.device.type != "cpu":
        raise ValueError(f'backend "cpu": expected tensors on the CPU, got {gaussians.means3D.device}')
    if gaussians.means3D.dtype != torch.float32:
        raise TypeError(f'backend "cpu": expected float32, got {gaussians.means3D.dtype}')
    if absgrad:
        gaussians.means2D.absgrad = gaussians.means2D.new_zeros(*gaussians.means2D.shape[:2], 2)
    return Outputs(*_Rasterize.apply(views, absgrad, *(getattr(gaussians, name) for name in INPUTS)))


class _State:
    """What the kernel keeps of a forward call; given back when the last reference goes."""

    def __init__(self) -> None:
        self.handle = c_void_p()

    def __del__(self) -> None:
        if self.handle:
            kernel().gs_release(self.handle)


def _describe(views: Views) -> tuple[CViews, list[Tensor]]:
    return structures.views(views, torch.tensor(views.sh_degrees, dtype=torch.int32, device="cpu"))


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, views: Views, absgrad: bool, *tensors: Tensor | None):
        inputs = {
            name: None if t is None else t.contiguous() for name, t in zip(INPUTS, tensors, strict=True)
        }
        # of the inputs' type and place: a caller may have changed what tensors are by default
        new, size = inputs["means3D"].new_empty, (views.height, views.width)
        color, depth, alpha = (new(len(views), channels, *size) for channels in (3, 1, 1))
        radii = new(len(views), len(inputs["means3D"]), dtype=torch.int32)
        described, kept = _describe(views)
        state = _State()
        rest_torch_threads()
        status = kernel().gs_forward(
            structures.gaussians(inputs),
            described,
            get_num_threads(),
            CImages(*map(pointer, (color, depth, alpha))),
            radii.data_ptr(),
            state.handle if any(ctx.needs_input_grad) else None,
        )
        del kept
        if status == _NOT_FINITE:
            require_finite({CALLED.get(name, name): t for name, t in inputs.items() if t is not None})
            raise ValueError("shs: expected numbers whose spherical-harmonic sum is finite, got an overflow")
        if status == OUT_OF_MEMORY:
            raise RuntimeError(
                "the rasterizer is out of memory: draw fewer or smaller Gaussians, or a smaller image"
            )
        if status == _TOO_MANY_PAIRS:
            raise RuntimeError("more than 2^31 pairs of Gaussian and tile: draw fewer or smaller Gaussians")
        ctx.views, ctx.absgrad, ctx.state = views, tensors[1] if absgrad else None, state
        ctx.save_for_backward(*inputs.values(), color, depth, alpha)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return color, radii, depth, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, g_color, _radii, g_depth, g_alpha):
        *tensors, color, depth, alpha = ctx.saved_tensors
        inputs = dict(zip(INPUTS, tensors, strict=True))
        needed = dict(zip(INPUTS, ctx.needs_input_grad[2:], strict=True))
        out = {name: torch.empty_like(t) if needed[name] else None for name, t in inputs.items()}
        means2d = inputs["means2D"]
        absolute = None if ctx.absgrad is None else means2d.new_empty(*means2d.shape[:2], 2)
        gradients = [None if g is None else g.contiguous() for g in (g_color, g_depth, g_alpha)]
        described, kept = _describe(ctx.views)
        rest_torch_threads()
        status = kernel().gs_backward(
            ctx.state.handle,
            structures.gaussians(inputs),
            described,
            get_num_threads(),
            CImages(*map(pointer, (color, depth, alpha))),
            CImages(*map(pointer, gradients)),
            structures.gradients(out, absolute, means2d.shape[-1]),
        )
        del kept
        if status == OUT_OF_MEMORY:
            raise RuntimeError(
                "the rasterizer is out of memory: draw fewer or smaller Gaussians, or a smaller image"
            )
        if ctx.absgrad is not None:
            ctx.absgrad.absgrad.add_(absolute)
        return None, None, *out.values()
