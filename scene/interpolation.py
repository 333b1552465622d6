"""Trilinear interpolation in tables: eight rows a point, weighed and summed, of a dense grid or of a hashed one.

Points have their components first, `(3, P)`: each is one run of memory, which a CPU passes at its full width.
"""

from typing import Any

import torch
from diff_gaussian_rasterization import trilinear
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def cell_of(points: Float[Tensor, "3 P"], resolution: int) -> tuple[Int[Tensor, "3 P"], Float[Tensor, "3 P"]]:
    """The cell of a lattice of `resolution` vertices a side that each point of [0, 1]³ lies in, and where in it.

    Points outside are moved to the nearest cell's edge.
    """
    scaled = points.clamp(0.0, 1.0) * (resolution - 1)
    low = scaled.floor().clamp_(max=resolution - 2)
    return low.int(), scaled.sub_(low)


def corner_weights(inside: Float[Tensor, "3 P"]) -> Float[Tensor, "8 P"]:
    """Trilinear weights of a cell's corners, the last axis fastest."""
    other = 1 - inside
    across = torch.stack([low * high for low in (other[0], inside[0]) for high in (other[1], inside[1])])
    along = torch.stack([other[2], inside[2]])
    return (across[:, None] * along[None]).flatten(0, 1)


def dense_corners(low: Int[Tensor, "3 P"], resolution: int) -> Int[Tensor, "8 P"]:
    """Rows of a lattice's corners in a table in which the last axis runs fastest."""
    first = (low[0] * resolution + low[1]).mul_(resolution).add_(low[2])
    steps = [(x * resolution + y) * resolution + z for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    return first[None] + torch.tensor(steps, dtype=torch.int32, device=low.device)[:, None]


def interpolate(table: Float[Tensor, "V C"], points: Float[Tensor, "3 P"]) -> Float[Tensor, "P C"]:
    """A dense grid's rows between its vertices, at points of [0, 1]³, with gradient to the table alone.

    On a CPU it is one pass over the points, compiled, where it was built for these tensors; that answers a point which
    is no number for an edge, where PyTorch raises.
    """
    if trilinear.fits(table, points):
        return trilinear.interpolate(table, points)
    resolution = round(len(table) ** (1 / 3))
    low, inside = cell_of(points, resolution)
    return gather(table, dense_corners(low, resolution), corner_weights(inside))


def gather(
    table: Float[Tensor, "V C"], rows: Int[Tensor, "8 P"], weights: Float[Tensor, "8 P"]
) -> Float[Tensor, "P C"]:
    """Σ_k weights[k] table[rows[k]] for each point, with gradient to the table alone.

    `grid_sample` gives the same of a dense grid; its backward pass on a CPU is scalar, on one core for one grid.
    """
    return _Gather.apply(table, rows, weights)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        rows, weights = rows.t().contiguous(), weights.t().contiguous()
        ctx.save_for_backward(rows, weights)
        ctx.shape = table.shape
        return F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, weights = ctx.saved_tensors
        if gradient.device.type == "cpu":  # what lies behind a surface has none, and is half of all points
            alive = gradient.any(dim=1).nonzero().squeeze(1)
            rows, weights, gradient = (each.index_select(0, alive) for each in (rows, weights, gradient))
        flat = rows.view(-1).long()
        columns = [
            gradient.new_zeros(ctx.shape[0]).scatter_add_(0, flat, (weights * column).view(-1))
            for column in gradient.split(1, dim=1)
        ]
        return torch.stack(columns, dim=1), None, None
