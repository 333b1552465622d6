"""Checkpoints: a tree of tensors and plain values in one folder, safetensors and JSON, never pickle.

A tree is built of dicts (with text or integer keys), lists, tensors and JSON values. Its tensors go to
`tensors.safetensors`, everything else to `state.json`, where a tensor's place holds its name.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import UserError
from utils.files import atomic

KEPT = 2
"""How many checkpoints stay on disk: the newest, and one to fall back on."""


def save(folder: Path, step: int, tree: dict[str, Any]) -> Path:
    """Write `folder/iteration_<step>` whole or not at all, then drop all but the `KEPT` newest.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    state = _pack(tree, "", tensors)
    path = folder / f"iteration_{step:06d}"
    with atomic(path) as temporary:
        temporary.mkdir(parents=True)
        try:
            save_file(tensors, temporary / "tensors.safetensors")
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (temporary / "state.json").write_text(json.dumps(state))
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("iteration_*") if path.is_dir())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint back, tensors on the CPU.

    Raises:
        UserError: a file is missing, truncated, or not of this form.
    """
    try:
        tensors = load_file(path / "tensors.safetensors")
        return _unpack(json.loads((path / "state.json").read_text()), tensors)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: the checkpoint cannot be read ({error}); delete that folder to go on from the one before it"
        ) from error


def _pack(node: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[name] = node.detach().contiguous().cpu().clone()
        return {"tensor": name}
    if isinstance(node, dict):
        keys = [f"#{key}" if isinstance(key, int) else key for key in node]
        return {
            "dict": {
                key: _pack(value, f"{name}/{key}", tensors)
                for key, value in zip(keys, node.values(), strict=True)
            }
        }
    if isinstance(node, list | tuple):
        return [_pack(value, f"{name}/{index}", tensors) for index, value in enumerate(node)]
    return node


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        return {
            int(key[1:]) if key[:1] == "#" else key: _unpack(value, tensors)
            for key, value in node["dict"].items()
        }
    if isinstance(node, list):
        return [_unpack(value, tensors) for value in node]
    return node
