"""The faces of a PLY mesh as triangles: parsers of meshes want the same number of corners of all, and of their colours.

Polygons are cut into fans, in the order in which files have their corners; a face of fewer than three is none.
"""

import contextlib
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scene.ply import color_names, read_elements, with_faces
from scene.ply_header import Element, Header, header_of, read_header
from utils.errors import UserError
from utils.inputs import WithHeader

log = logging.getLogger(__name__)

CORNERS = ("vertex_indices", "vertex_index")
TEXTURE = "texcoord"
"""Two numbers for each corner."""
TRIANGLES = {**dict.fromkeys(CORNERS, 3), TEXTURE: 6}


@contextlib.contextmanager
def mesh_stream(path: Path, most: int) -> Iterator[Any]:
    """The file for a parser of meshes: its header checked and in plain words, its faces triangles.

    Args:
        most: triangles that faces may be cut into.

    Raises:
        UserError: the file is missing, broken or cut off, or its faces are more triangles.
    """
    header = read_header(path)
    textures = {comment for comment in header.comments if comment.lower().startswith("texturefile")}
    if len(textures) > 1:
        log.warning(
            "%s: names %d textures, of which one is read, so not all of its colours are right; save it as .glb or .obj",
            path, len(textures),
        )  # fmt: skip
    faces = next((each for each in header.elements if each.name == "face" and each.count > 0), None)
    corners = next((name for name in CORNERS if faces and name in faces.lists), None)
    if faces is None or corners is None or _are_triangles(path, header, faces, corners):
        with path.open("rb") as file:
            file.seek(header.size)
            yield WithHeader(header_of(header.form, header.elements, header.comments), file)
    else:
        data = read_elements(path, header, "vertex", "face")
        counts = _lengths(data["face"].data[corners])
        total = int((counts - 2).clip(min=0).sum())
        if total > most:
            raise UserError(
                f"{path}: expected at most {most:,} triangles, got {total:,}; simplify the mesh first"
            )
        yield with_faces(data, _fans(data["face"].data, corners, counts), header.comments)


def _are_triangles(path: Path, header: Header, faces: Element, corners: str) -> bool:
    """Whether all faces are for sure, seen without reading each number, which takes a hundred times longer."""
    if not header.text:
        if faces.lists <= TRIANGLES.keys():
            with contextlib.suppress(UserError):
                read_elements(path, header, "face", face_lists=TRIANGLES)
                return True
        return False
    first = sum(element.count for element in header.elements[: header.elements.index(faces)])
    with path.open("rb") as file, io.TextIOWrapper(file, "latin-1") as text:
        file.seek(header.size)
        rows = itertools.islice(text, first, first + faces.count)
        return next(iter(faces.properties)) == corners and all(row.split()[:1] == ["3"] for row in rows)


def _fans(faces: np.ndarray, corners: str, counts: np.ndarray) -> np.ndarray:
    """Each face's triangles: its first corner, and two that follow one another.

    Of what else faces have, their colours and textures are kept: all would be written for every triangle.
    """
    kinds = {name: faces.dtype[name] for name in faces.dtype.names or ()}
    colors = color_names([name for name, kind in kinds.items() if not kind.hasobject])
    lists = {corners: 1}
    if TEXTURE in kinds and np.array_equal(_lengths(faces[TEXTURE]), 2 * counts):
        lists[TEXTURE] = 2
    fields = [(name, faces[name][0].dtype, 3 * width) for name, width in lists.items()]
    fans = [np.empty(0, [*fields, *((name, kinds[name]) for name in colors)])]
    for count in np.unique(counts[counts > 2]):
        rows = faces[counts == count]
        order = [(0, second, second + 1) for second in range(1, count - 1)]
        triangles = np.empty((len(rows), count - 2), fans[0].dtype)
        for name, width in lists.items():
            of_corner = np.stack(rows[name]).reshape(len(rows), count, width)
            triangles[name] = of_corner[:, order].reshape(len(rows), count - 2, 3 * width)
        for name in colors:
            triangles[name] = rows[name][:, None]
        fans.append(triangles.ravel())
    return np.concatenate(fans)


def _lengths(lists: np.ndarray) -> np.ndarray:
    return np.array([np.size(each) for each in lists])
