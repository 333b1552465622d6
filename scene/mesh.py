"""Meshes of files, and points on their surface with the colours of vertices, faces or textures."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scene import gltf, mesh_files, ply, ply_faces
from scene.mesh_size import declared_faces
from scene.ply_header import read_header
from scene.strays import strays, warn_of_rounding, warn_of_strays
from utils.errors import UserError
from utils.images import eight_bits
from utils.inputs import regular_file
from utils.srgb import linear_to_srgb, srgb_to_linear

if TYPE_CHECKING:
    import trimesh

log = logging.getLogger(__name__)

Colors = Callable[[Int[Tensor, "S"], Float[Tensor, "S 3"]], Float[Tensor, "S 3"]]
"""Colours in [0, 1] at points of faces, given by their barycentric weights."""

MOST_FACES = 20_000_000
"""Triangles of a mesh, at most: each takes about 200 bytes while its surface is sampled."""
MOST_PIXELS = 100_000_000
"""Pixels of a texture, at most: each takes 4 bytes, whatever its file takes."""
GREY = 127 / 255
FACES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Surface:
    """Triangles, and what tells their colours; None for grey."""

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    colors: Colors | None

    def interpolate(
        self, per_vertex: Any, faces: Int[Tensor, "S"], weights: Float[Tensor, "S 3"]
    ) -> Float[Tensor, "S C"]:
        """Values at points of faces, in float64."""
        corners = np.asarray(per_vertex)[self.faces[faces.numpy()]].astype(np.float64)
        return torch.einsum("sv,svc->sc", weights, torch.from_numpy(corners))

    def areas(self) -> Float[Tensor, "F"]:
        found = []
        for start in range(0, len(self.faces), FACES_AT_ONCE):
            corner, left, right = torch.from_numpy(
                self.vertices[self.faces[start : start + FACES_AT_ONCE]]
            ).unbind(1)
            found.append(torch.linalg.cross(left - corner, right - corner).norm(dim=1) / 2)
        return torch.cat(found)


def refuse_too_many_faces(path: Path) -> None:
    """Raises UserError where there is no file, or one that says that it has more triangles than fit into memory."""
    faces = declared_faces(regular_file(path))
    if faces > MOST_FACES:
        raise UserError(
            f"{path}: expected at most {MOST_FACES:,} triangles, got {faces:,}; simplify the mesh first"
        )


def sample_file(
    path: Path, count: int, rng: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """`sample_surface` of the meshes of a .glb, .gltf, .obj, .stl or .ply, placed where its scene puts them.

    Raises:
        UserError: the file is missing, broken, compressed, or places more than `MOST_FACES` triangles, or has none with
            finite corners and an area.
    """
    with _one_line(path):
        surfaces = _without_strays(path, list(_surfaces(path)))
        if not any((surface.areas() > 0).any() for surface in surfaces):
            raise UserError(
                f"{path}: expected triangles with finite corners and an area, got none; check the file"
            )
        if _holds_float32(path):
            warn_of_rounding(path, torch.from_numpy(np.concatenate([each.vertices for each in surfaces])))
        return sample_surface(surfaces, count, rng)  # which decodes the textures


def _holds_float32(path: Path) -> bool:
    """Whether the numbers of a mesh are stored so: always in the formats of bytes, and in most .ply."""
    if path.suffix.lower() != ".ply":
        return path.suffix.lower() != ".obj"
    vertex = next(each for each in read_header(path).elements if each.name == "vertex")
    return vertex.properties["x"] in ("float", "float32")


def _without_strays(path: Path, surfaces: list[Surface]) -> list[Surface]:
    """Surfaces whose triangles with a corner far beyond all others have no area: nearly all of it would be theirs."""
    if not surfaces:
        return []
    used: list[np.ndarray] = []
    for surface in surfaces:
        used.append(np.zeros(len(surface.vertices), dtype=bool))
        used[-1][surface.faces] = True
    corners = np.concatenate([each.vertices[here] for each, here in zip(surfaces, used, strict=True)])
    found = strays(torch.from_numpy(corners)).numpy()
    if not found.any():
        return surfaces
    warn_of_strays(path, int(found.sum()), len(found), "corners of triangles")
    kept, first = [], 0
    for surface, here in zip(surfaces, used, strict=True):
        far = np.zeros(len(here), dtype=bool)
        far[here] = found[first : (first := first + int(here.sum()))]
        faces = np.where(far[surface.faces].any(axis=1, keepdims=True), surface.faces[:, :1], surface.faces)
        kept.append(Surface(surface.vertices, faces, surface.colors))
    return kept


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Each of trimesh's loaders, and Pillow's, fails on broken files in its own ways."""
    try:
        yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory; simplify the mesh first") from error
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a mesh ({said}); check the file") from error


