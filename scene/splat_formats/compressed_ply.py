"""SuperSplat's compressed .ply: 16 bytes a Gaussian, and bytes for the harmonics.

Chunks of 256 neighbours have bounds of their positions, log scales and colours, within which each is packed into 32
bits; rotations are the three smaller parts of a quaternion in 10 bits each. The axes are those of any .ply, y down.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from scene.frame import FRAME_COMMENT, WORLD_TO_FILE
from scene.gaussian_model import GaussianModel
from scene.ply_header import Element, Header, read_header
from scene.raw_gaussians import model_of, raw_table
from utils.errors import UserError
from utils.files import atomic
from utils.spherical_harmonics import rgb_to_sh_dc, sh_dc_to_rgb

CHUNK = 256
PARTS = {
    "packed_position": ("x", "y", "z"),
    "packed_scale": ("scale_x", "scale_y", "scale_z"),
    "packed_color": ("r", "g", "b"),
}
"""What is packed within bounds, which are called `min_` and `max_` of these."""
BOUNDS = tuple(f"{end}_{part}" for parts in PARTS.values() for end in ("min", "max") for part in parts)
PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
WIDTHS = {"packed_position": (11, 10, 11), "packed_scale": (11, 10, 11), "packed_color": (8, 8, 8, 8)}
"""Bits of each part, the first in the uppermost."""
SH_RANGE = 8.0
"""Harmonics from -4 to 4, in 256 steps."""
TYPES = {"float": "<f4", "float32": "<f4", "uint": "<u4", "uint32": "<u4", "uchar": "u1", "uint8": "u1"}


def is_compressed(header: Header) -> bool:
    """Whether a .ply is of this kind."""
    return any("packed_position" in element.properties for element in header.elements)


def write(path: Path | str, model: GaussianModel) -> None:
    """Write chunks along a Morton curve.

    Raises:
        UserError: a parameter is not finite, or the file cannot be written.
    """
    raw = raw_table(path, model, WORLD_TO_FILE)
    order = torch.from_numpy(_morton_order(raw["means"].numpy()))
    raw = {name: tensor[order] for name, tensor in raw.items()}
    count = len(order)
    bounds, shares = [], []
    colors = sh_dc_to_rgb(raw["sh"][:, 0])
    for values in (raw["means"], raw["log_scales"].clamp(-20, 20), colors):
        low, high = _chunk_bounds(values)
        bounds += [low, high]
        span = (high - low).repeat_interleave(CHUNK, dim=0)[:count]
        share = (values - low.repeat_interleave(CHUNK, dim=0)[:count]) / span
        shares.append(torch.where(span < 1e-5, 0.0, share))
    rows = np.empty(count, dtype=[(name, "<u4") for name in PACKED])
    rows["packed_position"] = _pack(shares[0], WIDTHS["packed_position"])
    rows["packed_rotation"] = _pack_rotation(raw["quats"])
    rows["packed_scale"] = _pack(shares[1], WIDTHS["packed_scale"])
    rows["packed_color"] = _pack(
        torch.cat([shares[2], raw["opacity_logits"].sigmoid()], dim=1), WIDTHS["packed_color"]
    )
    rest = raw["sh"][:, 1:].transpose(1, 2).flatten(1)
    elements = [("chunk", len(bounds[0]), "float", BOUNDS), ("vertex", count, "uint", PACKED)]
    if rest.shape[1]:
        elements.append(("sh", count, "uchar", tuple(f"f_rest_{index}" for index in range(rest.shape[1]))))
    lines = ["ply", "format binary_little_endian 1.0", f"comment {FRAME_COMMENT}"]
    for name, length, kind, properties in elements:
        lines += [f"element {name} {length}", *(f"property {kind} {each}" for each in properties)]
    with atomic(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode())
        file.write(torch.cat(bounds, dim=1).numpy().astype("<f4").tobytes())
        file.write(rows.tobytes())
        file.write(((rest / SH_RANGE + 0.5) * 256).clamp(0, 255).byte().numpy().tobytes())


def read(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read into our frame; see `scene.splat_formats.read_any`."""
    header = read_header(path)
    found = {element.name: element for element in header.elements}
    bounds, rows, rest = (_rows(path, header, found.get(name)) for name in ("chunk", "vertex", "sh"))
    missing = set(PACKED) - set(rows.dtype.names or ()) or set(BOUNDS[:12]) - set(bounds.dtype.names or ())
    if missing or len(rows) == 0 or len(bounds) != -(-len(rows) // CHUNK) or len(rest) not in (0, len(rows)):
        raise UserError(
            f"{path}: expected chunks of {CHUNK} packed Gaussians, got {len(rows):,} in {len(bounds):,} chunks"
            f"{' without ' + ', '.join(sorted(missing)[:3]) if missing else ''}; export it again"
        )
    names = tuple(f"f_rest_{index}" for index in range(len(rest.dtype.names or ())))
    if names != (rest.dtype.names or ()) or len(names) not in (0, 9, 24, 45):
        raise UserError(
            f"{path}: expected 0, 9, 24 or 45 properties f_rest_*, got {len(names)}; export it again"
        )

    def values(name: str) -> Float[Tensor, "N C"]:
        shares = _unpack(rows[name], WIDTHS[name])
        low, high = (
            _each(bounds, [f"{end}_{part}" for part in PARTS[name]], len(rows)) for end in ("min", "max")
        )
        return torch.cat([low * (1 - shares[:, :3]) + high * shares[:, :3], shares[:, 3:]], dim=1)

    colors = values("packed_color")
    sh = [rgb_to_sh_dc(colors[:, :3])[:, None]]
    if names:
        stored = torch.from_numpy(np.stack([rest[name] for name in names], axis=1).astype(np.float32))
        middles = torch.where(stored == 0, 0.0, torch.where(stored == 255, 256.0, stored + 0.5))
        sh.append(((middles / 256 - 0.5) * SH_RANGE).unflatten(1, (3, len(names) // 3)).transpose(1, 2))
    raw = {
        "means": values("packed_position"),
        "log_scales": values("packed_scale"),
        "quats": _unpack_rotation(rows["packed_rotation"]),
        "opacity_logits": colors[:, 3:].logit(),
        "sh": torch.cat(sh, dim=1),
    }
    return model_of(path, raw, WORLD_TO_FILE, sh_degree)


def _rows(path: Path | str, header: Header, element: Element | None) -> np.ndarray:
    """The rows of an element, which must be numbers of the types that this kind of file has; none where it is not."""
    start = header.size
    for each in header.elements:
        kinds = [(name, TYPES.get(kind, "")) for name, kind in each.properties.items()]
        if header.form != "binary_little_endian" or any(kind == "" for _, kind in kinds):
            raise UserError(
                f"{path}: expected a binary compressed .ply of floats, 32-bit numbers and bytes, got {header.form}"
                " or other types; export it again"
            )
        kind = np.dtype(kinds)
        if each is element:
            return np.fromfile(path, dtype=kind, count=each.count, offset=start)
        start += each.count * kind.itemsize
    return np.empty(0, dtype=[])


def _each(bounds: np.ndarray, names: list[str], count: int) -> Float[Tensor, "N 3"]:
    """A bound of each Gaussian's chunk. Files without bounds of the colours have them from 0 to 1."""
    if not set(BOUNDS[12:]) <= set(bounds.dtype.names or ()) and names[0] in BOUNDS[12:]:
        return torch.full((count, 3), 0.0 if names[0].startswith("min") else 1.0)
    table = torch.from_numpy(np.stack([bounds[name].astype(np.float32) for name in names], axis=1))
    return table.repeat_interleave(CHUNK, dim=0)[:count]


def _chunk_bounds(values: Float[Tensor, "N 3"]) -> tuple[Float[Tensor, "C 3"], Float[Tensor, "C 3"]]:
    """Smallest and largest of each chunk."""
    last = values[-1:].expand(-len(values) % CHUNK, -1)
    chunks = torch.cat([values, last]).unflatten(0, (-1, CHUNK))
    return chunks.amin(dim=1), chunks.amax(dim=1)


def _pack(shares: Float[Tensor, "N C"], widths: tuple[int, ...]) -> UInt32[np.ndarray, "N"]:
    """Parts in [0, 1], rounded to their bits."""
    packed = torch.zeros(len(shares), dtype=torch.int64)
    for part, width in zip(shares.unbind(1), widths, strict=True):
        most = 2**width - 1
        packed = packed << width | (part.double() * most + 0.5).floor().clamp(0, most).long()
    return packed.numpy().astype(np.uint32)


def _unpack(packed: UInt32[np.ndarray, "N"], widths: tuple[int, ...]) -> Float[Tensor, "N C"]:
    left, parts = torch.from_numpy(packed.astype(np.int64)), []
    for width in reversed(widths):
        parts.append((left & 2**width - 1).double() / (2**width - 1))
        left = left >> width
    return torch.stack(parts[::-1], dim=1).float()


def _pack_rotation(quats: Float[Tensor, "N 4"]) -> UInt32[np.ndarray, "N"]:
    """2 bits for the largest of w, x, y, z, and 10 for each other one, in [-sqrt(1/2), sqrt(1/2)]."""
    largest = quats.abs().argmax(dim=1, keepdim=True)
    quats = quats * torch.where(quats.gather(1, largest) < 0, -1.0, 1.0)
    others = _others(largest[:, 0])
    shares = quats.gather(1, others) * 0.5**0.5 + 0.5
    packed = _pack(shares, (10, 10, 10)).astype(np.int64) | (largest[:, 0].numpy() << 30)
    return packed.astype(np.uint32)


def _unpack_rotation(packed: UInt32[np.ndarray, "N"]) -> Float[Tensor, "N 4"]:
    largest = torch.from_numpy((packed >> 30).astype(np.int64))
    parts = (_unpack(packed, (10, 10, 10)) - 0.5) * 2**0.5
    rest = (1 - parts.square().sum(dim=1, keepdim=True)).clamp_min(0).sqrt()
    quats = torch.empty(len(packed), 4)
    quats.scatter_(1, _others(largest), parts)
    return quats.scatter_(1, largest[:, None], rest)


def _others(largest: Int[Tensor, "N"]) -> Int[Tensor, "N 3"]:
    """The other three of four columns, in order."""
    columns = torch.arange(3).expand(len(largest), 3)
    return columns + (columns >= largest[:, None])


def _morton_order(means: Float[np.ndarray, "N 3"]) -> Int[np.ndarray, "N"]:
    """Indices along a curve that fills space: neighbours on it are neighbours in space."""
    low, high = means.min(axis=0), means.max(axis=0)
    cells = ((means - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.int64)
    codes = np.zeros(len(means), dtype=np.int64)
    for bit in range(10):
        for axis in range(3):
            codes |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return np.argsort(codes, kind="stable")
