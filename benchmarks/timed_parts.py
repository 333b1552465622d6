"""Parts of a measurement: processes within a time limit, none of which can hold up or spoil another."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.repository import ROOT

SIDE_BY_SIDE = 2
"""Processes at once of what is not timed."""
POLL = 0.2

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """One process after another, within a limit.

    Attributes:
        name: what the table calls it, and without spaces its log.
        limit: seconds for all of its commands.
        commands: words of each.
        rows: what its files say, by name and value, once all its commands have ended well.
        missing: what it cannot run without and is not here.
        environment: variables that it sets.
    """

    name: str
    limit: float
    commands: Sequence[Sequence[str]]
    rows: Callable[[Path], Rows]
    missing: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def log(self, folder: Path) -> Path:
        """Where all that it prints goes."""
        return folder / f"{self.name.replace(' ', '_')}.log"


@dataclass
class Outcome:
    """How a part ended: "done", "left out: ...", "no time left", "over its limit of ...", "failed: ..."."""

    state: str
    seconds: float
    rows: Rows

    @property
    def good(self) -> bool:
        return self.state == "done" or self.state.startswith("left out")


def longest(stage: Sequence[Part]) -> float:
    """Seconds after which the parts of a stage have ended, `SIDE_BY_SIDE` at once, whatever they do."""
    lanes = [0.0] * SIDE_BY_SIDE
    for part in stage:
        lanes[lanes.index(min(lanes))] += part.limit
    return max(lanes)


def carry_out(part: Part, folder: Path, deadline: float, stop: threading.Event) -> Outcome:
    """Run a part's commands until its limit or `deadline` (of `time.monotonic`); never raises for what they do."""
    if part.missing:
        return Outcome(f"left out: {part.missing} is not installed", 0.0, [])
    began = time.monotonic()
    if began >= deadline:
        return Outcome("no time left", 0.0, [])
    until = min(began + part.limit, deadline)
    log = part.log(folder)
    log.write_bytes(b"")
    for command in part.commands:
        code = _run(command, log, until, stop, dict(part.environment))
        spent = time.monotonic() - began
        if code is None:
            return Outcome(f"over its limit of {until - began:.0f} s", spent, [])
        if code != 0:
            return Outcome(f"failed: exit code {code}: {last_line(log)}", spent, [])
    spent = time.monotonic() - began
    try:
        return Outcome("done", spent, part.rows(folder))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, UserError) as error:
        return Outcome(f"failed: its results cannot be read ({error!r})", spent, [])


def _run(
    command: Sequence[str], log: Path, until: float, stop: threading.Event, variables: dict[str, str]
) -> int | None:
    """The exit code of a command; None where it was ended because its time was over or all were told to stop."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while (code := process.poll()) is None:
            if time.monotonic() >= until or stop.is_set():
                _end(process)
                return None
            time.sleep(POLL)
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started: compilers and workers would go on and spoil the next measurement."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """The last line with words of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next(
        (line.strip("= ")[:120] for line in reversed(lines) if line.strip("= ")), "it printed nothing"
    )
