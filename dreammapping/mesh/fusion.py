"""From depths of many views to one closed surface: a truncated signed distance field (Curless and Levoy, 1996).

Each view says of a point how far before or behind the surface it lies along the view axis; points far behind it are
hidden, and it says nothing of them. Where its picture is empty, the point is outside, at least as far as from the
outline in the picture. What no view speaks of is inside, so the surface has no holes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from dreammapping.mesh.rasterise import rasterise_view
from dreammapping.mesh.views import Seen, project, sample, unproject
from utils.errors import UserError

TRUNCATION = 0.1
"""Share of the object's longest side before and behind the surface within which views are averaged: as much as views of
translucent Gaussians differ."""
COARSE = 4
"""Voxels of a side of the blocks that are looked at first."""
SMALL_PIECE = 0.02
"""Pieces with less than this share of the largest piece's volume are floaters."""
SHIFTS = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.3)
"""Truncations that the surface may be moved outwards by: from the side, where light passes more of it, the fringe of a
translucent object is opaque. The outlines of the views decide."""
OUTLINES = 8
"""Views whose outlines are looked at."""
MARGIN = 3
"""Empty voxels, at least, around the object."""
SMOOTHING = 0.01
"""Standard deviation, as a share of the longest side, by which the field is smoothed: what is left of the noise of
single views."""


@dataclass(frozen=True)
class Grid:
    """Voxels with corners in the world: `origin` + `side` times their index; `resolution` of them along the object."""

    origin: Float[np.ndarray, "3"]
    side: float
    resolution: int
    shape: tuple[int, int, int]

    def points(self, indices: Int[np.ndarray, "P 3"]) -> Float[np.ndarray, "P 3"]:
        return (self.origin + self.side * indices).astype(np.float32)


