"""The folder of one run: who owns it, its metrics, its manifest.

Layout (upstream's, so that scripts made for it keep working): `config.yaml`, `cfg_args`, `cameras.json`,
`init_points3d.ply`, `train_process/`, `test_six_views/`, `videos/`, `process_videos/`, `point_cloud/`;
and ours: `metrics.jsonl` (a line for each logged step), `run.json` (the manifest), `checkpoints/`, and
`.dreammapping`, by which a folder is known as a run's and which is locked while a process works there.
"""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from utils import aside
from utils.checkpoint import checkpoints, drop_old
from utils.errors import Occupied, UserError
from utils.files import is_stream, remove_unfinished, unfinished, write_text
from utils.inputs import json_object, regular_file
from utils.lock import Lock

log = logging.getLogger(__name__)

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "diff_gaussian_rasterization", "simple_knn")
MARKER = ".dreammapping"
"""The file by which a folder is known as a run's, and which is locked while a process works there."""


class Run:
    """A run's folder, held for this process within a `with` block; nothing in it changes before `claim`.

    So everything that can fail is done between the two, and a start that fails leaves what was there, or nothing.

    Args:
        folder: where the run is kept; made if it does not exist.
        resume: go on with the run that the folder holds.
        force: replace the run that the folder holds: its files, and nothing else that lies there. They are moved aside
            and removed when the new run `stands`; if that never happens, they come back.

    Attributes:
        folder: where the run is kept, whatever becomes of the working directory. given: the same, as it was given.
        claimed: the folder was changed. standing: the run has a checkpoint of its own.
        manifest: what `run.json` says.

    Raises:
        UserError: the folder holds another run, holds none to resume, is in use, or cannot be written.
    """

    def __init__(self, folder: Path, *, resume: bool = False, force: bool = False) -> None:
        self.given = folder
        self.started = time.monotonic()
        self.manifest: dict[str, Any] = {}
        self._resume, self._force = resume, force
        self.claimed = self.standing = False
        self._moved = False  # all that is in the folder now is the new run's
        self._made: list[Path] = []
        with _named(folder):
            self.folder = folder.absolute()
            if not (
                aside.half_done(self.folder) or unfinished(self.folder, aside.FOLDERS)
            ):  # else once that is in order
                self._look()

    def __enter__(self) -> "Run":
        with _named(self.given):
            self._make_folder()
        self._lock = Lock(self.path(MARKER))
        try:
            self._lock.acquire()
        except UserError as error:
            self._made = []  # somebody else's by now
            self.__exit__(type(error), error, None)
            raise
        try:
            with _named(self.given):
                self._settle()
                self._look()  # again: nobody else is here now
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            error.args = (self.as_given(str(error)),)
        self._leave()

    def as_given(self, text: str | UserError) -> str:
        """A text with the folder in it as it was given."""
        return str(text).replace(str(self.folder), str(self.given))

    def _look(self) -> None:
        """Whether the folder can be used as it was asked for."""
        folder, given = self.folder, self.given
        if os.path.lexists(folder) and not folder.is_dir():
            found = "a link to nothing" if folder.is_symlink() and not folder.exists() else "a file"
            raise Occupied(f"{given}: expected a folder for the run, found {found}; choose another workspace")
        ours = is_run(folder)
        saved = ours and bool(checkpoints(folder / "checkpoints"))
        results = saved or (ours and aside.has_results(folder))
        if self._resume and not saved:
            advice = "start with --force, which replaces the results there" if results else "start"
            raise UserError(f"{given}: there is no checkpoint to resume from; {advice} without --resume")
        if self._resume:
            return
        if results and not self._force:
            resume = "--resume continues it, " if saved else ""
            raise Occupied(
                f"{given}: holds another run; {resume}--force replaces it, workspace=NAME starts beside it"
            )
        if not ours and folder.exists() and any(folder.iterdir()):
            raise Occupied(f"{given}: is not empty and holds no run of ours; choose another workspace")

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing
        if not self.path(MARKER).exists():
            self._made.insert(0, self.path(MARKER))

    def _settle(self) -> None:
        """Finish what a killed process left half done."""
        remove_unfinished(self.folder, aside.FOLDERS)
        drop_old(self.path("checkpoints"))
        aside.settle(self.folder, stands=bool(checkpoints(self.path("checkpoints"))))

    def claim(self, settings: str) -> None:
        """Take the folder: what it held is moved aside, unless it is resumed, and the settings are written.

        Args:
            settings: the resolved settings as YAML text, written to `config.yaml`.

        Raises:
            UserError: a user's file has the name of the new run's asset; the old run cannot be moved, or the folder
                cannot be written.
        """
        if not self._resume:
            aside.refuse_others(self.folder, settings)
        self.claimed = True
        if self._resume:
            self.manifest = _read_manifest(self.path("run.json"))
            self.standing = True
        else:
            aside.move_aside(self.folder)
            self._moved = True
        self.write_text("config.yaml", settings)

    def stands(self) -> None:
        """The run has a checkpoint of its own: what it replaced is removed."""
        if not self.standing:
            self.standing = True
            aside.drop(self.folder)

    def _leave(self) -> None:
        """Give the folder back; a run that does not stand leaves it as it was."""
        try:
            if not self.standing:
                if self._moved:
                    aside.remove_written(self.folder)
                if self.claimed:
                    aside.settle(self.folder, stands=False)
                self._remove_made()
        finally:
            self._lock.release()

    def _remove_made(self) -> None:
        """Remove the folders that were made for this start, and the marker, but for one with somebody's file in it."""
        with suppress(OSError):  # gone
            if [path.name for path in self.folder.iterdir()] != [MARKER]:
                return
        for path in self._made:
            with suppress(OSError):  # not empty, or gone
                path.rmdir() if path.is_dir() else path.unlink()

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file, whole or not at all."""
        write_text(self.path(name), text)

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`; a number that is not finite is null there, as JSON has no word for it."""
        known = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        try:
            with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(known, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path('metrics.jsonl')}: cannot be written ({error.strerror}); free space or choose another "
                "folder"
            ) from error

    def rewind_metrics(self, step: int) -> None:
        """Forget the metrics of later steps than `step`: a resumed run writes them again."""
        path = self.path("metrics.jsonl")
        with _named(path):
            if path.exists():
                text = regular_file(path).read_text(encoding="utf-8", errors="replace")
                lines = [line for line in text.splitlines() if _step_of(line) <= step]
                self.write_text("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def write_manifest(self, **values: Any) -> None:
        """Update `run.json`: versions, machine, wall time over all sessions, and `values`."""
        now = time.monotonic()
        seconds = _number(self.manifest.get("seconds")) + now - self.started
        self.started = now
        peak = max(values.pop("peak_memory_bytes", 0), int(_number(self.manifest.get("peak_memory_bytes"))))
        self.manifest |= {
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "seconds": round(seconds, 2),
            "peak_memory_bytes": peak,
            **values,
        }
        self.write_text("run.json", json.dumps(self.manifest, indent=2) + "\n")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: by its marker, or, for one of before there were markers, by what its files say."""
    if (folder / MARKER).is_file():
        return True
    told = json_object(folder / aside.MANIFEST)
    return (folder / "config.yaml").is_file() and told.keys() >= {"versions", "iterations", "finished"}


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within the block, what the file system refuses is said of `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be used ({error.strerror or error}); choose another folder"
        ) from error
    except UserError:
        raise
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{path!r}: cannot be a path ({error}); choose another folder") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    """`run.json`, or nothing, with a warning, where it is damaged: the checkpoint holds all that a restart needs.

    Raises:
        UserError: a pipe or device has its name, and would not be replaced either.
    """
    if is_stream(path):
        raise UserError(f"{path}: expected a file, got a pipe or device; move it away")
    try:
        if path.exists():
            regular_file(path)
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(manifest, dict):
            return manifest
        problem = f"expected an object, got {type(manifest).__name__}"
    except FileNotFoundError:
        problem = "it is not there"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0]
    log.warning("%s: cannot be read (%s); times and memory of before are lost", path, problem)
    return {}


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, OverflowError):
        return math.inf


def _number(value: Any) -> float:
    """A number of an old manifest; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and abs(value) <= 1e300 else 0.0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
