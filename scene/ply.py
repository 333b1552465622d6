"""PLY files: Gaussians as every splat viewer reads them, and point clouds; the only user of plyfile.

What is written has x right, y down, z forward, as viewers expect it: the front camera's own axes, so an object stands
upright. A comment marks such files, and reading turns them back. A file without it is taken to be in our own frame
(z up, front +y), which is LucidDreamer's.
"""

import io
import logging
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from scene.frame import FRAME_COMMENT, WORLD_TO_FILE, to_file
from scene.gaussian_model import GaussianModel
from scene.ply_header import Element, Header, header_of, read_header
from scene.raw_gaussians import finite_rows, model_of, raw_table
from utils.errors import UserError
from utils.files import atomic
from utils.inputs import WithHeader
from utils.spherical_harmonics import MAX_DEGREE, coefficient_count, sh_dc_to_rgb

log = logging.getLogger(__name__)

MOST_LIST_ROWS = 200_000
"""Rows with lists, at most, that are read to reach the vertices: plyfile takes 150 bytes and microseconds for each."""

COLUMNS = {
    "means": ("x", "y", "z"),
    "sh_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity_logits": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "quats": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
FILTER = "filter_3D"
"""Standard deviation by which Mip-Splatting (Yu et al. 2024) and its heirs widen each Gaussian as they draw it."""


def write_gaussians(path: Path | str, model: GaussianModel, comments: Sequence[str] = ()) -> None:
    """Write the 3D Gaussian Splatting format: float32, values before activation, f_rest channel-major.

    Quaternions are written normalised and `comments` as ASCII, each on one line.

    Raises:
        UserError: a parameter is not finite, or the file cannot be written.
    """
    turned = raw_table(path, model, WORLD_TO_FILE)
    rest = turned["sh"][:, 1:].transpose(1, 2).flatten(1)
    values = [
        turned["means"],
        torch.zeros_like(turned["means"]),
        turned["sh"][:, 0],
        rest,
        turned["opacity_logits"],
        turned["log_scales"],
        turned["quats"],
    ]
    columns = [*COLUMNS["means"], "nx", "ny", "nz", *COLUMNS["sh_dc"], *_rest_columns(rest.shape[1])]
    columns += [*COLUMNS["opacity_logits"], *COLUMNS["log_scales"], *COLUMNS["quats"]]
    table = torch.cat(values, dim=1).numpy().astype("<f4")
    _write_vertices(path, table.view([(name, "<f4") for name in columns])[:, 0], [FRAME_COMMENT, *comments])


def read_gaussians(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read a 3D Gaussian Splatting PLY of any property order, number type and byte order, into our frame.

    All bands that the file holds are active. An opacity of exactly 0 or 1 and a scale of 0, whose stored values are
    infinite, become finite; Gaussians that are not finite otherwise are left out, with a warning. Where they lie too
    far from the origin for float32, all are moved there, with a warning. Flat ones (2DGS) have a third scale of 0, and
    Mip-Splatting's filter is applied.

    Args:
        sh_degree: Bands up to this degree can be learnt; those that the file does not hold are zero.

    Raises:
        UserError: the file is missing, broken, cut off, empty, compressed, lacks a property, or has no finite Gaussian.
    """
    header = read_header(path)
    names = _scalar_vertex_properties(path, header)
    rest_count = sum(re.fullmatch(r"f_rest_\d+", name) is not None for name in names)
    degree = next((d for d in range(MAX_DEGREE + 1) if 3 * (coefficient_count(d) - 1) == rest_count), None)
    if degree is None:
        raise UserError(
            f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, got {rest_count}; export it again"
        )
    columns = COLUMNS | {"sh_rest": _rest_columns(rest_count)}
    flat = {*COLUMNS["log_scales"]} - names == {"scale_2"}
    if flat:
        log.warning("%s: holds flat Gaussians (2DGS); their third scale is taken for 0", path)
        columns["log_scales"] = COLUMNS["log_scales"][:2]
    missing = [name for group in columns.values() for name in group if name not in names]
    if missing:
        raise UserError(
            f"{path}: expected a Gaussian PLY, got none of {', '.join(missing[:4])}; "
            "a point cloud or mesh can be used with GenerateCamParams.init_shape: file"
        )
    vertices = _read_vertices(path, header)
    tensors = {name: _table(vertices, group) for name, group in columns.items() if name != "means"}
    tensors["means"] = _table(vertices, COLUMNS["means"], np.float64)
    rest = tensors.pop("sh_rest").unflatten(1, (3, rest_count // 3)).transpose(1, 2)
    tensors["sh"] = torch.cat([tensors.pop("sh_dc")[:, None], rest], dim=1)
    if flat:
        tensors["log_scales"] = torch.nn.functional.pad(tensors["log_scales"], (0, 1), value=-torch.inf)
    if FILTER in names:
        tensors |= _filtered(tensors, _table(vertices, (FILTER,)))
    ours = WORLD_TO_FILE if FRAME_COMMENT in header.comments else None
    return model_of(path, tensors, ours, sh_degree)


def _filtered(tensors: Mapping[str, Tensor], widths: Float[Tensor, "N 1"]) -> dict[str, Tensor]:
    """Gaussians as they are drawn where their trainer widens them by a filter: the same mass, spread further."""
    scales = tensors["log_scales"].double().exp()
    wide = (scales.square() + widths.double().square()).sqrt()
    share = (scales / wide).prod(dim=1, keepdim=True).nan_to_num(1.0)
    opacities = tensors["opacity_logits"].double().sigmoid() * share
    return {"log_scales": wide.log().float(), "opacity_logits": opacities.logit().float()}


def write_points(path: Path | str, points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"]) -> None:
    """Write a point cloud as LucidDreamer does, in the frame of our Gaussians: normals of zero, colours as bytes."""
    floats = ("x", "y", "z", "nx", "ny", "nz")
    table = np.zeros(len(points), dtype=[(name, "<f4") for name in floats] + [(name, "u1") for name in _RGB])
    for name, values in zip("xyz", to_file(points.cpu()).unbind(dim=1), strict=True):
        table[name] = values.numpy()
    for channel, name in enumerate(_RGB):
        table[name] = (colors[:, channel].clamp(0, 1) * 255).round().cpu().numpy()
    _write_vertices(path, table, [FRAME_COMMENT])


def read_points(path: Path | str) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None]:
    """Positions in our frame, and colours in [0, 1] if there are any, of the vertices of any PLY.

    Positions keep the file's precision: float64 where it has more than float32. Gaussians, of any kind, give their
    centres and the colour of band 0; those that are not finite are left out, with a warning.

    Raises:
        UserError: the file is missing, broken, cut off, compressed, has no vertices or no positions, or is not finite.
    """
    header = read_header(path)
    names = _scalar_vertex_properties(path, header)
    if not set(COLUMNS["means"]) <= names:
        raise UserError(
            f"{path}: expected vertices with x, y and z, got {', '.join(sorted(names)) or 'none'}; export it with "
            "positions of these names"
        )
    vertices = _read_vertices(path, header)
    kinds = {name: vertices[name].dtype for name in vertices.dtype.names or ()}
    points = _table(vertices, COLUMNS["means"], np.result_type(np.float32, *(kinds[axis] for axis in "xyz")))
    ours = to_file if FRAME_COMMENT in header.comments else torch.clone
    if set(COLUMNS["sh_dc"]) <= names:
        found = finite_rows(path, {"means": points, "sh_dc": _table(vertices, COLUMNS["sh_dc"])})
        return ours(found["means"]), sh_dc_to_rgb(found["sh_dc"]).clamp(0, 1)
    _refuse_broken(path, points, COLUMNS["means"])
    channels = color_names(names)
    if not channels:
        return ours(points), None
    colors = _table(vertices, channels)
    _refuse_broken(path, colors, channels)
    return ours(points), (colors / color_range(colors, kinds[channels[0]])).clamp(0, 1)


def color_names(names: Collection[str]) -> tuple[str, ...]:
    """What red, green and blue are called among properties: a name of `COLORS`, or one like them (`Red`, `scalar_R`).

    Empty where there are none.
    """
    known = next((each for each in COLORS if set(each) <= set(names)), ())
    lower = {name.lower(): name for name in names}
    for name in () if known else sorted(lower):
        for red, *others in (_RGB, ("r", "g", "b")):
            before = name.removesuffix(red)
            three = [before + each for each in (red, *others)]
            if before != name and not before[-1:].isalnum() and set(three) <= lower.keys():
                return tuple(lower[each] for each in three)
    return known


def color_range(colors: np.ndarray | Tensor, kind: np.dtype) -> float:
    """The number that stands for full light, of colours of any shape that a file stores as numbers of `kind`.

    Bytes reach 255. Wider numbers are written for 0 to 255 and 0 to 65535 alike, and floats for 0 to 1 as well: their
    largest value tells. Floats may pass 1 a little, as light does.
    """
    if kind.itemsize == 1:
        return 255.0
    most = float(colors.max()) if len(colors) else 0.0
    if kind.kind == "f" and most <= 2.0:
        return 1.0
    return next((full for full in (255.0, 65535.0) if most <= full), most)


def has_faces(path: Path | str) -> bool:
    """Whether the file's header declares a mesh."""
    return any(element.name == "face" and element.count > 0 for element in read_header(path).elements)


_RGB = ("red", "green", "blue")
COLORS = (_RGB, ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
"""Names that colours have in point clouds, the commonest first."""


def _rest_columns(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{index}" for index in range(count))


def _write_vertices(path: Path | str, table: np.ndarray, comments: Iterable[str]) -> None:
    lines = [" ".join(comment.split()).encode("ascii", "backslashreplace").decode() for comment in comments]
    element = PlyElement.describe(table, "vertex")
    with atomic(path) as temporary:
        PlyData([element], text=False, byte_order="<", comments=lines).write(temporary)


def _scalar_vertex_properties(path: Path | str, header: Header) -> set[str]:
    vertex = next((element for element in header.elements if element.name == "vertex"), None)
    if vertex is None or vertex.count == 0:
        raise UserError(f"{path}: expected vertices, got none; check the file")
    if "packed_position" in vertex.properties:
        raise UserError(
            f"{path}: expected a plain PLY, got SuperSplat's compressed one; give it as pretrained_model_path, or "
            "export it from there uncompressed"
        )
    return {name for name, kind in vertex.properties.items() if not kind.startswith("list")}


def _read_vertices(path: Path | str, header: Header) -> np.ndarray:
    """The rows of the vertices, mapped where the file is binary; what follows them is not read."""
    for element in _up_to(header, "vertex"):
        if element.lists and element.count > MOST_LIST_ROWS:
            raise UserError(
                f"{path}: expected at most {MOST_LIST_ROWS:,} rows with lists up to the vertices, "
                f"got {element.count:,} of {element.name[:40]}; export the vertices alone"
            )
    return read_elements(path, header, "vertex")["vertex"].data


def read_elements(
    path: Path | str, header: Header, *names: str, face_lists: Mapping[str, int] | None = None
) -> PlyData:
    """The elements with rows up to the last of `names`, mapped where they are binary and without lists.

    Faces are mapped where all their lists are in `face_lists`, by the length that each must have.

    Raises:
        UserError: the file is broken, or a list has another length.
    """
    try:
        with Path(path).open("rb") as file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "loadtxt: input contained no data")  # a list of no numbers
            file.seek(header.size)
            stream = WithHeader(header_of(header.form, _up_to(header, *names)), file)
            return PlyData.read(stream, mmap="r", known_list_len={"face": face_lists or {}})
    except (PlyParseError, ValueError, KeyError, OverflowError, OSError) as error:
        raise UserError(f"{path}: cannot be read as PLY ({error}); check the file") from error


def _up_to(header: Header, *names: str) -> list[Element]:
    last = max(index for index, element in enumerate(header.elements) if element.name in names)
    return [element for element in header.elements[: last + 1] if element.count > 0]


def with_faces(data: PlyData, faces: np.ndarray, comments: Iterable[str]) -> Any:
    """A binary file of the vertices of `data` and these faces, to be read once."""
    vertices = [element for element in data if element.name == "vertex"]
    file = io.BytesIO()
    PlyData([*vertices, PlyElement.describe(faces, "face")], byte_order="<").write(file)
    file.seek(len("ply\nformat binary_little_endian 1.0\n"))
    start = header_of("binary_little_endian", (), comments)  # plyfile writes comments in ASCII alone
    return WithHeader(start.removesuffix(b"end_header\n"), file)


def _table(vertices: np.ndarray, names: Sequence[str], kind: Any = np.float32) -> Float[Tensor, "N C"]:
    """The named properties as columns."""
    table = np.empty((len(vertices), len(names)), dtype=kind)
    with np.errstate(over="ignore", invalid="ignore"):  # of what becomes infinite or NaN the caller asks
        for column, name in enumerate(names):
            table[:, column] = vertices[name]
    return torch.from_numpy(table)


def _refuse_broken(path: Path | str, table: Float[Tensor, "N C"], names: Sequence[str]) -> None:
    finite = table.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise UserError(
            f"{path}: expected finite numbers, got {table[row, column]} as {names[column]} of vertex {row}; "
            "check the file"
        )
