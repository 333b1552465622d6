"""Workers as processes of this machine: started, watched, and started again when they die."""

import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dreammapping.sweep.cards import cards, environment
from dreammapping.sweep.progress import Shows
from dreammapping.sweep.worker import AGAIN
from utils.errors import UserError
from utils.repository import ROOT

LOOK = 0.5
"""Seconds between two looks at the workers."""
EARLY = 10.0
"""Seconds within which a worker that dies has done nothing."""
PATIENCE = 120.0
"""Seconds that a stopped worker has to save its run."""


@dataclass(frozen=True)
class Team:
    """How many workers, with what.

    Attributes:
        workers: processes; None is one for each `cards` cards, and one where there is no card.
        cards: of each worker.
        words: what every worker is told, beside its folder.
        place: the folder that relative paths of the settings are seen from; default: that of this process.
        losses: deaths in a row of a worker that has only begun, until the sweep is given up.
    """

    workers: int | None = None
    cards: int = 1
    words: tuple[str, ...] = ()
    losses: int = 5
    place: Path | None = None

    def size(self, found: list[str]) -> int:
        """Workers on this machine.

        Args:
            found: its cards; where there is none, all is done by its cores.

        Raises:
            UserError: it has fewer cards than are asked for; workers with one card each may share it.
        """
        size = self.workers or max(len(found) // self.cards, 1)
        if found and self.cards > 1 and size * self.cards > len(found):
            raise UserError(
                f"sweep: expected room for {size} worker{'s' if size > 1 else ''} with {self.cards} cards each, got "
                f"{len(found)} card{'s' if len(found) > 1 else ''}; ask for less with --cards or --workers"
            )
        return size


class Deaths:
    """Counts workers that die as soon as they have begun: no run can be blamed, and the next one would die as well.

    Args:
        most: deaths in a row, each within `EARLY` seconds.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._since: dict[int, float] = {}
        self._early: dict[int, int] = {}

    def count(self, index: int, where: str) -> None:
        """Worker `index` has died, and is started anew.

        Raises:
            UserError: it has done so too often; `where` says where more is told.
        """
        now = time.monotonic()
        early = now - self._since.get(index, -EARLY) < EARLY
        self._early[index] = self._early.get(index, 0) + 1 if early else 0
        self._since[index] = now
        if self._early[index] >= self._most:
            raise UserError(
                f"sweep: expected workers that live, got one that dies as soon as it begins; {where}"
            )


def popen(
    words: list[str], given: dict[str, str], said: Path, place: Path | None = None
) -> subprocess.Popen[bytes]:
    """A worker in a session of its own: Ctrl-C reaches this process alone, which then asks each worker once."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with said.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dreammapping.sweep.worker", *words],
            env=os.environ | given | {"PYTHONPATH": path}, cwd=place,
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip


def run(folder: Path, team: Team, progress: Shows) -> None:
    """Have workers go through a sweep until all its runs are over; what happens is shown again and again.

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
        given = environment(index, size, team.cards, found)
        return popen(words, given, logs / f"{platform.node()}-{index}.log", team.place)

    deaths = Deaths(team.losses)
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
                    deaths.count(index, f"see {logs}")
                    workers[index] = begin(index)
                    continue
                del workers[index]
                if code:
                    raise UserError(_last_words(logs / f"{platform.node()}-{index}.log", code))
        progress.show(last=True)
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
