"""PLY files: Gaussians as every splat viewer reads them, and point clouds; the only user of plyfile.

Gaussians are written x right, y down, z forward, as viewers expect them: the front camera's own axes, so an
object stands upright and faces the default viewer. A comment marks such files, and reading turns them back. A
file without it is taken to be in our own frame (z up, front +y), which is LucidDreamer's.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from scene.gaussian_model import GaussianModel
from utils.errors import UserError
from utils.files import atomic
from utils.rotations import conjugate_quaternions, multiply_quaternions, quaternions_to_matrices
from utils.spherical_harmonics import MAX_DEGREE, coefficient_count, rotate_sh, sh_dc_to_rgb

FRAME_COMMENT = "dreammapping frame=rdf"
WORLD_TO_FILE = (0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5))
"""Quaternion of (x, y, z) -> (-x, -z, -y): z up and front +y become y down and front -z."""

MAX_HEADER_BYTES = 128 * 1024
COLUMNS = {
    "means": ("x", "y", "z"),
    "sh_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity_logits": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "quats": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
TYPE_SIZES = {
    "char": 1, "uchar": 1, "int8": 1, "uint8": 1,
    "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
    "int": 4, "uint": 4, "int32": 4, "uint32": 4, "float": 4, "float32": 4,
    "double": 8, "float64": 8,
}  # fmt: skip


def write_gaussians(path: Path | str, model: GaussianModel, comments: Sequence[str] = ()) -> None:
    """Write the 3D Gaussian Splatting format: float32, values before activation, f_rest channel-major.

    Quaternions are written normalised and `comments` as ASCII, each on one line.

    Raises:
        UserError: a parameter is not finite, or the file cannot be written.
    """
    tensors = {name: getattr(model, name).detach().cpu().float() for name in model.parameter_names}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: expected finite Gaussians, got NaN or infinity in {name}; nothing was written"
            )
    tensors["quats"] = model.rotations.detach().cpu().float()
    turned = _turn(tensors, torch.tensor(WORLD_TO_FILE))

    rest = turned["sh_rest"].transpose(1, 2).flatten(1)
    values = [
        turned["means"],
        torch.zeros_like(turned["means"]),
        turned["sh_dc"].flatten(1),
        rest,
        turned["opacity_logits"],
        turned["log_scales"],
        turned["quats"],
    ]
    columns = [*COLUMNS["means"], "nx", "ny", "nz", *COLUMNS["sh_dc"], *_rest_columns(rest.shape[1])]
    columns += [*COLUMNS["opacity_logits"], *COLUMNS["log_scales"], *COLUMNS["quats"]]
    table = torch.cat(values, dim=1).numpy().astype("<f4")
    _write_vertices(path, table.view([(name, "<f4") for name in columns])[:, 0], [FRAME_COMMENT, *comments])


def read_gaussians(path: Path | str) -> GaussianModel:
    """Read a 3D Gaussian Splatting PLY of any property order, number type and byte order, into our frame.

    All bands that the file holds are active.

    Raises:
        UserError: the file is missing, broken, cut off, empty, lacks a property, or is not finite.
    """
    header = _read_header(path)
    names = _scalar_vertex_properties(path, header)
    rest_count = sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names)
    degree = next((d for d in range(MAX_DEGREE + 1) if 3 * (coefficient_count(d) - 1) == rest_count), None)
    if degree is None:
        raise UserError(
            f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, got {rest_count}; export it again"
        )
    columns = COLUMNS | {"sh_rest": _rest_columns(rest_count)}
    missing = [name for group in columns.values() for name in group if name not in names]
    if missing:
        raise UserError(
            f"{path}: expected a Gaussian PLY, got none of {', '.join(missing[:4])}; "
            "a point cloud or mesh can be used with GenerateCamParams.init_shape: file"
        )
    vertices = _read_vertices(path)
    tensors = {name: _table(path, vertices, group) for name, group in columns.items()}
    tensors["sh_dc"] = tensors["sh_dc"][:, None]
    tensors["sh_rest"] = tensors["sh_rest"].unflatten(1, (3, rest_count // 3)).transpose(1, 2)
    if FRAME_COMMENT in header.comments:
        tensors = _turn(tensors, conjugate_quaternions(torch.tensor(WORLD_TO_FILE)))
    model = GaussianModel(**tensors)
    model.active_sh_degree = degree
    return model


def write_points(path: Path | str, points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"]) -> None:
    """Write a point cloud as LucidDreamer does: our frame, zero normals, colours in [0, 1] as 8 bits."""
    floats = ("x", "y", "z", "nx", "ny", "nz")
    table = np.zeros(len(points), dtype=[(name, "<f4") for name in floats] + [(name, "u1") for name in _RGB])
    for axis, name in enumerate("xyz"):
        table[name] = points[:, axis].cpu().numpy()
    for channel, name in enumerate(_RGB):
        table[name] = (colors[:, channel].clamp(0, 1) * 255).round().cpu().numpy()
    _write_vertices(path, table, [])


def read_points(path: Path | str) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None]:
    """Positions in our frame, and colours in [0, 1] if there are any, of the vertices of any PLY.

    Gaussians give their centres and the colour of band 0.

    Raises:
        UserError: the file is missing, broken, cut off, has no vertices or no positions, or is not finite.
    """
    names = _scalar_vertex_properties(path, _read_header(path))
    if set(COLUMNS["sh_dc"]) <= names and set(COLUMNS["quats"]) <= names:
        model = read_gaussians(path)
        return model.means.detach(), sh_dc_to_rgb(model.sh_dc[:, 0]).detach().clamp(0, 1)
    if not set(COLUMNS["means"]) <= names:
        raise UserError(
            f"{path}: expected vertices with x, y and z, got {', '.join(sorted(names)) or 'none'}"
        )
    vertices = _read_vertices(path)
    points = _table(path, vertices, COLUMNS["means"])
    if not set(_RGB) <= names:
        return points, None
    colors = _table(path, vertices, _RGB)
    is_integer = np.issubdtype(vertices["red"].dtype, np.integer)
    full = float(np.iinfo(vertices["red"].dtype).max) if is_integer else 1.0
    return points, (colors / full).clamp(0, 1)


def has_faces(path: Path | str) -> bool:
    """Whether the file's header declares a mesh."""
    return any(element.name == "face" and element.count > 0 for element in _read_header(path).elements)