def fuse(
    seen: Seen, resolution: int, progress: Callable[[], None] = lambda: None
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """The surface that views see: vertices in the world, and triangles whose normals point outwards.

    Args:
        resolution: voxels along the object's longest side.
        progress: called once a view.

    Raises:
        UserError: no view shows anything, or scikit-image is missing.
    """
    grid = _around_the_object(seen, resolution)
    field = _distances(seen, grid, progress)
    field = ndimage.gaussian_filter(_one_body(field), SMOOTHING * resolution, mode="constant", cval=1.0)
    surfaces = [extract(field, grid, shift) for shift in SHIFTS]
    return min(surfaces, key=lambda surface: _disagreement(seen, *surface))


def extract(
    field: Float[np.ndarray, "X Y Z"], grid: Grid, level: float = 0.0
) -> tuple[Float[np.ndarray, "V 3"], Int[np.ndarray, "F 3"]]:
    """The surface where a field, lower inside, has a level below 1; closed, since all around the field is outside."""
    measure = library()
    padded = np.pad(field, 1, constant_values=1.0)
    # A value on the level would put the corners of triangles onto one place, and what is closed there no edge tells.
    padded = np.where(np.abs(padded - level) < 1e-3, np.float32(level - 1e-3), padded)
    vertices, faces, *_ = measure.marching_cubes(padded, level, gradient_direction="descent")
    return grid.origin + grid.side * (vertices.astype(np.float64) - 1), faces.astype(np.int64)


def _disagreement(seen: Seen, vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> float:
    """Sum of squared differences of the alphas of a surface and of views."""
    places = torch.from_numpy(vertices.astype(np.float32)).to(seen.images.device)
    corners = torch.from_numpy(faces).to(seen.images.device)
    total = 0.0
    for view in list(seen.each())[:: max(len(seen) // OUTLINES, 1)]:
        covered = rasterise_view(places, corners, view.cameras).faces >= 0
        total += float((covered.float() - view.alphas[0, 0]).square().sum())
    return total


def library() -> Any:
    """scikit-image's measures. Raises UserError where it is missing."""
    try:
        from skimage import measure
    except ImportError as error:
        raise missing("scikit-image") from error
    return measure


def missing(library: str) -> UserError:
    return UserError(
        f"mesh: needs {library}, which is not installed; run `python -m pip install -c constraints.txt .`"
    )


def _around_the_object(seen: Seen, resolution: int) -> Grid:
    points = [unproject(view.cameras, _covered_depths(view)) for view in seen.each()]
    found = torch.cat(points)
    if len(found) == 0:
        raise UserError(
            "mesh: expected an object in sight, got views in which nothing is opaque; train it longer"
        )
    low, high = found.amin(dim=0).cpu().double().numpy(), found.amax(dim=0).cpu().double().numpy()
    side = max(float((high - low).max()), 1e-6) / resolution
    margin = MARGIN + math.ceil(SHIFTS[-1] * TRUNCATION * resolution)
    shape = np.ceil((high - low) / side).astype(int) + 1 + 2 * margin
    shape = -(-shape // COARSE) * COARSE
    return Grid(low - margin * side, side, resolution, tuple(int(each) for each in shape))


def _covered_depths(view: Seen) -> Float[Tensor, "1 1 H W"]:
    return torch.where(view.alphas > 0.5, view.depths, torch.inf)


def _distances(seen: Seen, grid: Grid, progress: Callable[[], None]) -> Float[np.ndarray, "X Y Z"]:
    """Means over the views, from -1 (inside) to 1, in truncations: first of blocks, then near the surface."""
    truncation = TRUNCATION * grid.side * grid.resolution
    blocks = tuple(side // COARSE for side in grid.shape)
    middles = np.stack(np.meshgrid(*map(np.arange, blocks), indexing="ij"), axis=-1).reshape(-1, 3)
    centers = grid.points(middles * COARSE + (COARSE - 1) / 2)
    coarse = _mean_distances(seen, centers, truncation).reshape(blocks)
    around = np.ones((3, 3, 3), dtype=bool)
    border = ndimage.binary_dilation(coarse < 0, around) & ndimage.binary_dilation(coarse > 0, around)
    near = ndimage.binary_dilation(border | (np.abs(coarse) * truncation < COARSE * grid.side), around)
    field = _larger(coarse)
    indices = np.argwhere(_larger(near))
    field[tuple(indices.T)] = _mean_distances(seen, grid.points(indices), truncation, progress)
    return field


def _larger(blocks: np.ndarray) -> np.ndarray:
    for axis in range(3):
        blocks = blocks.repeat(COARSE, axis=axis)
    return blocks


def _mean_distances(
    seen: Seen,
    points: Float[np.ndarray, "P 3"],
    truncation: float,
    progress: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "P"]:
    device = seen.images.device
    places = torch.from_numpy(points).to(device)
    sums, counts = torch.zeros(len(places), device=device), torch.zeros(len(places), device=device)
    in_sight = torch.zeros(len(places), dtype=torch.bool, device=device)
    for view in seen.each():
        at, distances = project(view.cameras, places)
        covered = (view.depths.isfinite() & (view.alphas > 0.5)).float()
        maps = torch.cat([torch.where(covered > 0, view.depths, 0.0), covered, _outside(covered)], dim=1)
        depth, share, outside = sample(maps, at).unbind(1)
        within = (at.abs() <= 1).all(dim=1)
        width = distances * 2 * (view.cameras.fov_x[0] / 2).tan()  # of what is in sight at that distance
        before = (
            torch.where(share > 0.5, depth / share.clamp_min(0.5) - distances, outside * width) / truncation
        )
        told = within & (before > -1)
        weight = torch.where(told, (1 + before).clamp(max=1), 0.0)
        sums += weight * before.clamp(max=1)
        counts += weight
        in_sight |= within
        progress()
    means = torch.where(counts > 1e-3, sums / counts.clamp_min(1e-6), -1.0)
    return torch.where(in_sight, means, 1.0).cpu().numpy()


def _outside(covered: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "1 1 H W"]:
    """Distance of pixels to the nearest covered one, less half a pixel, as a share of the picture's width."""
    empty = (covered[0, 0] == 0).byte().cpu().numpy()
    if empty.all():
        return torch.ones_like(covered)
    found = (
        np.maximum(cv2.distanceTransform(empty, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5, 0) / empty.shape[1]
    )
    return torch.from_numpy(found.astype(np.float32)).to(covered.device)[None, None]


def _one_body(field: Float[np.ndarray, "X Y Z"]) -> Float[np.ndarray, "X Y Z"]:
    """The field without floaters and without hollows that nothing leads into."""
    inside = field < 0
    labels, count = ndimage.label(inside)  # pyright: ignore[reportGeneralTypeIssues]
    if count == 0:
        raise UserError(
            "mesh: expected a solid object, got views that agree on none; try a smaller --resolution"
        )
    volumes = np.bincount(labels.ravel())
    volumes[0] = 0
    kept: Bool[np.ndarray, "X Y Z"] = (volumes >= SMALL_PIECE * volumes.max())[labels] & inside
    field = np.where(inside & ~kept, 1.0, field)
    return np.where(ndimage.binary_fill_holes(kept) & ~kept, -1.0, field).astype(np.float32)
