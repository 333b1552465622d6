"""The headers of PLY files: what they declare, read without reserving any memory for it, and written for parsers."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.inputs import regular_file

MAX_HEADER_BYTES = 128 * 1024
TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
"""A file's types as NumPy calls them."""
TYPE_SIZES = {name: int(kind[1]) for name, kind in TYPES.items()}


@dataclass(frozen=True)
class Element:
    name: str
    count: int
    properties: dict[str, str]
    """Name to type; a list's type is "list" and both of its types."""

    def add(self, name: str, kind: str) -> None:
        if name in self.properties:
            raise ValueError(f"two properties {name[:40]}")
        self.properties[name] = kind

    @property
    def lists(self) -> set[str]:
        return {name for name, kind in self.properties.items() if kind.startswith("list")}


@dataclass(frozen=True)
class Header:
    form: str
    elements: list[Element]
    comments: list[str]
    size: int
    """Bytes before the first row."""

    @property
    def text(self) -> bool:
        return self.form == "ascii"


def read_header(path: Path | str) -> Header:
    """Parse the header and check that the file is long enough for what it declares.

    plyfile would reserve memory for the declared number of rows before it reads them.

    Raises:
        UserError: the file is missing, has no header or a broken one, or is cut off.
    """
    path = regular_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    first = re.match(rb"ply[ \t]*(\r(?!\n)|\r?\n)", start)
    line_end = rb"\r" if first and first.group(1) == b"\r" else rb"\r?\n"
    end = re.search(rb"[\r\n]end_header[ \t]*" + line_end, start)
    if first is None or end is None:
        raise UserError(f"{path}: expected a PLY file, got no PLY header; check the file")
    lines = [line.split() for line in re.split(r"\r\n|\r|\n", start[: end.start()].decode("latin-1"))[1:]]
    try:
        header = _parse_header(lines, end.end())
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path}: expected a PLY header, got a broken one ({error}); check the file"
        ) from error
    needed = sum(element.count * _least_row_size(element, header.text) for element in header.elements)
    if size - header.size < needed - header.text:  # the last line of a text file may lack its end
        raise UserError(
            f"{path}: expected {needed} bytes or more after the header, got {size - header.size}; it is cut off"
        )
    return header


def _parse_header(lines: list[list[str]], size: int) -> Header:
    """The header of `size` bytes, from the words of its lines. Raises ValueError or IndexError."""
    elements: list[Element] = []
    comments, formats = [], []
    for words in lines:
        match words:
            case ["format", form, "1.0"]:
                formats.append(form)
            case ["comment" | "obj_info", *rest]:
                comments.append(" ".join(rest))
            case ["element", name, count]:
                if int(count) < 0:
                    raise ValueError(f"{count} rows of {name}")
                elements.append(Element(name, int(count), {}))
            case ["property", "list", length, kind, name]:
                elements[-1].add(name, f"list {_known(length)} {_known(kind)}")
            case ["property", kind, name]:
                elements[-1].add(name, _known(kind))
            case []:
                continue
            case _:
                raise ValueError(" ".join(words)[:80])
    if len(formats) != 1 or formats[0] not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"format {' '.join(formats)[:80] or 'missing'}")
    for element in elements:
        if element.count > 0 and not element.properties:
            raise ValueError(f"{element.count} rows of {element.name[:40]} without properties")
    if len({element.name for element in elements}) < len(elements):
        raise ValueError("two elements of one name")
    return Header(formats[0], elements, comments, size)


def _known(kind: str) -> str:
    if kind not in TYPE_SIZES:
        raise ValueError(f"type {kind[:20]}")
    return kind


def _least_row_size(element: Element, text: bool) -> int:
    """Bytes that a row takes at least: two a property in text, empty lists in binary."""
    if text:
        return 2 * len(element.properties)
    return sum(TYPE_SIZES[kind.removeprefix("list ").split()[0]] for kind in element.properties.values())


def header_of(form: str, elements: Iterable[Element], comments: Iterable[str] = ()) -> bytes:
    """A header that every parser takes: in ASCII but for comments, and of doubles where the rows are text."""
    lines = ["ply", f"format {form} 1.0", *(f"comment {_utf8(comment)}" for comment in comments)]
    for element in elements:
        lines.append(f"element {_ascii(element.name)} {element.count}")
        for name, kind in element.properties.items():
            exact = "double" if form == "ascii" and kind in ("float", "float32") else kind
            lines.append(f"property {exact} {_ascii(name)}")
    return "\n".join([*lines, "end_header", ""]).encode()


def _utf8(latin: str) -> str:
    """A comment, which was taken for Latin-1, as UTF-8 if it is."""
    try:
        return latin.encode("latin-1").decode()
    except UnicodeDecodeError:
        return latin


def _ascii(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()
