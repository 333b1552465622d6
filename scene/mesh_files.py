"""The files that a mesh names: textures, materials, and glTF's numbers."""

import contextlib
import io
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote

from utils.errors import UserError
from utils.inputs import regular_file

log = logging.getLogger(__name__)

OPTIONS = re.compile(r"(-[a-z]+(\s+(on|off|[rgbmlz]|[-+.\d][-+.\de]*))+\s+)+", re.IGNORECASE)
"""What an .mtl may have before the name of a texture, as `-clamp on -s 1 1 1`."""


def resolver(path: Path, missing: list[str], unread: list[str]) -> Any:
    """How trimesh finds the files that a mesh names: textures, materials, and glTF's numbers. It loads what it can, and
    says nothing of what it cannot: those names are added to `missing`, and textures of no known format to `unread`."""
    import trimesh

    libraries, used = _materials(path) if path.suffix.lower() == ".obj" else ([], set())

    class Neighbours(trimesh.resolvers.FilePathResolver):
        def get(self, name: str) -> bytes:
            if libraries and name == libraries[0]:  # it asks for the first alone
                found = [self.find(each) for line in libraries for each in self.names(line)]
                content = b"\n".join(filter(None, found))
                if not missing:
                    _warn_of_unknown(path, used - _words_after("newmtl", content.splitlines()))
                return content
            content = self.find(name)
            if content is None:
                raise UserError(f"{path}: names {name!r}, which is no file in its folder; put it there")
            if (
                path.suffix.lower() in (".obj", ".ply")
                and not name.lower().endswith(".mtl")
                and not _is_picture(content)
            ):
                unread.append(repr(name))
            return content

        def names(self, line: str) -> list[str]:
            """The files of a line, which parts them by blanks: names may have some, too."""
            words = line.split()
            return words if all(word.lower().endswith(".mtl") for word in words) else [line]

        def find(self, name: str) -> bytes | None:
            for each in _spellings(name):
                with contextlib.suppress(
                    OSError, ValueError
                ):  # none, a pipe, or outside of the mesh's folder
                    return regular_file(self.absolute(each)).read_bytes()
            missing.append(name)
            return None

    return Neighbours(str(path))


def _materials(path: Path) -> tuple[list[str], set[str]]:
    """What an .obj says of materials: the lines that name their files, and the materials that it uses."""
    with path.open("rb") as file:
        lines = [line for line in file if line.lstrip(b"\xef\xbb\xbf \t").startswith((b"mtllib", b"usemtl"))]
    named = [
        line.decode("utf-8", "replace").partition("mtllib")[2].strip()
        for line in lines
        if b"mtllib" in line.partition(b"usemtl")[0]
    ]
    return named, _words_after("usemtl", lines) - {"None", "(null)"}  # as exporters call none


def _words_after(keyword: str, lines: Iterable[bytes]) -> set[str]:
    words = [line.decode("utf-8", "replace").split() for line in lines]
    return {" ".join(rest) for first, *rest in filter(None, words) if first == keyword and rest}


def _warn_of_unknown(path: Path, materials: set[str]) -> None:
    if materials:
        log.warning(
            "%s: uses %s, which is no material of the .mtl that it names, so not all of its colours are there; add it",
            path, " and ".join(sorted(map(repr, materials))[:3]),
        )  # fmt: skip


def _is_picture(content: bytes) -> bool:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)):
            return True
    except Exception:  # noqa: BLE001 - each format fails in its own ways
        return False


def _spellings(name: str) -> Iterator[str]:
    """Where a file may lie that a mesh names: as it is written, without the options that an .mtl has before it, as
    glTF writes spaces (`%20`), as Windows writes folders, and beside the mesh whatever folder it was in before."""
    yield name
    yield OPTIONS.sub("", name)
    yield unquote(name)
    yield name.replace("\\", "/")
    yield PureWindowsPath(name).name
