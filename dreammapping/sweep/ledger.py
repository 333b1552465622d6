"""A sweep's folder: the list of its runs, and what has become of each, in files that any number of workers share.

    sweep.json              the list, in order
    settings/<digest>.yaml  the settings of each combination
    status/<run>/           status.json, heartbeat.json while somebody works at it, log.txt
    status/final.txt        names of runs that are over, in the order in which they ended: a hint, never the truth
    <run>/                  the run itself, as train.py makes it

A run's `status.json` is changed only by who has taken it, and it is taken by renaming it to a name of one's own, which
a file system grants to one process alone. So it is never claimed twice, by whatever kind of workers, on whatever hosts.
"""

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dreammapping.sweep.grid import Grid, Job, flat
from dreammapping.sweep.status import DONE, FAILED, QUEUED, RUNNING, Status, Worker
from utils.errors import InUse, UserError
from utils.files import is_stream, remove_unfinished, remove_unfinished_of, unfinished, write_text
from utils.lock import Lock

LIST, SETTINGS, STATUS, FINAL_HINT, LOCK = "sweep.json", "settings", "status", "final.txt", ".sweep.lock"
ADDING = 60.0
"""Seconds that another command may take to add to the list."""
PASSING = (errno.ESTALE, errno.EACCES, errno.EBUSY)
"""What file systems that are shared say of a file that somebody else is just replacing."""


@dataclass(frozen=True)
class Beat:
    """What a worker says of itself while it works at a run: that it lives, and how far it is."""

    token: str
    count: int
    step: int = 0
    iterations: int = 0


