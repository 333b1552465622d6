"""Points where they can do harm: far beyond all others (a scanner's errors, corners that somebody lost), or all so far
from the origin that their file has rounded them."""

import logging
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

log = logging.getLogger(__name__)

MOST = 0.1
"""Share of all points, at most, that can be strays."""
FAR = 100.0
"""Beside a point so many times as far from the middle as the others reach, these are no more than a dot."""
COARSE = 1e-3
"""Share of a shape's length that a step between its numbers may be."""


def strays(points: Float[Tensor, "N 3"]) -> Bool[Tensor, " N"]:
    """Which points lie more than `FAR` times as far from the middle as those do that are no strays for sure."""
    if not len(points):
        return torch.zeros(0, dtype=torch.bool, device=points.device)
    away = (points - points.median(dim=0).values).abs().amax(dim=1)
    reach = away.kthvalue(1 + int((1 - MOST) * (len(points) - 1))).values
    return (away > FAR * reach) & (reach > 0)


def warn_of_strays(path: Path | str, count: int, of: int, what: str) -> None:
    """Say how many points of a file are left out, and what to do where they are meant."""
    log.warning(
        "%s: %d of %d %s lie more than %d times as far out as the rest, which would be a dot beside them, and are left "
        "out; move them nearer if they belong to the shape",
        path, count, of, what, FAR,
    )  # fmt: skip


def warn_of_rounding(path: Path | str, points: Float[Tensor, "N 3"]) -> None:
    """Say of numbers that a file holds as float32 that they lie too far from the origin to keep their shape."""
    exact = points.double()
    if not len(points) or not torch.equal(exact.float().double(), exact):
        return
    side = float((exact.amax(dim=0) - exact.amin(dim=0)).max())
    far = float(exact.abs().max())
    step = far * torch.finfo(torch.float32).eps
    if 0 < COARSE * side < step:  # what has no size is refused as that
        log.warning(
            "%s: holds float32, which has steps of %.2g at %g units from the origin, and is %g units long, so its "
            "shape is rounded; save it nearer to the origin, or with doubles",
            path, step, far, side,
        )  # fmt: skip
