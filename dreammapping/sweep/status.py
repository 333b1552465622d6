"""`status.json`: what has become of a run so far. Records are values: each change gives a new one."""

import dataclasses
import json
import os
import platform
import secrets
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

QUEUED, RUNNING, DONE, FAILED = STATES = ("queued", "running", "done", "failed")
FINAL = (DONE, FAILED)


@dataclass(frozen=True)
class Worker:
    """Who holds a run: a process on a host, with a word of its own.

    Attributes:
        place: what tells where the number of a process means something: host, start of the machine, name space.
        ticks: when the process began, by the machine's own count; numbers of processes are used again.
    """

    host: str
    process: int
    token: str
    place: str
    ticks: int

    @classmethod
    def me(cls) -> "Worker":
        """This process, under a new word."""
        process = os.getpid()
        return cls(platform.node(), process, secrets.token_hex(6), _place(), _ticks(process))

    def has_died(self) -> bool:
        """Whether it surely has: it was a process of this place and is none any more."""
        return self.place == _place() and _ticks(self.process) != self.ticks

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class Attempt:
    """One worker's work at a run.

    Attributes:
        start: the iteration that it went on from.
        outcome: "" while it goes on; then done, stopped, lost, memory, not finite, busy or error.
        message: what it ended with, in one line.
        changes: settings that it had beside the run's own.
    """

    host: str
    process: int
    began: str
    start: int = 0
    ended: str = ""
    outcome: str = ""
    message: str = ""
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What is known of a run.

    Attributes:
        worker: who holds it, None where nobody does.
        changes: settings that the next attempt has beside the run's own, by their full names.
        reason: why it has failed.
    """

    state: str = QUEUED
    attempts: tuple[Attempt, ...] = ()
    worker: Worker | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    def claimed(self, worker: Worker, start: int) -> "Status":
        """Held by a worker, who goes on from an iteration."""
        attempt = Attempt(worker.host, worker.process, now(), start, changes=self.changes)
        return dataclasses.replace(
            self, state=RUNNING, worker=worker, attempts=(*self.attempts, attempt), reason=""
        )

    def ended(self, outcome: str, message: str = "") -> "Status":
        """Free again; the last attempt ended so."""
        *before, last = self.attempts
        last = dataclasses.replace(last, ended=now(), outcome=outcome, message=message)
        return dataclasses.replace(self, state=QUEUED, worker=None, attempts=(*before, last))

    def final(self, state: str, reason: str = "") -> "Status":
        """Done, or failed for a reason."""
        return dataclasses.replace(self, state=state, worker=None, reason=reason)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Status":
        """Raises ValueError, TypeError or KeyError where the text is none."""
        tree = json.loads(text)
        if tree["state"] not in STATES:
            raise ValueError(f"unknown state {tree['state']!r}")
        attempts = tuple(Attempt(**attempt) for attempt in tree["attempts"])
        worker = Worker(**tree["worker"]) if tree["worker"] else None
        return cls(tree["state"], attempts, worker, dict(tree["changes"]), str(tree["reason"]))


def now() -> str:
    """The time of day, for people; nothing is decided by it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@cache
def _place() -> str:
    parts = [platform.node()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
                 lambda: os.readlink("/proc/self/ns/pid")):  # fmt: skip
        try:
            parts.append(read())
        except OSError:  # not Linux
            parts.append("")
    return " ".join(parts)


def _ticks(process: int) -> int:
    """When a process began; 0 where there is none, or where it has ended and nobody has asked how."""
    try:
        name_and_rest = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        fields = name_and_rest.rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return 0
    except (ProcessLookupError, IndexError, ValueError):
        return 0
    import psutil

    try:
        return int(psutil.Process(process).create_time())
    except psutil.Error:
        return 0
