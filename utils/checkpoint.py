"""Checkpoints: a tree of tensors and plain values in one folder, safetensors and JSON, never pickle.

A tree is built of dicts (with text or integer keys), lists, tensors and JSON values. Its tensors go to
`tensors.safetensors`, everything else to `state.json`, where a tensor's place holds its name.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import UserError
from utils.files import atomic

KEPT = 2
"""How many checkpoints stay on disk: the newest, and one to fall back on."""
TENSORS, STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"iteration_(\d+)")


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
            save_file(tensors, temporary / TENSORS)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
        for other in path.iterdir() if path.is_dir() else ():  # what somebody put beside an earlier one stays
            if other.name not in (TENSORS, STATE):
                other.rename(temporary / other.name)
    drop_old(folder)
    return path


def drop_old(folder: Path) -> None:
    """Remove all but the `KEPT` newest checkpoints, and what is left of one whose removal was cut short."""
    kept = checkpoints(folder)[-KEPT:]
    for path in folder.glob("iteration_*"):
        if _NAME.fullmatch(path.name) and path not in kept:
            _drop(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; other folders (a user's copy, what `_drop` left) are none.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        found = [
            path
            for path in folder.glob("iteration_*")
            if _NAME.fullmatch(path.name) and (path / STATE).is_file()
        ]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from error
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The iteration after which a checkpoint was made."""
    return int(path.name.removeprefix("iteration_"))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint back, tensors on the CPU.

    Raises:
        UserError: a file is missing, truncated, or not of this form.
    """
    try:
        tensors = load_file(path / TENSORS)
        return _unpack(json.loads((path / STATE).read_text(encoding="utf-8")), tensors)
    except (
        OSError,
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{path}: the checkpoint cannot be read ({_first_line(error)}); delete that folder to go on from the one "
            "before it"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _drop(path: Path) -> None:
    """Remove a checkpoint's own files, and its folder unless something else lies in it."""
    with contextlib.suppress(OSError):
        for name in (TENSORS, STATE):
            (path / name).unlink(missing_ok=True)
        path.rmdir()


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
