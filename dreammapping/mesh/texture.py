"""A texture: views projected onto a surface, where they see it, and blended."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from scipy.spatial import cKDTree
from torch import Tensor

from dreammapping.mesh.fusion import missing
from dreammapping.mesh.rasterise import rasterise, rasterise_view
from dreammapping.mesh.surface import Surface
from dreammapping.mesh.views import Seen, project, sample

GUTTER = 4
"""Pixels around each patch that are filled, so that smaller versions of the texture show no seams."""
FACING = 3.0
"""Views count by this power of the cosine at which they meet the surface: the straightest, and sharpest, most."""
EDGE = 2
"""Pixels beside a step in depth that show a mixture of two surfaces."""
MIXED = 1e-4
"""What such pixels count: nothing, but where a place has no others."""
LARGEST_STEP = 4.0
"""Pixels' widths of depth between neighbours from which they are a step, and by which a place may lie behind."""


@dataclass(frozen=True)
class Textured:
    """A surface cut open into patches, and its picture.

    Vertices lie twice where patches meet; `of_surface` says which of the surface's each one is. `uv` runs from 0 to 1,
    from the upper left corner of `picture`, which is sRGB.
    """

    surface: Surface
    faces: Int[np.ndarray, "F 3"]
    of_surface: Int[np.ndarray, "W"]
    uv: Float[np.ndarray, "W 2"]
    picture: UInt8[np.ndarray, "S T 3"]

    @property
    def vertices(self) -> Float[np.ndarray, "W 3"]:
        return self.surface.vertices[self.of_surface]


def paint(seen: Seen, surface: Surface, size: int, progress: Callable[[], None] = lambda: None) -> Textured:
    """Unwrap a surface and give it the colours that views see.

    Args:
        size: pixels of a side of the texture.
        progress: called once a view.

    Raises:
        UserError: xatlas is missing.
    """
    of_surface, faces, uv = _unwrap(surface, size)
    device = seen.images.device
    corners = torch.from_numpy(faces).to(device)
    vertices = torch.from_numpy(surface.vertices[of_surface].astype(np.float32)).to(device)
    normals = torch.from_numpy(surface.normals[of_surface].astype(np.float32)).to(device)
    places = torch.from_numpy(uv.astype(np.float32)).to(device) * size
    raster = rasterise(places[corners], torch.ones(len(faces), 3, device=device), size, size)
    colors = _blend(
        seen,
        (vertices, corners),
        raster.values(vertices, corners),
        F.normalize(raster.values(normals, corners), dim=1),
        progress,
    )
    picture = _fill((raster.faces >= 0).cpu().numpy(), colors)
    return Textured(surface, faces, of_surface, uv, picture)


def _unwrap(
    surface: Surface, size: int
) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "F 3"], Float[np.ndarray, "W 2"]]:
    try:
        import xatlas
    except ImportError as error:
        raise missing("xatlas") from error
    atlas = xatlas.Atlas()
    atlas.add_mesh(surface.vertices.astype(np.float32), surface.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution = size
    packing.padding = GUTTER
    charts = xatlas.ChartOptions()
    charts.max_iterations = 2
    atlas.generate(charts, packing)
    of_surface, faces, uv = atlas[0]
    return of_surface.astype(np.int64), faces.astype(np.int64), uv.astype(np.float64)


def _blend(
    seen: Seen,
    mesh: tuple[Float[Tensor, "W 3"], Int[Tensor, "F 3"]],
    places: Float[Tensor, "P 3"],
    normals: Float[Tensor, "P 3"],
    progress: Callable[[], None],
) -> Float[Tensor, "P 3"]:
    """Means of the colours that views have at places; places that none sees have those of the nearest that one sees."""
    sums = places.new_zeros(len(places), 3)
    weights = places.new_zeros(len(places))
    for view in seen.each():
        cameras = view.cameras
        depths = rasterise_view(*mesh, cameras).depths[None, None]
        at, distances = project(cameras, places)
        pixel = 2 * (cameras.fov_x[0] / 2).tan() * distances / cameras.width
        clear = torch.where(_mixed(depths, float(LARGEST_STEP * pixel.median())), MIXED, 1.0)
        shown = depths.nan_to_num(posinf=1e6)
        front = F.grid_sample(shown, at[None, None], mode="nearest", align_corners=False)[0, 0, 0]
        found = sample(torch.cat([view.images, view.alphas, clear], dim=1), at)
        facing = (normals * F.normalize(cameras.centers - places, dim=1)).sum(dim=1).clamp_min(0)
        visible = (at.abs() < 1).all(dim=1) & (distances < front + LARGEST_STEP * pixel)
        weight = visible * facing**FACING * found[:, 4]
        sums += weight[:, None] * found[:, :3]
        weights += weight * found[:, 3]
        progress()
    known = weights > 1e-9
    colors = sums / weights[:, None].clamp_min(1e-12)
    if not bool(known.all()) and bool(known.any()):
        tree = cKDTree(places[known].cpu().numpy())
        _, nearest = tree.query(places[~known].cpu().numpy())
        colors[~known] = colors[known][torch.from_numpy(nearest).to(colors.device)]
    return colors.clamp(0, 1)


def _mixed(depths: Float[Tensor, "1 1 H W"], step: float) -> Bool[Tensor, "1 1 H W"]:
    """Pixels beside a step in depth."""
    window = 2 * EDGE + 1
    shown = depths.nan_to_num(posinf=1e6)
    farthest = F.max_pool2d(shown, window, stride=1, padding=EDGE)
    nearest = -F.max_pool2d(-shown, window, stride=1, padding=EDGE)
    return farthest - nearest > step * window / 3


def _fill(covered: Bool[np.ndarray, "S S"], colors: Float[Tensor, "P 3"]) -> UInt8[np.ndarray, "S S 3"]:
    """The texture, with a gutter around its patches; the rest, which nothing shows, is their mean."""
    pixels = (colors * 255).round().byte().cpu().numpy()
    picture = np.empty((*covered.shape, 3), dtype=np.uint8)
    picture[:] = pixels.mean(axis=0).round() if len(pixels) else 127
    picture[covered] = pixels
    near = cv2.dilate(covered.astype(np.uint8), np.ones((2 * GUTTER + 1,) * 2, np.uint8)).astype(bool)
    return cv2.inpaint(picture, (near & ~covered).astype(np.uint8), 3, cv2.INPAINT_TELEA)
