"""Triangles on a raster: which one covers the middle of each pixel, and where in it; for views and for textures."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dreammapping.mesh.views import project
from scene.cameras import Cameras

PAIRS = 4_000_000
"""Pixels of the triangles' boxes that are looked at in one go; each takes about 150 bytes."""


@dataclass(frozen=True, eq=False)
class Raster:
    """Of each pixel the triangle that covers it, -1 for none, the weights of its corners, and its distance (inf)."""

    faces: Int[Tensor, "H W"]
    weights: Float[Tensor, "H W 3"]
    depths: Float[Tensor, "H W"]

    def values(self, per_vertex: Float[Tensor, "V C"], corners: Int[Tensor, "F 3"]) -> Float[Tensor, "P C"]:
        """What vertices have, at the covered pixels in their order."""
        covered = self.faces >= 0
        return torch.einsum("pv,pvc->pc", self.weights[covered], per_vertex[corners[self.faces[covered]]])


def rasterise(
    corners: Float[Tensor, "F 3 2"], depths: Float[Tensor, "F 3"], height: int, width: int
) -> Raster:
    """Draw triangles, the nearest in front.

    Args:
        corners: in pixels; the middle of the first pixel is at (0.5, 0.5).
        depths: distances of the corners, over 0, by which weights and depths are right in perspective; those of a
            triangle with one that is not are not drawn.
    """
    device = corners.device
    best = torch.full((height * width,), torch.inf, device=device)
    faces = torch.full((height * width,), -1, dtype=torch.int64, device=device)
    weights = torch.zeros(height * width, 3, device=device)
    limits = torch.tensor([width - 1, height - 1], device=device)
    low = (corners.amin(dim=1) - 0.5).ceil().clamp_min(0).long()
    high = torch.minimum((corners.amax(dim=1) - 0.5).floor(), limits).long()
    sides = (high - low + 1).clamp_min(0) * (depths > 0).all(dim=1, keepdim=True)
    counts = sides.prod(dim=1)
    drawn = counts.nonzero()[:, 0]
    chunks = counts[drawn].cumsum(0) // PAIRS
    for chunk in chunks.unique().tolist():
        chosen = drawn[chunks == chunk]
        face = chosen.repeat_interleave(counts[chosen])
        ends = counts[chosen].cumsum(0)
        within = torch.arange(len(face), device=device) - (ends - counts[chosen]).repeat_interleave(
            counts[chosen]
        )
        x = low[face, 0] + within % sides[face, 0]
        y = low[face, 1] + within // sides[face, 0]
        shares = _shares(corners[face], torch.stack([x, y], dim=1) + 0.5)
        hit = (shares >= 0).all(dim=1)
        face, pixel, shares = face[hit], (y * width + x)[hit], shares[hit]
        by_depth = shares / depths[face]
        depth = 1 / by_depth.sum(dim=1)
        best.scatter_reduce_(0, pixel, depth, "amin")
        front = depth == best[pixel]
        pixel, face = pixel[front], face[front]
        faces[pixel] = face
        weights[pixel] = (by_depth * depth[:, None])[front]
    return Raster(faces.view(height, width), weights.view(height, width, 3), best.view(height, width))


def rasterise_view(
    vertices: Float[Tensor, "V 3"], corners: Int[Tensor, "F 3"], cameras: Cameras, *, supersampling: int = 1
) -> Raster:
    """Draw a mesh as the only camera of `cameras` sees it."""
    height, width = cameras.height * supersampling, cameras.width * supersampling
    at, depths = project(cameras, vertices)
    pixels = (at + 1) / 2 * torch.tensor([width, height], device=at.device)
    return rasterise(pixels[corners], depths[corners], height, width)


def _shares(corners: Float[Tensor, "P 3 2"], at: Float[Tensor, "P 2"]) -> Float[Tensor, "P 3"]:
    """Barycentric weights of places in triangles; negative outside, of flat triangles always."""
    first, second, third = corners.unbind(1)

    def area(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])

    whole = area(first, second, third)
    parts = torch.stack([area(second, third, at), area(third, first, at), area(first, second, at)], dim=1)
    shares = parts / torch.where(whole == 0, 1.0, whole)[:, None]
    return torch.where((whole != 0)[:, None], shares, -1.0)
