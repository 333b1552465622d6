"""Trilinear interpolation in a dense grid on the CPU's threads (`csrc/trilinear.cpp`), for what is no Gaussian.

It shares the rasterizer's library and threads; `grid_sample`'s backward pass is scalar, on one core for one grid.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from diff_gaussian_rasterization import cpu

CHANNELS = 4


@torch.compiler.disable
def fits(table: Tensor, points: Tensor) -> bool:
    """Whether `interpolate` takes tensors like these, and was built; fake ones have no memory."""
    return (
        type(table) in (Tensor, torch.nn.Parameter)
        and type(points) is Tensor
        and cpu.fits(table)
        and cpu.fits(points)
        and table.shape[1:] == (CHANNELS,)
        and points.ndim == 2
        and len(points) == 3
        and not points.requires_grad
        and cpu.available()
    )


@torch.compiler.disable(recursive=True)  # what the kernel does cannot be traced
def interpolate(table: Float[Tensor, "V 4"], points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 4"]:
    """Rows between the vertices of a grid of V = R³, R at least 2, last axis fastest; with gradient to the table alone.

    The bits do not depend on the number of threads.

    Args:
        points: in [0, 1]³; others are answered for their nearest ones, and what is no number for an edge.

    Raises:
        ValueError: the table is no cube, or `fits` is false.
        RuntimeError: out of memory.
    """
    if not fits(table, points):
        raise ValueError(
            "expected float32 tensors on the CPU, a table of (R³, 4) and points of (3, P) without gradient, and the "
            f"compiled kernel; got {_told(table)} and {_told(points)}"
        )
    side = round(len(table) ** (1 / 3))
    if side < 2 or side**3 != len(table):
        raise ValueError(f"table: expected R³ rows, R at least 2, got {len(table)}")
    return _Interpolate.apply(table, points, side)


def _told(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"


def _check(status: int) -> None:
    if status == cpu.OUT_OF_MEMORY:
        raise RuntimeError("interpolate: out of memory; ask for fewer points at once")


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, table: Tensor, points: Tensor, side: int) -> Tensor:
        table, points = table.contiguous(), points.contiguous()
        out = table.new_empty(points.shape[1], CHANNELS)
        cpu.rest_torch_threads()
        _check(
            cpu.kernel().gs_interpolate(
                *(table.data_ptr(), side, points.data_ptr(), points.shape[1]),
                *(cpu.get_num_threads(), out.data_ptr()),
            )
        )
        ctx.save_for_backward(points)
        ctx.side = side
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        (points,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = gradient.new_empty(ctx.side**3, CHANNELS)
        cpu.rest_torch_threads()
        _check(
            cpu.kernel().gs_interpolate_backward(
                *(points.data_ptr(), gradient.data_ptr(), points.shape[1], ctx.side),
                *(cpu.get_num_threads(), out.data_ptr()),
            )
        )
        return out, None, None
