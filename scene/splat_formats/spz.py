"""`.spz`, Niantic's compressed Gaussians: about a tenth of a .ply, harmonics included (github.com/nianticlabs/spz).

Attributes lie one after another, of all Gaussians each: positions in 24-bit fixed point, opacities, colours and scales
(logarithms) in bytes, rotations as the three smallest parts of a quaternion in 10 bits each (version 2: three bytes),
harmonics in bytes that are rounded to 5 bits (band 1) or 4. Versions 2 and 3 are one gzip stream; version 4 has a plain
header and a zstd stream for each attribute. The frame is right, up, back: y up, front +z.
"""

import gzip
import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scene.frame import WORLD_TO_Y_UP
from scene.gaussian_model import GaussianModel
from scene.raw_gaussians import model_of, raw_table
from scene.splat_formats.splat import to_bytes
from utils.errors import UserError
from utils.files import atomic
from utils.inputs import regular_file
from utils.spherical_harmonics import MAX_DEGREE, coefficient_count

log = logging.getLogger(__name__)

MAGIC = b"NGSP"
HEADER = struct.Struct("<4sIIBBBB")
"""Magic, version, count, degree of the harmonics, fractional bits, flags; then 0, or in version 4 the streams."""
PLAIN_HEADER = 32
FRACTIONAL_BITS = 12
COARSE_BITS = 8
"""Of fewer, an object of one unit shows the steps."""
COLOR_SCALE = 0.15
"""Bytes span band-0 coefficients of +-0.5 / 0.15."""
MOST_GAUSSIANS = 50_000_000
"""What a file may claim; each takes some 300 bytes while it is read."""


