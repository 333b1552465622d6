"""`distCUDA2`, under the name that the field's code imports; it runs wherever the points are."""

import ctypes
import functools
import logging
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from simple_knn import cuda

logger = logging.getLogger(__name__)

NEIGHBORS = 3
PAIRS_AT_ONCE = 1 << 26
"""Distances that are held in memory at once where PyTorch compares all pairs."""


@torch.no_grad()
def distCUDA2(points: Float[Tensor, "P 3"]) -> Float[Tensor, "P"]:
    """Mean of the squared distances from each point to its three nearest other points, exact.

    Duplicates are other points, at distance 0. With fewer than four points the mean is over those others that there
    are; a single point gets 0.

    Args:
        points: (P, 3) float32 on a CPU or a GPU.

    Raises:
        TypeError, ValueError: not such a tensor, or one with a NaN or an infinity.
    """
    if not isinstance(points, Tensor):
        raise TypeError(f"points: expected a torch.Tensor, got {type(points).__name__}")
    if points.dtype != torch.float32:
        raise TypeError(f"points: expected float32, got {points.dtype}")
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points: expected shape (P, 3), got {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("points: expected finite numbers, got NaN or infinity")
    points = points.detach().contiguous()
    neighbors = min(NEIGHBORS, len(points) - 1)
    if neighbors < 1:
        return torch.zeros_like(points[:, 0])
    if points.device.type != "cpu":
        if points.device.type == "cuda" and cuda.available(points.device):
            return cuda.mean_squared_distances(points, neighbors)
        return _by_all_pairs(points, neighbors)
    library = _library()
    if library is None:
        return _by_scipy(points, neighbors)
    out = torch.empty_like(points[:, 0])
    if library.knn_mean_squared_distances(
        points.data_ptr(), len(points), torch.get_num_threads(), out.data_ptr()
    ):
        raise RuntimeError("distCUDA2: out of memory")
    return out


@functools.cache
def _library() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("libneighbors" + (".dll" if sys.platform == "win32" else ".so"))
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("the compiled neighbour search is missing (%s): the slower scipy is used", error)
        return None
    library.knn_mean_squared_distances.argtypes = [
        *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p),
    ]
    return library


def _by_scipy(points: Tensor, neighbors: int) -> Tensor:
    from scipy.spatial import cKDTree  # takes as long to import as the search of 100,000 points

    coordinates = points.double().numpy()
    distances, _ = cKDTree(coordinates).query(coordinates, k=neighbors + 1, workers=torch.get_num_threads())
    return torch.from_numpy((distances[:, 1:] ** 2).mean(axis=1)).float()


def _by_all_pairs(points: Tensor, neighbors: int) -> Tensor:
    rows = max(1, PAIRS_AT_ONCE // len(points))
    means = []
    for chunk in points.split(rows):
        # Differences, not products: nearby points far from the origin would cancel.
        distances = torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(neighbors + 1, largest=False).values[:, 1:]
        means.append(nearest.square().mean(1))
    return torch.cat(means)
