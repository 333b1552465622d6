"""Cells of a table, a training of minutes each: what is finished is kept and not run again, even after a stop."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

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
_READERS = {"export", "mesh", "page", "reproduction", "study", "sweep", "viewer"}
"""Rooms of `dreammapping/` that look at runs, and neither train nor judge them."""
_CODE_SUFFIXES = {".py", ".cpp", ".cu", ".h", ".inl"}

Result = dict[str, Any]

log = logging.getLogger(__name__)


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
                self.results = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path}: expected finished cells, got {error}; move it away") from error

    def get(self, cell: Cell) -> Result | None:
        return self.results.get(cell.key)

    def put(self, cell: Cell, result: Result) -> None:
        """Keep a cell beside all that the file has by now.

        Raises:
            UserError: the file is broken, or cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with Lock(self.path.with_name(f".{self.path.name}.lock"), wait=-1.0):
            self._read()
            self.results.pop(cell.key, None)  # so that the newest stands last
            self.results[cell.key] = result
            with atomic(self.path) as temporary:
                temporary.write_text(json.dumps({"cells": self.results}, indent=1) + "\n", encoding="utf-8")


class Trainer:
    """Runs `train.py` for one cell at a time in each thread; all of them can be told to save and stop."""

    def __init__(self, output: Path, threads: int | None = None) -> None:
        self.output = output
        self.threads = threads
        self.stopping = False
        self._children: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def train(self, cell: Cell, settings: list[str]) -> Path:
        """Train, or go on with, a cell's run; returns its folder. The run's log is kept beside the folders.

        What other code than today's has begun is begun again.

        Raises:
            UserError: the training failed; the last line of its log is in the message.
            CancelledError: it was stopped.
        """
        folder, notes = self.output / cell.workspace, self.output / "bench_logs"
        begun_by, printed = notes / f"{cell.workspace}.code", notes / f"{cell.workspace}.log"
        command = [sys.executable, "train.py", *settings, f"workspace={cell.workspace}", "--quiet"]
        same_code = begun_by.is_file() and begun_by.read_text(encoding="utf-8") == code_digest()
        if same_code and any((folder / "checkpoints").glob("*")):
            command.append("--resume")
        elif folder.exists():
            command.append("--force")
        notes.mkdir(parents=True, exist_ok=True)
        begun_by.write_text(code_digest(), encoding="utf-8")
        with printed.open("ab") as file:
            code = self._run(command, file)
        if self.stopping:
            raise CancelledError
        if code != 0:
            *_, last = (
                "no output",
                *printed.read_text(encoding="utf-8", errors="replace").strip().splitlines(),
            )
            raise UserError(f"{cell.key}: training ended with code {code} ({last}); see {printed}")
        return folder

    def _run(self, command: list[str], printed: IO[bytes]) -> int:
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with self._lock:
            if self.stopping:
                raise CancelledError
            # A session of its own: Ctrl-C reaches this process alone, which then asks each child once.
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=printed, stderr=printed, env=environment, start_new_session=True
            )
            self._children.add(child)
        code = child.wait()
        with self._lock:
            self._children.discard(child)
        return code

    def stop(self) -> None:
        """Ask every running training to save and end."""
        with self._lock:
            self.stopping = True
            for child in self._children:
                child.terminate()


def run_missing(
    cells: Iterable[Cell],
    store: CellStore,
    run: Callable[[Cell], Result],
    jobs: int,
    stop: Callable[[], None],
    outdated: Callable[[Result], bool] = lambda _: False,
) -> list[str]:
    """Run what the store lacks, `jobs` at a time, store each as it ends; returns the messages of failures.

    Args:
        stop: asks all that is running to save and end.
        outdated: which of the finished cells are run again.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once `stop` was called and the running cells have ended; so does
            every other error of `run` that is no UserError.
    """
    missing = [cell for cell in cells if (kept := store.get(cell)) is None or outdated(kept)]
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, cell): cell for cell in missing}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                try:
                    store.put(cell, future.result())
                    log.info("%d of %d: %s", count, len(missing), cell.key)
                except UserError as error:
                    failures.append(str(error))
                    log.warning("%s", error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
    return failures


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
