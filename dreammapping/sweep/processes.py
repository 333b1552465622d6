"""Workers as processes of this machine: started, watched, and started again when they die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreammapping.sweep.cards import cards, environment
from dreammapping.sweep.progress import Progress
from dreammapping.sweep.worker import AGAIN
from utils.errors import UserError
from utils.repository import ROOT

LOOK = 0.5
"""Seconds between two looks at the workers."""
PATIENCE = 120.0
"""Seconds that a stopped worker has to save its run."""
Start = Callable[[list[str], dict[str, str], Path], subprocess.Popen[bytes]]
"""Starts a worker with words, an environment and a file for what it says."""


@dataclass(frozen=True)
class Team:
    """How many workers, with what.

    Attributes:
        workers: processes; None is one for each `cards` cards, and one where there is no card.
        cards: of each worker.
        words: what every worker is told, beside its folder.
    """

    workers: int | None = None
    cards: int = 1
    words: tuple[str, ...] = ()

    def size(self, found: list[str]) -> int:
        """Workers on this machine."""
        return self.workers or max(len(found) // self.cards, 1)


def popen(words: list[str], given: dict[str, str], said: Path) -> subprocess.Popen[bytes]:
    """A worker in a session of its own: Ctrl-C reaches this process alone, which then asks each worker once."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with said.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dreammapping.sweep.worker", *words],
            env=os.environ | given | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def run(folder: Path, team: Team, progress: Progress, start: Start = popen) -> None:
    """Have workers go through a sweep until all its runs are over.

    Raises:
        UserError: the workers cannot work: what the last of them said.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all workers have saved and ended.
    """
    found = cards()
    size = team.size(found)
    logs = folder / "workers"
    logs.mkdir(exist_ok=True)

    def begin(index: int) -> subprocess.Popen[bytes]:
        words = [
            str(folder),
            "--index",
            str(index),
            "--count",
            str(size),
            "--parent",
            str(os.getpid()),
            *team.words,
        ]
        return start(
            words, environment(index, size, team.cards, found), logs / f"{os.uname().nodename}-{index}.log"
        )

    workers = {index: begin(index) for index in range(size)}
    try:
        while workers:
            time.sleep(LOOK)
            progress.show()
            for index, worker in list(workers.items()):
                code = worker.poll()
                if code is None:
                    continue
                if (
                    code < 0 or code == AGAIN
                ):  # killed; how often a run may cost its worker is counted with the run
                    workers[index] = begin(index)
                    continue
                del workers[index]
                if code:
                    raise UserError(_last_words(logs / f"{os.uname().nodename}-{index}.log", code))
        progress.show()
    finally:
        _end(list(workers.values()))


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """Ask workers to save and end; those that do not, and all at a second Ctrl-C, are killed."""
    for worker in workers:
        worker.send_signal(signal.SIGTERM)
    try:
        end = time.monotonic() + PATIENCE
        for worker in workers:
            worker.wait(max(end - time.monotonic(), 0.1))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.kill()
            worker.wait()


def _last_words(said: Path, code: int) -> str:
    """The error line of a worker that cannot go on."""
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines() if said.is_file() else []
    line = next((line for line in reversed(lines) if line.strip()), f"nothing; see {said}")
    return line.removeprefix("error: ") if code == 2 else f"{said}: a worker ended with code {code} ({line})"