class Ledger:
    """The files of a sweep.

    Args:
        folder: the sweep's.

    Raises:
        UserError: the folder is no sweep's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = _read_list(folder)

    @classmethod
    def enlist(cls, folder: Path, grid: Grid, *, retry_failed: bool = False) -> "Ledger":
        """Make a sweep's folder, or add to one whatever it lacks; what it has stays.

        Args:
            retry_failed: runs of the list that have failed, or whose folder is gone, are queued once more.

        Raises:
            UserError: the folder holds something else, or has a run of the list with other settings.
        """
        # runs are made after the list: who looks for them first and for the list then never takes a sweep for another
        if _has_others(folder) and not (folder / LIST).is_file():
            raise UserError(
                f"{folder}: expected a sweep's folder, or an empty one, got another; choose --output"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(folder, error) from error
        with contextlib.ExitStack() as stack:
            stack.callback(_alone(folder).release)
            known = _read_list(folder) if (folder / LIST).is_file() else {}
            _refuse_others(folder, known, grid)
            remove_unfinished_of(folder / LIST)
            remove_unfinished(folder / SETTINGS, ())
            with named(folder):
                for name, text in grid.settings.items():
                    if not (path := folder / SETTINGS / f"{name}.yaml").is_file():
                        write_text(path, text)
                known |= {job.name: job for job in grid.jobs}
                rows = [dataclasses.asdict(job) for job in known.values()]
                write_text(folder / LIST, json.dumps({"version": 1, "runs": rows}, indent=1) + "\n")
        # others need not wait for this, which takes minutes with many runs on a slow file system
        ledger, worker = cls(folder), Worker.me()
        for job in grid.jobs:
            ledger._queue(job.name, worker if retry_failed else None)
        return ledger

    def _queue(self, name: str, retrier: Worker | None) -> None:
        status = self.read(name)
        if status is None and not self._taken(name):
            self._create(name)
        elif status is not None and retrier is not None and self._is_lacking(name, status):
            taken = self._take(name, retrier)  # another command may have been faster
            if taken is not None:
                again = Status(attempts=taken.attempts) if self._is_lacking(name, taken) else taken
                self._put(name, retrier, again)

    def _is_lacking(self, name: str, status: Status) -> bool:
        return status.state == FAILED or (status.state == DONE and not self.run_folder(name).is_dir())

    def path(self, name: str) -> Path:
        """Where the status of a run is kept."""
        return self.folder / STATUS / name

    def run_folder(self, name: str) -> Path:
        """The run itself."""
        return self.folder / name

    def settings(self, name: str) -> Path:
        """The settings file of a run."""
        return self.folder / SETTINGS / f"{self.jobs[name].settings}.yaml"

    def read(self, name: str) -> Status | None:
        """What is known of a run; None while somebody changes it.

        Raises:
            UserError: the folder cannot be read, or has vanished.
        """
        with named(self.folder):
            try:
                text = _text(self.path(name) / "status.json")
            except FileNotFoundError:
                _there(self.folder)
                return None
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                return None
        return _parsed(text)

    def claim(self, name: str, worker: Worker, seen: Status, start: int) -> Status | None:
        """Take a run that is as `seen`: queued, or held by somebody who is gone; None where another was faster.

        Args:
            start: the iteration that the worker will go on from.
        """
        status = self._take(name, worker)
        if status is None:
            return None
        same = status.state == QUEUED if seen.state == QUEUED else status.worker == seen.worker
        if not same:
            self._put(name, worker, status)
            return None
        status = status.ended("lost", f"{status.worker} is gone") if status.state == RUNNING else status
        status = status.claimed(worker, start)
        for file in ("status.json", "heartbeat.json"):  # of somebody who was killed
            remove_unfinished_of(self.path(name) / file)
        return status if self._put(name, worker, status) else None

    def change(self, name: str, worker: Worker, change: Callable[[Status], Status]) -> Status | None:
        """Change the status of a run that the worker holds; None where it holds it no longer."""
        status = self._take(name, worker)
        if status is None:
            return None
        held = status.worker is not None and status.worker.token == worker.token
        status = change(status) if held else status
        held = self._put(name, worker, status) and held
        if held and status.state not in (QUEUED, RUNNING):
            self._hint(name)
        return status if held else None

    def restore(self, name: str, worker: Worker) -> None:
        """Give a run's status its name back, which somebody took and then died; one that was never made is made."""
        taken_by_others = self._taken(name)
        if not taken_by_others:
            self._create(name)
        for taken in taken_by_others:
            mine = self.path(name) / f"taken-{worker.token}.json"
            with contextlib.suppress(FileNotFoundError), named(self.folder):
                os.rename(taken, mine)
                if not (self.path(name) / "status.json").exists():
                    os.rename(mine, self.path(name) / "status.json")
                mine.unlink(missing_ok=True)

    def beat(self, name: str, beat: Beat) -> None:
        """Say that one lives."""
        text = json.dumps(dataclasses.asdict(beat)) + "\n"
        write_text(self.path(name) / "heartbeat.json", text, durable=False)

    def still(self, name: str, token: str) -> None:
        """Take one's last sign of life away: the run is at rest."""
        if self.last_beat(name, token) is not None:
            with contextlib.suppress(OSError):
                (self.path(name) / "heartbeat.json").unlink()

    def last_beat(self, name: str, token: str) -> Beat | None:
        """What the worker of this word last said of itself at a run, None where it has said nothing."""
        try:
            beat = Beat(**json.loads(_text(self.path(name) / "heartbeat.json")))
        except (OSError, ValueError, TypeError):
            return None
        return beat if beat.token == token else None

    def finals(self, offset: int = 0) -> tuple[set[str], int]:
        """Names of runs that are over, as the hint has them from an offset on, and where it ends."""
        path = self.folder / STATUS / FINAL_HINT
        if is_stream(path):
            return set(), 0
        try:
            with path.open("rb") as file:
                file.seek(offset)
                *whole, _ = file.read().split(b"\n")
        except FileNotFoundError:
            return set(), 0
        names = {line.decode("utf-8", "replace") for line in whole}
        return names & self.jobs.keys(), offset + sum(len(line) + 1 for line in whole)

    def _hint(self, name: str) -> None:
        path = self.folder / STATUS / FINAL_HINT
        if not is_stream(path):
            with named(self.folder), path.open("ab") as file:
                file.write(f"{name}\n".encode())

    def _take(self, name: str, worker: Worker) -> Status | None:
        folder = self.path(name)
        mine = folder / f"taken-{worker.token}.json"
        with named(self.folder):
            try:
                os.rename(folder / "status.json", mine)
            except FileNotFoundError:
                if not mine.exists():  # else a network file system denies the rename that it has made
                    _there(self.folder)
                    return None
            except OSError as error:
                # where nobody may write it will not pass
                if error.errno not in PASSING or not os.access(folder, os.W_OK):
                    raise
                return None
            # of somebody who died after the status had its name back
            for left in set(self._taken(name)) - {mine}:
                left.unlink(missing_ok=True)
            try:
                return _parsed(_text(mine))
            except FileNotFoundError:  # others thought that this process had died
                return None

    def _put(self, name: str, worker: Worker, status: Status) -> bool:
        """Give the status its name back; False where others thought that this process had died, and took it."""
        mine = self.path(name) / f"taken-{worker.token}.json"
        if not mine.exists():
            return False
        self._write(name, status)
        with named(self.folder):
            mine.unlink(missing_ok=True)
        return True

    def _create(self, name: str) -> None:
        """Make the status of a run that has none; one that somebody else has made by now stays."""
        path = self.path(name) / "status.json"
        with named(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # whoever reads it half written reads one that is queued, too
            with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
                file.write(Status().to_json())

    def _write(self, name: str, status: Status) -> None:
        # what is over shall be known after a power cut; of all else the run itself knows how far it is
        write_text(
            self.path(name) / "status.json", status.to_json(), durable=status.state not in (QUEUED, RUNNING)
        )

    def _taken(self, name: str) -> list[Path]:
        return list(self.path(name).glob("taken-*.json"))


@contextlib.contextmanager
def named(folder: Path) -> Iterator[None]:
    """Within the block, what the file system refuses is said of the sweep's folder."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be used ({error.strerror or error}); repeat the command once it can")


def _text(path: Path) -> str:
    if is_stream(path):  # which would be waited for
        raise UserError(f"{path}: expected a file of the sweep, got a pipe or device; restore the file")
    return path.read_text(encoding="utf-8")


def _parsed(text: str) -> Status:
    """A status; one that a power cut has emptied is as queued, for the run itself knows how far it is."""
    try:
        return Status.from_json(text)
    except (ValueError, TypeError, KeyError):
        return Status()


def _there(folder: Path) -> None:
    """Raise UserError where the folder has vanished: a share that is no longer mounted, say."""
    if not (folder / LIST).is_file():
        raise UserError(f"{folder}: expected the sweep, found it gone; repeat the command once it is back")


def _alone(folder: Path) -> Lock:
    """The lock, taken, without which no command adds to a sweep.

    Raises:
        InUse: another one has it for longer than `ADDING`.
        UserError: as `Lock.acquire`.
    """
    lock = Lock(folder / LOCK, wait=ADDING)
    try:
        lock.acquire()
    except InUse as error:
        raise InUse(
            f"{folder}: expected other commands to write their list within {ADDING:g} s, got one that still does; "
            f"{LOCK} says which: give the same command again when it has ended"
        ) from error
    return lock


def _has_others(folder: Path) -> bool:
    """Whether there is a file or folder that no sweep makes before its list."""
    if not folder.is_dir():
        return folder.exists()
    with named(folder):
        found = {path.name for path in folder.iterdir()}
        return bool(found - {SETTINGS, LOCK, *(path.name for path in unfinished(folder, ()))})


def _read_list(folder: Path) -> dict[str, Job]:
    path = folder / LIST
    try:
        rows: list[dict[str, Any]] = json.loads(_text(path))["runs"]
        return {row["name"]: Job(**row) for row in rows}
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: expected a sweep's folder with its {LIST}, found none; name another"
        ) from error
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the list of a sweep, got {error}; restore the file") from error


def _refuse_others(folder: Path, known: dict[str, Job], grid: Grid) -> None:
    """Refuse a list that has a run of the folder's with other settings, and settings that somebody has edited: what
    goes by them would be others' runs under the names of these."""
    for job in grid.jobs:
        old = known.get(job.name)
        if old is not None and (old.settings, old.prompt) != (job.settings, job.prompt):
            before = _text(folder / SETTINGS / f"{old.settings}.yaml")
            raise UserError(
                f"{folder}: expected a sweep with the settings that it has, got {job.name} with another "
                f"{', '.join(_changed(before, grid.settings[job.settings]))}; choose another --output"
            )
    for name, text in grid.settings.items():
        path = folder / SETTINGS / f"{name}.yaml"
        if path.is_file() and _text(path) != text:
            raise UserError(
                f"{path}: expected the settings that were written there, found others; remove the file, which is then "
                "written again, or give the others to a sweep with another --output"
            )


def _changed(before: str, after: str) -> list[str]:
    """The names of the settings that two settings files have otherwise."""
    old, new = (dict(flat(yaml.safe_load(text))) for text in (before, after))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)) or ["prompt"]