_RGB = ("red", "green", "blue")


def _rest_columns(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(count))


def _turn(tensors: dict[str, Tensor], quat: Float[Tensor, "4"]) -> dict[str, Tensor]:
    """Rotate Gaussians about the origin: positions, orientations and the bands above 0."""
    matrix = quaternions_to_matrices(quat.double()).round()  # its entries are 0 and -1: positions stay exact
    sh = torch.cat([tensors["sh_dc"], tensors["sh_rest"]], dim=1)
    return tensors | {
        "means": tensors["means"] @ matrix.float().T,
        "quats": multiply_quaternions(quat, tensors["quats"]),
        "sh_rest": rotate_sh(sh, matrix)[:, 1:],
    }


def _write_vertices(path: Path | str, table: np.ndarray, comments: Iterable[str]) -> None:
    lines = [" ".join(comment.split()).encode("ascii", "backslashreplace").decode() for comment in comments]
    element = PlyElement.describe(table, "vertex")
    with atomic(path) as temporary:
        PlyData([element], text=False, byte_order="<", comments=lines).write(temporary)


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: dict[str, str]
    """Name to type; a list's type is "list" and both of its types."""


@dataclass(frozen=True)
class _Header:
    elements: list[_Element]
    comments: list[str]


def _read_header(path: Path | str) -> _Header:
    """Parse the header and check that the file is long enough for what it declares.

    plyfile would reserve memory for the declared number of rows before it reads them.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    end = re.search(rb"\nend_header[ \t]*\r?\n", start)
    if not re.match(rb"ply[ \t]*\r?\n", start) or end is None:
        raise UserError(f"{path}: expected a PLY file, got no PLY header; check the file")
    lines = [line.split() for line in start[: end.start()].decode("latin-1").splitlines()[1:]]
    try:
        header, text = _parse_header(lines)
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path}: expected a PLY header, got a broken one ({error}); check the file"
        ) from error
    needed = sum(element.count * _least_row_size(element, text) for element in header.elements)
    if size - end.end() < needed - text:  # the last line of a text file may lack its end
        raise UserError(
            f"{path}: expected {needed} bytes or more after the header, got {size - end.end()}; it is cut off"
        )
    return header


def _parse_header(lines: list[list[str]]) -> tuple[_Header, bool]:
    """Elements and comments, and whether the body is text. Raises ValueError or IndexError."""
    elements: list[_Element] = []
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
                elements.append(_Element(name, int(count), {}))
            case ["property", "list", length, kind, name]:
                elements[-1].properties[name] = f"list {_known(length)} {_known(kind)}"
            case ["property", kind, name]:
                elements[-1].properties[name] = _known(kind)
            case []:
                continue
            case _:
                raise ValueError(" ".join(words)[:80])
    if len(formats) != 1 or formats[0] not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise ValueError(f"format {' '.join(formats) or 'missing'}")
    return _Header(elements, comments), formats[0] == "ascii"


def _known(kind: str) -> str:
    if kind not in TYPE_SIZES:
        raise ValueError(f"type {kind[:20]}")
    return kind


def _least_row_size(element: _Element, text: bool) -> int:
    """Bytes that a row takes at least: two a property in text, empty lists in binary."""
    if text:
        return 2 * len(element.properties)
    return sum(TYPE_SIZES[kind.removeprefix("list ").split()[0]] for kind in element.properties.values())


def _scalar_vertex_properties(path: Path | str, header: _Header) -> set[str]:
    vertex = next((element for element in header.elements if element.name == "vertex"), None)
    if vertex is None or vertex.count == 0:
        raise UserError(f"{path}: expected vertices, got none; check the file")
    return {name for name, kind in vertex.properties.items() if not kind.startswith("list")}


def _read_vertices(path: Path | str) -> np.ndarray:
    try:
        return PlyData.read(str(path), mmap=False)["vertex"].data
    except (PlyParseError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read as PLY ({error}); check the file") from error


def _table(path: Path | str, vertices: np.ndarray, names: Sequence[str]) -> Float[Tensor, "N C"]:
    """The named properties as float32 columns."""
    table = np.empty((len(vertices), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        table[:, column] = vertices[name]
    finite = np.isfinite(table)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise UserError(
            f"{path}: expected finite numbers, got {table[row, column]} as {names[column]} of vertex {row}; "
            "check the file"
        )
    return torch.from_numpy(table)