def _surfaces(path: Path) -> Iterator[Surface]:
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # it would print tracebacks
    suffix, document = path.suffix.lower(), None
    if suffix in (".glb", ".gltf"):
        document = gltf.read(path)
        document.refuse_gaussians()
        document.check()
    missing: list[str] = []
    unread: list[str] = []
    with (
        document.stream()
        if document
        else ply_faces.mesh_stream(path, MOST_FACES)
        if suffix == ".ply"
        else path.open("rb")
    ) as file:
        scene = trimesh.load_scene(
            file, file_type=suffix[1:], resolver=mesh_files.resolver(path, missing, unread), process=False
        )
    if missing:
        log.warning(
            "%s: names %s, which is no file in its folder, so not all of its colours are there; put it there",
            path,
            " and ".join(map(repr, dict.fromkeys(missing))),
        )
    if document:
        materials = [getattr(mesh.visual, "material", None) for mesh in scene.geometry.values()]
        lacking = [each for each in materials if document.has_texture(each) and _image(each) is None]
        unread += [] if missing else [f"of material {each.name}" for each in lacking]
    if unread:
        log.warning(
            "%s: the texture %s is in no format that is read, so not all of its colours are there; save it as PNG",
            path,
            " and ".join(dict.fromkeys(unread)),
        )
    left = MOST_FACES  # a scene may place the same mesh many times
    for node in scene.graph.nodes_geometry:
        transform, name = scene.graph[node]
        mesh = scene.geometry[name]
        if not isinstance(mesh, trimesh.Trimesh) or len(mesh.faces) == 0:
            continue
        left -= max(len(mesh.faces), len(mesh.vertices))
        if left < 0:
            raise UserError(
                f"{path}: expected at most {MOST_FACES:,} triangles, got more; simplify the mesh first"
            )
        yield _checked(path, mesh, transform, document)


def _checked(
    path: Path, mesh: "trimesh.Trimesh", transform: np.ndarray, document: gltf.Document | None
) -> Surface:
    with np.errstate(all="ignore"):  # what is not finite is asked for below
        vertices = np.asarray(mesh.vertices, dtype=np.float64) @ transform[:3, :3].T + transform[:3, 3]
    faces = np.asarray(mesh.faces)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise UserError(
            f"{path}: expected triangles between its {len(vertices)} corners, got one with another; check the file"
        )
    if not np.isfinite(vertices[faces]).all():
        raise UserError(
            f"{path}: expected triangles with finite corners, got infinite ones or NaN; check the file"
        )
    return surface_of(mesh, vertices, document)


def surface_of(
    mesh: "trimesh.Trimesh", vertices: np.ndarray | None = None, document: gltf.Document | None = None
) -> Surface:
    """A mesh of trimesh's, its vertices perhaps elsewhere, and the description if it comes of glTF."""
    placed = np.asarray(mesh.vertices if vertices is None else vertices, dtype=np.float64)
    plain = Surface(placed, np.asarray(mesh.faces), None)
    find = _ply_colors if "_ply_raw" in mesh.metadata else _colors
    colors = _light(plain, mesh, document) if document else find(plain, mesh)
    return Surface(plain.vertices, plain.faces, colors)


def _colors(surface: Surface, mesh: "trimesh.Trimesh") -> Colors | None:
    visual = mesh.visual
    if visual.kind == "vertex":
        stored = np.asarray(visual.vertex_colors)[:, :3] / 255
        return lambda faces, weights: surface.interpolate(stored, faces, weights)
    if visual.kind == "face":
        each = torch.from_numpy(np.asarray(visual.face_colors)[:, :3] / 255)
        return lambda faces, _weights: each[faces]
    if visual.kind == "texture":
        image = _image(visual.material)
        if image is None or visual.uv is None:
            one = torch.from_numpy(np.asarray(visual.material.main_color)[:3] / 255)
            return lambda faces, _weights: one.expand(len(faces), 3)
        return _texture(surface, visual.uv, image)
    return None


