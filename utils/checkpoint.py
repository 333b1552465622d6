"""Checkpoints: a tree of tensors and plain values in one folder, safetensors and JSON, never pickle.

A tree is built of dicts (with text or integer keys), lists, tensors and JSON values. Its tensors go to
`tensors.safetensors`, everything else to `state.json`, where a tensor's place holds its name; its `sha256` is of both.
"""

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.errors import UserError
from utils.files import atomic
from utils.inputs import regular_file

KEPT = 2
"""How many checkpoints stay on disk: the newest, and one to fall back on."""
TENSORS, STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"iteration_[0-9]+")


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
        state["sha256"] = _digest(temporary / TENSORS, state)
        (temporary / STATE).write_text(json.dumps(state), encoding="utf-8")
        if path.is_dir():  # what somebody put beside an earlier one stays
            shutil.copytree(
                path,
                temporary,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=lambda place, _: (TENSORS, STATE) if Path(place) == path else (),
            )
    drop_old(folder)
    return path


def drop_old(folder: Path) -> None:
    """Remove all but the `KEPT` newest checkpoints, and what is left of one whose removal was cut short."""
    kept = checkpoints(folder)[-KEPT:]
    for path in folder.glob("iteration_*"):
        if _NAME.fullmatch(path.name) and path not in kept:
            _drop(path)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; folders of another name (a user's copy), or without its files, are none.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        found = [
            path
            for path in folder.glob("iteration_*")
            if _NAME.fullmatch(path.name) and any((path / name).is_file() for name in (TENSORS, STATE))
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
        UserError: a file is missing, truncated, not of this form, or not as it was written.
    """
    try:
        state = json.loads(regular_file(path / STATE).read_text(encoding="utf-8"))
        tensors = load_file(regular_file(path / TENSORS))
        stated = state.pop("sha256", None)  # earlier checkpoints have none
        if stated is not None and stated != _digest(path / TENSORS, state):
            raise ValueError("it is not as it was written: its checksum differs")
        tree = _unpack(state, tensors)
        if not isinstance(tree, dict):
            raise ValueError(f"expected an object, got {type(tree).__name__}")
        return tree
    except (
        OSError,
        SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise UserError(
            f"{path}: the checkpoint cannot be read ({first_line(error)}); delete that folder to go on from the one "
            "before it"
        ) from error


def check_form(state: Any, example: Any, where: str = "") -> None:
    """Check that a tree has all that an example of it has, of the same kinds.

    The first dimension of tensors is free, but those of one dict that share it in the example share it here.

    Raises:
        ValueError: it has not; names the place.
    """
    if type(state) is not type(example) and not (isinstance(state, Tensor) and isinstance(example, Tensor)):
        raise ValueError(f"{where}: expected {type(example).__name__}, got {type(state).__name__}")
    if isinstance(example, Tensor) and (
        state.dtype != example.dtype or state.ndim != example.ndim or state.shape[1:] != example.shape[1:]
    ):
        raise ValueError(
            f"{where}: expected {example.dtype} {list(example.shape)}, got {state.dtype} {list(state.shape)}"
        )
    if isinstance(example, dict):
        rows: dict[int, int] = {}
        for key, value in example.items():
            if key not in state:
                raise ValueError(f"{where}: expected {key}, found none")
            check_form(state[key], value, f"{where}.{key}".strip("."))
            if isinstance(value, Tensor) and value.ndim:
                count = len(state[key])
                if rows.setdefault(len(value), count) != count:
                    raise ValueError(f"{where}.{key}: expected {rows[len(value)]} rows, got {count}")


def first_line(error: Exception) -> str:
    """What an error says, in one line of at most 200 letters: the first that is no heading."""
    lines = [line.strip()[:200] for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), (*lines, type(error).__name__)[0])


def _digest(tensors: Path, state: dict[str, Any]) -> str:
    """SHA-256 of a file of tensors and of the state beside it."""
    with tensors.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(state).encode())
    return digest.hexdigest()


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
