"""Where a worker carries out its runs: one process, in which the diffusion model stays loaded from run to run."""

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from dreammapping.sweep import group
from dreammapping.sweep.attempt import Priors, attempt, free_memory, start_of
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import BUSY, ERROR, FULL, LOST, STOPPED, Outcome
from dreammapping.sweep.shift import Claim
from dreammapping.sweep.status import Worker
from utils.errors import UserError

BEAT = 5.0
"""Seconds between two signs of life."""


class Heart:
    """Says in a thread, within the block, that the worker lives and how far its run is, and hears when it is gone.

    Attributes:
        lost: others have taken the run, because this process was silent for too long.
    """

    def __init__(self, ledger: Ledger, name: str, worker: Worker, seconds: float) -> None:
        self._ledger, self._name, self._worker, self._seconds = ledger, name, worker, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.step = self.iterations = 0
        self.lost = False

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._ledger.still(self._name, self._worker.token)

    def tell(self, step: int, iterations: int) -> None:
        """How far the run is."""
        self.step, self.iterations = step, iterations

    def _go_on(self) -> None:
        count = 0
        while not self._ended.is_set():
            with contextlib.suppress(
                UserError, OSError
            ):  # what is wrong with the folder, the run will find out
                count += 1
                beat = Beat(self._worker.token, count, self.step, self.iterations)
                self._ledger.beat(self._name, beat)
                status = self._ledger.read(self._name)
                holder = None if status is None else status.worker
                self.lost = status is not None and (holder is None or holder.token != self._worker.token)
            self._ended.wait(self._seconds)


class Bench:
    """Carries out claims.

    Args:
        beat: seconds between signs of life.
        processes: that share each run, with a card each where there are cards; above 1 they are started for it.
        parent: the process without which this one is to stop.

    Attributes:
        stopping: set, from whatever thread, to have the present run saved and ended.
        broken: the device of this process is of no more use: only a new process gets it back.
    """

    def __init__(
        self,
        ledger: Ledger,
        worker: Worker,
        *,
        beat: float = BEAT,
        processes: int = 1,
        parent: int | None = None,
    ) -> None:
        self.ledger, self.worker, self.priors = ledger, worker, Priors()
        self.stopping = threading.Event()
        self.broken = False
        self._beat, self._processes, self._parent = beat, processes, parent

    def start_of(self, name: str) -> int:
        """The iteration of a run's newest checkpoint, 0 where there is none."""
        return start_of(self.ledger, name)

    def carry_out(self, claim: Claim) -> Outcome:
        """Do a run; afterwards there is room for the next one."""
        name = claim.name
        with (
            _log_into(self.ledger.path(name) / "log.txt"),
            Heart(self.ledger, name, self.worker, self._beat) as heart,
        ):
            if self._processes > 1:
                outcome = group.carry_out(
                    self.ledger, name, self._processes, tell=heart.tell, stop=lambda: self.over or heart.lost
                )
            else:
                outcome = attempt(
                    self.ledger, name, claim.status.changes, self.priors, tell=heart.tell,
                    stop=lambda: self.over or heart.lost,
                )  # fmt: skip
        if outcome.kind == STOPPED:
            if heart.lost:
                return dataclasses.replace(outcome, kind=BUSY)
            self.stopping.set()  # it may be that a signal was heard by the run alone
        # it may be the card's fault, or a process of the group is gone: a new process goes on, as after any death
        self.broken = outcome.kind == LOST or (outcome.kind == ERROR and "CUDA error" in outcome.message)
        if self.broken:
            outcome = dataclasses.replace(outcome, kind=LOST)
        if outcome.kind == FULL:
            self.priors.drop()
        elif not self.broken:
            free_memory()
        return outcome

    @property
    def over(self) -> bool:
        """Whether this process is to do nothing more."""
        if self._parent is not None and os.getppid() != self._parent:
            self.stopping.set()
        return self.stopping.is_set() or self.broken


@contextlib.contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """Within the block, what is logged is also added to a file."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
