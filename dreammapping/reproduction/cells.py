"""Cells of a table, a training of minutes each: what is finished is kept and not run again, even after a stop."""

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic
from utils.lock import Lock
from utils.repository import ROOT

RESULTS = Path(__file__).resolve().parent / "results"
"""Where the finished cells of the documents' tables are kept."""
_CODE = (
    "arguments", "dreammapping", "field_renderer", "gaussian_renderer", "guidance", "scene", "submodules", "toybox",
    "utils", "train.py",
)  # fmt: skip
_READERS = {"export", "mesh", "page", "reproduction", "study", "viewer"}
"""Rooms of `dreammapping/` that look at runs, and neither train nor judge them."""
_CODE_SUFFIXES = {".py", ".cpp", ".cu", ".h", ".inl"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training run of a table; `digest` stands for everything else that its result depends on."""

    prompt: str
    method: str
    seed: int
    digest: str

    @property
    def key(self) -> str:
        return f"{self.prompt} | {self.method} | seed {self.seed} | {self.digest}"

    @property
    def workspace(self) -> str:
        """A folder name of its own, so that a run can only ever be resumed as itself."""
        slug = re.sub(r"\W+", "_", self.prompt.lower()).strip("_")[:40]
        return f"bench_{slug}_{self.method}_s{self.seed}_{self.digest}"


def is_gone(run: Result) -> bool:
    """Whether the folder of a finished run is there no more."""
    return not (ROOT / run["run"]).is_dir()


class CellStore:
    """Finished cells in one JSON file, rewritten whole after each; several commands can have the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self._read()

    def _read(self) -> None:
        if self.path.is_file():
            try:
                self.results = dict(json.loads(self.path.read_text(encoding="utf-8"))["cells"].items())
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{self.path}: expected finished cells, got {error}; move it away") from error

    def get(self, cell: Cell) -> Result | None:
        return self.results.get(cell.key)

    def put(self, cell: Cell, result: Result) -> None:
        """Keep a cell beside all that the file has by now.

        Raises:
            UserError: the file is broken, or cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.path.with_name(f".{self.path.name}.lock"), wait=math.inf):
            self._read()
            self.results.pop(cell.key, None)  # so that the newest stands last
            self.results[cell.key] = result
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps({"cells": self.results}, indent=1) + "\n", encoding="utf-8")


def digest(*parts: str | Path) -> str:
    """Eight hexadecimal digits of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    total.update(block)
        else:
            total.update(part.encode())
        total.update(b"\0")
    return total.hexdigest()[:8]


def digest_of_runs(runs: Iterable[tuple[Cell, Result | None]], *more: str) -> str:
    """Stands for runs as they were made: other code gives another digest, and so does an unfinished run."""
    made = (f"{cell.key} {None if run is None else run.get('code')}" for cell, run in runs)
    return digest(*made, *more)


@cache
def code_digest() -> str:
    """Stands for the code that trains and judges; what only looks at runs, the tables too, does not change a cell."""
    files = [file for name in _CODE for file in [ROOT / name, *(ROOT / name).rglob("*")]]
    readers = {ROOT / "dreammapping" / name for name in _READERS}
    return digest(*sorted(
        file for file in files
        if file.is_file() and file.suffix in _CODE_SUFFIXES and readers.isdisjoint(file.parents)
    ))  # fmt: skip
