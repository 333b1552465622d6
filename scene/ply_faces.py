"""The faces of a PLY mesh as triangles: parsers of meshes want the same number of corners of all, and of their colours.

Polygons are cut into fans, in the order in which files have their corners; a face of fewer than three is none.
"""

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scene.ply import COLORS, TYPES, Element, header_of, read_header
from utils.inputs import WithHeader

CORNERS = ("vertex_indices", "vertex_index")
TEXTURE = "texcoord"
"""Two numbers for each corner."""
_LENGTHS = {"i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I"}

Rows = dict[str, np.ndarray]
"""Of faces with as many numbers in each of their lists: values (R, W) by property."""


@dataclass(frozen=True)
class _Property:
    name: str
    kind: str
    count: str | None
    """Type of a list's length; None for a single number."""


@contextlib.contextmanager
def mesh_stream(path: Path, most: int) -> Iterator[Any]:
    """The file for a parser of meshes: its header checked and in plain words, its faces triangles.

    Args:
        most: triangles that faces may be cut into.

    Raises:
        UserError: the file is missing, has no header or a broken one, or is cut off.
        ValueError, LookupError, struct.error: its faces are broken, or more triangles.
    """
    header = read_header(path)
    cut = (
        _triangulated(header.elements, header.form, path, header.size, most)
        if path.stat().st_size > header.size
        else None
    )
    elements, rows = cut or (header.elements, None)
    start = header_of(header.form, elements, header.comments)
    with contextlib.ExitStack() as opened:
        if rows is None:
            file = opened.enter_context(path.open("rb"))
            file.seek(header.size)
        else:
            file = io.BytesIO(rows)
        yield WithHeader(start, file)


def _triangulated(
    elements: list[Element], form: str, path: Path, size: int, most: int
) -> tuple[list[Element], bytes] | None:
    """A mesh's elements and rows with triangles for faces; None where all faces are triangles, or there are none."""
    which = next((index for index, element in enumerate(elements) if element.name == "face"), None)
    corners = next((name for name in CORNERS if which is not None and _is_list(elements[which], name)), None)
    if which is None or corners is None or elements[which].count == 0:
        return None
    data = memoryview(np.memmap(path, mode="r", offset=size))
    cut = _text_faces if form == "ascii" else _binary_faces
    start, end, groups = cut(elements[: which + 1], form, data)
    if all(rows[corners].shape[1] == 3 for rows in groups):
        return None
    count = sum(len(rows[corners]) * max(rows[corners].shape[1] - 2, 0) for rows in groups)
    if count > most:
        raise ValueError(f"faces of {count:,} triangles, of at most {most:,}")
    kept = [each for each in _properties(elements[which]) if _is_kept(each, corners, groups)]
    triangles = [_fans(rows, corners, kept) for rows in groups]
    faces = Element("face", count, {each.name: _kind(each) for each in kept})
    write = _as_text if form == "ascii" else _as_bytes
    rows = b"".join([data[:start], *(write(each, kept, form) for each in triangles), data[end:]])
    return [faces if index == which else element for index, element in enumerate(elements)], rows


def _is_list(element: Element, name: str) -> bool:
    return element.properties.get(name, "").startswith("list")


def _properties(element: Element) -> list[_Property]:
    found = []
    for name, kind in element.properties.items():
        words = kind.split()
        count = TYPES[words[1]] if words[0] == "list" else None
        found.append(_Property(name, TYPES[words[-1]], count))
    return found


def _kind(each: _Property) -> str:
    names = {short: name for name, short in TYPES.items()}
    return names[each.kind] if each.count is None else f"list uchar {names[each.kind]}"


def _is_kept(each: _Property, corners: str, groups: list[Rows]) -> bool:
    """Whether a property tells where a face is, or its colour: each other one would be written for every triangle."""
    if each.name == TEXTURE:
        return all(rows[TEXTURE].shape[1] == 2 * rows[corners].shape[1] for rows in groups)
    return each.name == corners or (each.count is None and any(each.name in names for names in COLORS))


def _fans(rows: Rows, corners: str, kept: list[_Property]) -> Rows:
    """The triangles of faces with as many corners: the first corner, and two that follow one another."""
    count = max(rows[corners].shape[1] - 2, 0)
    found = {}
    for each in kept:
        values = rows[each.name]
        if each.count is None:
            found[each.name] = values.repeat(count, axis=0)
            continue
        of_corner = values.reshape(len(values), count + 2, -1) if count else values[:0, None]
        fans = [of_corner[:, [0, corner, corner + 1]] for corner in range(1, count + 1)]
        width = 6 if each.name == TEXTURE else 3
        found[each.name] = (
            np.stack(fans, axis=1).reshape(-1, width) if fans else np.empty((0, width), values.dtype)
        )
    return found


def _order(form: str) -> str:
    return ">" if form == "binary_big_endian" else "<"


