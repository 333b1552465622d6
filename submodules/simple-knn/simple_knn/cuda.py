"""The search on a CUDA device (`csrc/kernels.cu`), compiled at first use by NVRTC. The host does not wait for it."""

import functools
import logging
from contextlib import AbstractContextManager
from ctypes import Structure, c_int, c_longlong, c_void_p
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from simple_knn import nvrtc

logger = logging.getLogger(__name__)

THREADS = 128
FAN, MAX_LEVELS = 32, 8
BOX_FLOATS = 6


class Kernels(Protocol):
    """What runs a kernel; `nvrtc.Module`, or the emulation of the tests."""

    def launching(self, argument: Structure) -> AbstractContextManager[nvrtc.Launch]: ...


class CFrame(Structure):
    """`KnnFrame` of the kernels."""

    _fields_ = [
        *((n, c_void_p) for n in ("points", "bounds", "codes", "order", "ordered", "boxes", "out")),
        ("count", c_longlong),
        ("starts", c_longlong * (MAX_LEVELS + 1)),
        ("levels", c_int),
        ("level", c_int),
        ("neighbors", c_int),
    ]


@functools.cache
def _compiled(device: torch.device) -> Kernels:
    return nvrtc.Module(Path(__file__).with_name("csrc") / "kernels.cu", device)


def _kernels(device: torch.device) -> Kernels:
    return _compiled(device)


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on this device; logs one warning if they do not."""
    try:
        _kernels(device)
    except nvrtc.Unavailable as error:
        logger.warning("the CUDA neighbour search is missing (%s): all pairs are compared by PyTorch", error)
        return False
    return True


def mean_squared_distances(points: Tensor, neighbors: int) -> Tensor:
    """(P,) from contiguous finite (P, 3) with P > `neighbors`; `neighbors` is 1 to 3."""
    kernels, count = _kernels(points.device), len(points)
    starts, boxes = [0], count
    while boxes > 1 or len(starts) == 1:
        boxes = -(-boxes // FAN)
        starts.append(starts[-1] + boxes)
    levels = len(starts) - 1
    out = torch.empty_like(points[:, 0])
    bounds = torch.stack([points.amin(0), points.amax(0)])
    codes = torch.empty(count, dtype=torch.int64, device=points.device)
    tree = points.new_empty(starts[-1], BOX_FLOATS)
    frame = CFrame(
        *(
            points.data_ptr(),
            bounds.data_ptr(),
            codes.data_ptr(),
            None,
            None,
            tree.data_ptr(),
            out.data_ptr(),
        ),
        count=count,
        starts=(c_longlong * (MAX_LEVELS + 1))(*starts),
        levels=levels,
        neighbors=neighbors,
    )

    with kernels.launching(frame) as launch:
        launch("knn_codes", -(-count // THREADS), THREADS)
    order = torch.argsort(codes)
    ordered = points[order]
    frame.order, frame.ordered = order.data_ptr(), ordered.data_ptr()
    with kernels.launching(frame) as launch:
        for level in range(levels):
            frame.level = level
            launch("knn_boxes", -(-(starts[level + 1] - starts[level]) // THREADS), THREADS)
        launch("knn_search", -(-count // THREADS), THREADS)
    return out