def write(path: Path | str, model: GaussianModel, version: int = 3) -> None:
    """Write version 3, which nearly all readers know, or 4.

    Raises:
        UserError: a parameter is not finite, a position lies outside what 24 bits hold, zstandard is missing for
            version 4, or the file cannot be written.
    """
    raw = raw_table(path, model, WORLD_TO_Y_UP)
    degree = round(raw["sh"].shape[1] ** 0.5) - 1
    reach = float(raw["means"].abs().max())
    bits = FRACTIONAL_BITS
    while bits > 0 and reach * 2**bits >= 2**23:
        bits -= 1
    if reach * 2**bits >= 2**23:
        raise UserError(
            f"{path}: expected positions within 8,388,607 units, got {reach:g}; scale the asset down"
        )
    if bits < COARSE_BITS:
        log.warning(
            "%s: a Gaussian %g units away leaves room for positions in steps of 1/%d; remove it, or choose another "
            "format",
            path, reach, 2**bits,
        )  # fmt: skip
    parts = [
        _fixed_point(raw["means"], bits),
        to_bytes(255 * raw["opacity_logits"].sigmoid()),
        to_bytes(255 * (COLOR_SCALE * raw["sh"][:, 0] + 0.5)),
        to_bytes(16 * (raw["log_scales"] + 10)),
        _smallest_three(raw["quats"]),
        *([_harmonics(raw["sh"][:, 1:])] if degree else []),
    ]
    streams = [np.ascontiguousarray(part).tobytes() for part in parts]
    count = len(raw["means"])
    if version == 3:
        data = HEADER.pack(MAGIC, 3, count, degree, bits, 0, 0) + b"".join(streams)
        data = gzip.compress(data, mtime=0)
    else:
        compressed = [_zstandard(path).ZstdCompressor(level=12).compress(stream) for stream in streams]
        head = HEADER.pack(MAGIC, 4, count, degree, bits, 0, len(streams)) + struct.pack("<I", PLAIN_HEADER)
        table = [struct.pack("<QQ", *map(len, pair)) for pair in zip(compressed, streams, strict=True)]
        data = b"".join([head.ljust(PLAIN_HEADER, b"\0"), *table, *compressed])
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def read(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read versions 2 to 4 into our frame; see `scene.splat_formats.read_any`."""
    path = regular_file(path)
    data = path.read_bytes()
    try:
        version, count, degree, bits, parts = (_plain if data[:4] == MAGIC else _gzipped)(path, data)
    except (zlib.error, struct.error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read as .spz ({error}); check the file") from error
    positions, opacities, colors, scales, rotations, harmonics = (
        np.frombuffer(part, dtype=np.uint8).reshape(count, -1) for part in parts
    )
    sh = _floats(harmonics).view(count, coefficient_count(degree) - 1, 3)
    raw = {
        "means": _positions(positions, bits),
        "log_scales": _floats(scales) / 16 - 10,
        "quats": _quaternions(rotations) if version > 2 else _short_quaternions(rotations),
        "opacity_logits": (_floats(opacities) / 255).logit(),
        "sh": torch.cat([((_floats(colors) / 255 - 0.5) / COLOR_SCALE)[:, None], sh / 128 - 1], dim=1),
    }
    return model_of(path, raw, WORLD_TO_Y_UP, sh_degree)


def _header(path: Path, data: bytes, versions: tuple[int, ...]) -> tuple[int, int, int, int, list[int], int]:
    """Version, count, degree, fractional bits, bytes of each attribute, and the last byte."""
    magic, version, count, degree, bits, _flags, last = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("no header")
    if version not in versions:
        raise UserError(f"{path}: expected .spz of version 2, 3 or 4, got {version}; save it as version 3")
    if degree > MAX_DEGREE:
        raise UserError(
            f"{path}: expected harmonics up to degree {MAX_DEGREE}, got {degree}; save it with fewer"
        )
    if not 0 < count <= MOST_GAUSSIANS or bits > 24:
        raise ValueError(f"{count:,} Gaussians with {bits} fractional bits")
    widths = [9, 1, 3, 3, 4 if version > 2 else 3, 3 * (coefficient_count(degree) - 1)]
    return version, count, degree, bits, [width * count for width in widths], last


def _gzipped(path: Path, data: bytes) -> tuple[int, int, int, int, list[bytes]]:
    """No more is unpacked than the header announces."""
    unpacker = zlib.decompressobj(wbits=31)
    head = unpacker.decompress(data, HEADER.size)
    version, count, degree, bits, sizes, _ = _header(path, head, (2, 3))
    body = unpacker.decompress(unpacker.unconsumed_tail, sum(sizes))
    if len(body) < sum(sizes):
        raise ValueError(f"{len(body):,} bytes of {sum(sizes):,}")
    ends = np.cumsum(sizes)
    return (
        version,
        count,
        degree,
        bits,
        [body[end - size : end] for end, size in zip(ends, sizes, strict=True)],
    )


def _plain(path: Path, data: bytes) -> tuple[int, int, int, int, list[bytes]]:
    version, count, degree, bits, sizes, streams = _header(path, data, (4,))
    (start,) = struct.unpack_from("<I", data, HEADER.size)
    if streams != sum(size > 0 for size in sizes):
        raise ValueError(f"{streams} streams")
    lengths = [struct.unpack_from("<Q", data, start + 16 * stream)[0] for stream in range(streams)]
    start += 16 * streams
    parts = []
    decompressor = _zstandard(path).ZstdDecompressor()
    for size, length in zip(sizes, [*lengths, 0], strict=False):
        try:
            part = (
                decompressor.stream_reader(io.BytesIO(data[start : start + length])).read(size)
                if size
                else b""
            )
        except _zstandard(path).ZstdError as error:
            raise ValueError(str(error)) from error
        if len(part) < size:
            raise ValueError(f"{len(part):,} bytes of {size:,}")
        parts.append(part)
        start += length
    return version, count, degree, bits, parts + [b""] * (len(sizes) - len(parts))


def _zstandard(path: Path | str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{path}: .spz of version 4 needs zstandard; run `python -m pip install zstandard`, or use version 3"
        ) from error
    return zstandard


def _floats(values: UInt8[np.ndarray, "N C"]) -> Float[Tensor, "N C"]:
    return torch.from_numpy(values.astype(np.float32))


def _fixed_point(means: Float[Tensor, "N 3"], bits: int) -> UInt8[np.ndarray, "N 9"]:
    whole = (means.double() * 2**bits).round().to(torch.int32).numpy().astype("<i4")
    return whole.view(np.uint8).reshape(len(whole), 3, 4)[:, :, :3].reshape(len(whole), 9)


def _positions(stored: UInt8[np.ndarray, "N 9"], bits: int) -> Float[Tensor, "N 3"]:
    wide = np.zeros((len(stored), 3, 4), dtype=np.uint8)
    wide[:, :, 1:] = stored.reshape(-1, 3, 3)  # at the upper end, where the sign is
    return torch.from_numpy(wide.view("<i4")[:, :, 0].astype(np.float64) / 2 ** (8 + bits)).float()


def _smallest_three(quats: Float[Tensor, "N 4"]) -> UInt8[np.ndarray, "N 4"]:
    """2 bits for the largest of x, y, z, w, and sign and 9 bits of each other one, in units of sqrt(1/2) / 511."""
    xyzw = quats[:, [1, 2, 3, 0]]
    largest = xyzw.abs().argmax(dim=1, keepdim=True)
    xyzw = xyzw * torch.where(xyzw.gather(1, largest) < 0, -1.0, 1.0)
    sizes = (xyzw.abs() * 2**0.5 * 511).round().clamp(0, 511).to(torch.int64)
    codes = sizes + 512 * (xyzw < 0)
    packed = largest[:, 0]
    for axis in range(4):
        packed = torch.where(largest[:, 0] == axis, packed, packed << 10 | codes[:, axis])
    return packed.numpy().astype("<u4").view(np.uint8).reshape(-1, 4)


def _quaternions(stored: UInt8[np.ndarray, "N 4"]) -> Float[Tensor, "N 4"]:
    packed = torch.from_numpy(np.ascontiguousarray(stored).view("<u4")[:, 0].astype(np.int64))
    largest = packed >> 30
    xyzw = torch.zeros(len(packed), 4)
    for axis in reversed(range(4)):
        here = largest != axis
        size = (packed & 511).float() / 511 * 0.5**0.5
        xyzw[:, axis] = torch.where(here, torch.where(packed & 512 > 0, -size, size), 0.0)
        packed = torch.where(here, packed >> 10, packed)
    rest = (1 - xyzw.square().sum(dim=1)).clamp_min(0).sqrt()
    xyzw[torch.arange(len(xyzw)), largest] = rest
    return xyzw[:, [3, 0, 1, 2]]


def _short_quaternions(stored: UInt8[np.ndarray, "N 3"]) -> Float[Tensor, "N 4"]:
    xyz = _floats(stored) / 127.5 - 1
    return torch.cat([(1 - xyz.square().sum(dim=1, keepdim=True)).clamp_min(0).sqrt(), xyz], dim=1)


def _harmonics(sh: Float[Tensor, "N R 3"]) -> UInt8[np.ndarray, "N R3"]:
    """Bytes in [-1, 1), rounded to what compresses well: steps of 8 in band 1 and of 16 above, as Niantic's do."""
    steps = torch.full((sh.shape[1], 1), 16.0)
    steps[:3] = 8.0
    return to_bytes((((sh * 128 + 128) / steps).round() * steps).flatten(1))