def _as_bytes(rows: Rows, kept: list[_Property], form: str) -> bytes:
    order, fields = _order(form), []
    for each in kept:
        if each.count is not None:
            fields.append((f"{each.name}#", "u1"))
        fields.append((each.name, order + each.kind, (rows[each.name].shape[1],)))
    table = np.empty(len(rows[kept[0].name]), dtype=fields)
    for each in kept:
        table[each.name] = rows[each.name]
        if each.count is not None:
            table[f"{each.name}#"] = rows[each.name].shape[1]
    return table.tobytes()


def _as_text(rows: Rows, kept: list[_Property], _form: str) -> bytes:
    columns = []
    for each in kept:
        values = rows[each.name]
        if each.count is not None:
            columns.append(np.full((len(values), 1), values.shape[1]))
        columns.append(values)
    lines = (" ".join(f"{value:.17g}" for value in row) for row in np.hstack(columns).tolist())
    return "".join(f"{line}\n" for line in lines).encode()


def _text_faces(elements: list[Element], _form: str, data: memoryview) -> tuple[int, int, list[Rows]]:
    """Where the rows of the last element begin and end, and its rows in groups."""
    *before, faces = elements
    lines = bytes(data).splitlines(keepends=True)
    first = sum(element.count for element in before)
    own = lines[first : first + faces.count]
    if len(own) < faces.count:
        raise ValueError(f"{len(own)} of {faces.count} rows of faces")
    properties, grouped = _properties(faces), {}
    for line in own:
        numbers, at, lengths = [float(word) for word in line.split()], 0, []
        for each in properties:
            length = 1 if each.count is None else int(numbers[at])
            at += (each.count is not None) + length
            lengths.append(length)
        if min(lengths) < 0 or at > len(numbers):
            raise ValueError(f"a face of {len(numbers)} numbers")
        grouped.setdefault(tuple(lengths), []).append(numbers[:at])
    groups = []
    for lengths, rows in grouped.items():
        table, at, group = np.array(rows), 0, {}
        for each, length in zip(properties, lengths, strict=True):
            at += each.count is not None
            group[each.name] = table[:, at : at + length]
            at += length
        groups.append(group)
    start = sum(map(len, lines[:first]))
    return start, start + sum(map(len, own)), groups


def _binary_faces(elements: list[Element], form: str, data: memoryview) -> tuple[int, int, list[Rows]]:
    """Where the rows of the last element begin and end, and its rows in groups."""
    start = end = 0
    groups: list[Rows] = []
    for element in elements:
        start = end
        end, found = _rows(element, _order(form), data, start)
        groups = [] if element.name != "face" else found
    return start, end, groups


def _rows(element: Element, order: str, data: memoryview, start: int) -> tuple[int, list[Rows]]:
    """Where an element that begins at `start` ends, and its rows, those with lists of the same lengths together."""
    properties = _properties(element)
    if element.count == 0:
        return start, []
    first, _ = next(_walk(properties, order, data, start, 1))
    kind = _row_type(properties, order, first)
    end = start + element.count * kind.itemsize
    if end <= len(data):
        table = np.frombuffer(data[start:end], dtype=kind)
        if all(
            (table[f"{each.name}#"] == len_).all()
            for each, len_ in zip(properties, first, strict=True)
            if each.count
        ):
            return end, [{each.name: table[each.name] for each in properties}]
    starts: dict[tuple[int, ...], list[int]] = {}
    end = start
    for lengths, following in _walk(properties, order, data, start, element.count):
        starts.setdefault(lengths, []).append(end)
        end = following
    groups = []
    for lengths, places in starts.items():
        kind = _row_type(properties, order, lengths)
        at = np.array(places)[:, None] + np.arange(kind.itemsize)
        table = np.frombuffer(data, dtype=np.uint8)[at].reshape(-1).view(kind)
        groups.append({each.name: table[each.name] for each in properties})
    return end, groups


def _walk(
    properties: list[_Property], order: str, data: memoryview, start: int, count: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """The lengths of the properties of each row, 1 for a single number, and where the next row begins."""
    steps = [
        (each.count and struct.Struct(order + _LENGTHS[each.count]), int(each.kind[1])) for each in properties
    ]
    at = start
    for _ in range(count):
        lengths = []
        for length_of, size in steps:
            length = 1
            if length_of is not None:
                (length,) = length_of.unpack_from(data, at)
                at += length_of.size
            if length < 0 or at + length * size > len(data):
                raise ValueError("rows that are cut off")
            at += length * size
            lengths.append(length)
        yield tuple(lengths), at


def _row_type(properties: list[_Property], order: str, lengths: tuple[int, ...]) -> np.dtype:
    fields = []
    for each, length in zip(properties, lengths, strict=True):
        if each.count is not None:
            fields.append((f"{each.name}#", order + each.count))
        fields.append((each.name, order + each.kind, (length,)))
    return np.dtype(fields)