def _ply_colors(surface: Surface, mesh: "trimesh.Trimesh") -> Colors | None:
    """Colours of vertices or faces by any name and in any range; trimesh takes floats of 0 to 255 for white."""
    raw = mesh.metadata["_ply_raw"]
    for element, count in (("vertex", len(surface.vertices)), ("face", len(surface.faces))):
        stored = _columns(raw.get(element, {}).get("data"))
        names = ply.color_names(stored)
        if not names or len(stored[names[0]]) != count:
            continue
        table = np.stack([stored[name].reshape(-1) for name in names], axis=1)
        full = ply.color_range(table, table.dtype)
        each = torch.from_numpy(np.nan_to_num(table.astype(np.float64) / full).clip(0, 1))
        if element == "vertex":
            return lambda faces, weights: surface.interpolate(each.numpy(), faces, weights)
        return lambda faces, _weights: each[faces]
    return _colors(surface, mesh)


def _columns(data: Any) -> dict[str, np.ndarray]:
    """Properties by name of what trimesh keeps of an element: rows with names, or a dict."""
    if isinstance(data, dict):
        return {name: np.asarray(column) for name, column in data.items()}
    return {name: data[name] for name in getattr(getattr(data, "dtype", None), "names", None) or ()}


def _light(surface: Surface, mesh: "trimesh.Trimesh", document: gltf.Document) -> Colors | None:
    """glTF's base colour: texture times factor times vertex colour, in linear light."""
    visual = mesh.visual
    stored = mesh.vertex_attributes.get(gltf.COLORS)
    light = None if stored is None else gltf.vertex_light(np.asarray(stored))
    material = visual.material if visual.kind == "texture" else None
    image = None if material is None else _image(material)
    if material is None and light is None:
        return None
    factor = document.factor(material).double()
    bare = image is None or visual.uv is None
    texture = None if bare else _texture(surface, visual.uv, image, document.wrapping(material))

    def colors(faces: Int[Tensor, "S"], weights: Float[Tensor, "S 3"]) -> Float[Tensor, "S 3"]:
        linear = factor.expand(len(faces), 3)
        if texture is not None:
            linear = linear * srgb_to_linear(texture(faces, weights))
        if light is not None:
            linear = linear * surface.interpolate(light, faces, weights)
        return linear_to_srgb(linear)

    return colors


def _image(material: Any) -> Any:
    return getattr(material, "image", None) or getattr(material, "baseColorTexture", None)


def _wrapped(at: Float[Tensor, "S"], how: int) -> Float[Tensor, "S"]:
    """Places on a texture, from 0 to 1: beyond its borders it goes on in one of glTF's ways, else repeated."""
    if how == gltf.CLAMPED:
        return at.clamp(0, 1)
    return 1 - (at % 2 - 1).abs() if how == gltf.MIRRORED else torch.where(at == 1, at, at % 1)


def _texture(surface: Surface, uv: np.ndarray, image: Any, wrapping: tuple[int, int] = (0, 0)) -> Colors:
    from trimesh.visual.color import uv_to_color

    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"a texture of {image.width} x {image.height} pixels, of at most {MOST_PIXELS:,}")

    def colors(faces: Int[Tensor, "S"], weights: Float[Tensor, "S 3"]) -> Float[Tensor, "S 3"]:
        at = surface.interpolate(uv, faces, weights).nan_to_num(0.0).clamp(-1e6, 1e6)
        at = torch.stack(
            [_wrapped(axis, how) for axis, how in zip(at.unbind(1), wrapping, strict=True)], dim=1
        )
        return torch.from_numpy(uv_to_color(at.numpy(), eight_bits(image))[:, :3] / 255)

    return colors


def sample_surface(
    surfaces: list[Surface], count: int, rng: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """`count` points, uniform by area over all triangles: positions in float64, colours in [0, 1]."""
    edges = torch.cat([surface.areas() for surface in surfaces]).cumsum(0)
    faces = torch.searchsorted(
        edges, torch.rand(count, generator=rng, dtype=torch.float64) * edges[-1], right=True
    )
    faces = faces.clamp(max=len(edges) - 1)
    # Folding the unit square along its diagonal makes two uniform numbers uniform in the triangle.
    corner = torch.rand(count, 2, generator=rng, dtype=torch.float64)
    corner = torch.where(corner.sum(dim=1, keepdim=True) > 1, 1 - corner, corner)
    weights = torch.cat([1 - corner.sum(dim=1, keepdim=True), corner], dim=1)

    points = torch.empty(count, 3, dtype=torch.float64)
    colors = torch.full((count, 3), GREY)
    first = 0
    for surface in surfaces:
        inside = ((faces >= first) & (faces < first + len(surface.faces))).nonzero().squeeze(1)
        points[inside] = surface.interpolate(surface.vertices, faces[inside] - first, weights[inside])
        if surface.colors is not None:
            colors[inside] = surface.colors(faces[inside] - first, weights[inside]).float()
        first += len(surface.faces)
    return points, colors
