"""The surface of a radiance field as a mesh: marching cubes (Lewiner et al. 2003) of its density."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scene.radiance_field import RadianceField, vertices
from utils.files import atomic

AT_ONCE = 2**20
"""Points that a field is asked for at a time."""


@dataclass(frozen=True)
class SurfaceMesh:
    """Triangles in the world's frame (z up, front +y), counter-clockwise from outside; colours in [0, 1]."""

    positions: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    colors: Float[Tensor, "V 3"]


@torch.no_grad()
def surface(field: RadianceField, level: float, resolution: int) -> SurfaceMesh | None:
    """Where the density passes `level` (a world unit); None if it never does.

    It is asked for on a grid of `resolution` vertices a side. What reaches the cube's sides is closed there.
    """
    from skimage.measure import marching_cubes

    device = next(field.parameters()).device
    points = vertices(resolution, field.bound).to(device)
    density = torch.cat([field.density(part) for part in points.split(AT_ONCE, dim=1)])
    # an empty shell around it, as wide as a cell, closes what is cut off
    volume = np.pad(density.view((resolution,) * 3).float().cpu().numpy(), 1)
    if not volume.max() > level:
        return None
    spacing = 2 * field.bound / (resolution - 1)
    found, faces, _, _ = marching_cubes(volume, level, gradient_direction="ascent", allow_degenerate=False)
    positions = torch.from_numpy((found - 1) * spacing - field.bound).float()
    colors = [field(part.to(device))[1].cpu() for part in positions.t().contiguous().split(AT_ONCE, dim=1)]
    return SurfaceMesh(positions, torch.from_numpy(faces.astype(np.int64)), torch.cat(colors))


def write_mesh(path: Path, mesh: SurfaceMesh) -> None:
    """Write a binary .ply with a colour for each vertex, z up, front +y."""
    import trimesh

    colors = (mesh.colors.clamp(0, 1) * 255).round().byte().numpy()
    made = trimesh.Trimesh(mesh.positions.numpy(), mesh.faces.numpy(), vertex_colors=colors, process=False)
    with atomic(path) as temporary:
        made.export(temporary, file_type="ply")
