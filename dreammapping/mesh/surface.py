"""A closed surface, smoothed and with as many triangles as are asked for."""

import logging
from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dreammapping.mesh.fusion import SMALL_PIECE, missing

log = logging.getLogger(__name__)

ROUNDS = 10
"""Of smoothing that keeps the volume (Taubin, 1995): steps of voxels go, shapes stay."""


@dataclass(frozen=True)
class Surface:
    """Triangles in the world (z up, front +y), their normals outwards."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]

    @property
    def watertight(self) -> bool:
        """Whether each edge has exactly two triangles, which pass it in opposite directions."""
        ends = np.concatenate([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        code = ends[:, 0] * len(self.vertices) + ends[:, 1]
        back = ends[:, 1] * len(self.vertices) + ends[:, 0]
        return len(np.unique(code)) == len(code) and np.array_equal(np.sort(code), np.sort(back))

    @property
    def normals(self) -> Float[np.ndarray, "V 3"]:
        """Of the vertices, unit length."""
        return np.array(_trimesh(self).vertex_normals)


def tidy(surface: Surface, target_faces: int) -> Surface:
    """Smooth a closed surface, leave out small pieces, and simplify it to about `target_faces` triangles.

    Where simplifying would open it, it keeps its triangles, with a warning.

    Raises:
        UserError: fast-simplification is missing.
    """
    surface = _large_pieces(_smooth(surface))
    if len(surface.faces) <= target_faces:
        return surface
    try:
        import fast_simplification
    except ImportError as error:
        raise missing("fast-simplification") from error
    for aggressiveness in (5, 3, 1):
        vertices, faces = fast_simplification.simplify(  # pyright: ignore[reportAssignmentType]
            surface.vertices.astype(np.float32), surface.faces, target_count=target_faces, agg=aggressiveness
        )
        simpler = Surface(vertices.astype(np.float64), faces.astype(np.int64))
        if simpler.watertight == surface.watertight:
            return simpler
    log.warning(
        "simplifying to %d triangles would open the surface; it keeps its %d",
        target_faces,
        len(surface.faces),
    )
    return surface


def _smooth(surface: Surface) -> Surface:
    mesh = _trimesh(surface)
    trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.53, iterations=2 * ROUNDS)
    return Surface(np.array(mesh.vertices), surface.faces)


def _large_pieces(surface: Surface) -> Surface:
    """Without what hangs together with nothing and has less than `SMALL_PIECE` of the largest piece's volume."""
    faces = surface.faces
    links = coo_matrix(
        (np.ones(2 * len(faces)), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel())),
        shape=(len(surface.vertices),) * 2,
    )
    count, pieces = connected_components(links, directed=False)
    corners = surface.vertices[faces]
    volumes = np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    of_piece = np.bincount(pieces[faces[:, 0]], weights=volumes, minlength=count)
    kept = faces[(of_piece >= SMALL_PIECE * of_piece.max())[pieces[faces[:, 0]]]]
    used, renumbered = np.unique(kept, return_inverse=True)
    return Surface(surface.vertices[used], renumbered.reshape(-1, 3))


def _trimesh(surface: Surface) -> trimesh.Trimesh:
    return trimesh.Trimesh(surface.vertices, surface.faces, process=False)
