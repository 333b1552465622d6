"""Cells of a table, minutes each: finished ones are kept, missing ones are run, a stop loses none."""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


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


class CellStore:
    """Finished cells in one JSON file, rewritten whole after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self.results = json.loads(path.read_text(encoding="utf-8"))["cells"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: expected finished cells, got {error}; move it away") from error

    def get(self, cell: Cell) -> dict[str, Any] | None:
        return self.results.get(cell.key)

    def put(self, cell: Cell, result: dict[str, Any]) -> None:
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

        Raises:
            UserError: the training failed; the last line of its log is in the message.
            CancelledError: it was stopped.
        """
        folder = self.output / cell.workspace
        command = [sys.executable, "train.py", *settings, f"workspace={cell.workspace}", "--quiet"]
        if any((folder / "checkpoints").glob("*")):
            command.append("--resume")
        elif folder.exists():
            command.append("--force")
        log = self.output / "bench_logs" / f"{cell.workspace}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            code = self._run(command, file)
        if self.stopping:
            raise CancelledError
        if code != 0:
            *_, last = "no output", *log.read_text(errors="replace", encoding="utf-8").strip().splitlines()
            raise UserError(f"{cell.key}: training ended with code {code} ({last}); see {log}")
        return folder

    def _run(self, command: list[str], log) -> int:
        environment = dict(os.environ)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with self._lock:
            if self.stopping:
                raise CancelledError
            # A session of its own: Ctrl-C reaches this process alone, which then asks each child once.
            child = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True
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
    run: Callable[[Cell], dict[str, Any]],
    jobs: int,
    stop: Callable[[], None],
) -> list[str]:
    """Run what the store lacks, `jobs` at a time, store each as it ends; returns the messages of failures.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once `stop` was called and the running cells have ended.
    """
    missing = [cell for cell in cells if store.get(cell) is None]
    failures = []
    with termination_as_interrupt(), ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, cell): cell for cell in missing}
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                cell = futures[future]
                try:
                    store.put(cell, future.result())
                    logging.info("%d of %d: %s", count, len(missing), cell.key)
                except UserError as error:
                    failures.append(str(error))
                    logging.warning("%s", error)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
    return failures


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt within the block, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def digest(*parts: str | Path) -> str:
    """Eight hexadecimal digits of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else part.encode())
        total.update(b"\0")
    return total.hexdigest()[:8]
