"""Binary glTF (.glb) files, written: a description and the numbers that it names, in one file."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import atomic

FLOAT, BYTE, SHORT, INTEGER = 5126, 5121, 5123, 5125
KINDS = {"float32": FLOAT, "uint8": BYTE, "uint16": SHORT, "uint32": INTEGER}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
VERTICES, INDICES = 34962, 34963
"""What a part is for: attributes of vertices, or their numbers."""
GENERATOR = "DreamMapping"


class Glb:
    """Parts of a file, gathered; `write` adds them to a description."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self._parts: list[bytes] = []
        self._size = 0

    def view(self, data: bytes, target: int | None = None) -> int:
        """Add bytes; returns their number in `bufferViews`."""
        self.views.append({"buffer": 0, "byteOffset": self._size, "byteLength": len(data)})
        if target is not None:
            self.views[-1]["target"] = target
        self._parts.append(data + b"\0" * (-len(data) % 4))
        self._size += len(self._parts[-1])
        return len(self.views) - 1

    def accessor(self, values: np.ndarray, *, target: int = VERTICES, bounds: bool = False) -> int:
        """Add numbers, (N,) or (N, C), integers of attributes as shares of their largest; returns their number.

        Args:
            bounds: say the smallest and largest, as positions must.
        """
        values = np.ascontiguousarray(values)
        found = {
            "bufferView": self.view(values.astype(values.dtype.newbyteorder("<")).tobytes(), target),
            "componentType": KINDS[values.dtype.name],
            "count": len(values),
            "type": SHAPES[1 if values.ndim == 1 else values.shape[1]],
        }
        if target == VERTICES and values.dtype.kind == "u":
            found["normalized"] = True
        if bounds:
            found |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(found)
        return len(self.accessors) - 1

    def write(self, path: Path | str, tree: dict[str, Any]) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        whole = {
            "asset": {"version": "2.0", "generator": GENERATOR},
            **tree,
            "buffers": [{"byteLength": self._size}],
            "bufferViews": self.views,
            "accessors": self.accessors,
        }
        text = json.dumps(whole, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        with atomic(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + self._size))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", self._size, b"BIN\0"))
            file.writelines(self._parts)
