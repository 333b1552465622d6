"""How many triangles a mesh file declares, read without loading it."""

import re
import struct
from pathlib import Path

from scene import gltf
from scene.ply_header import MAX_HEADER_BYTES

BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error)
"""What reading a broken file raises."""


def declared_faces(path: Path) -> int:
    """Triangles (or faces) that a .ply, .stl, .obj, .glb or .gltf says it has; 0 where it does not say."""
    read = {".ply": _ply, ".stl": _stl, ".obj": _obj, ".glb": _gltf, ".gltf": _gltf}
    try:
        return read[path.suffix.lower()](path)
    except BROKEN:  # its loader says what is wrong
        return 0


def _ply(path: Path) -> int:
    with path.open("rb") as file:
        found = re.search(rb"element\s+face\s+(\d+)", file.read(MAX_HEADER_BYTES))
    return int(found.group(1)) if found else 0


def _stl(path: Path) -> int:
    with path.open("rb") as file:
        head = file.read(84)
    (count,) = struct.unpack("<I", head[80:])
    if path.stat().st_size == 84 + 50 * count:
        return count
    return _count_lines(path, b"facet")


def _obj(path: Path) -> int:
    return _count_lines(path, b"f ")


def _gltf(path: Path) -> int:
    return gltf.read(path).faces


def _count_lines(path: Path, start: bytes) -> int:
    with path.open("rb") as file:
        return sum(line.lstrip().startswith(start) for line in file)
