"""What has become of a sweep's runs, at one look."""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.status import DONE, FAILED, FINAL, QUEUED, STATES, Status

PACE = 900.0
"""Seconds of the past by which the time left is told."""


@dataclass(frozen=True)
class Working:
    """A run that somebody works at."""

    name: str
    status: Status
    beat: Beat | None

    @property
    def line(self) -> str:
        """Who does what, and how far it is."""
        worker, beat = self.status.worker, self.beat
        far = f"{beat.step} of {beat.iterations}" if beat is not None and beat.iterations else "loading"
        return f"{self.name}  {far}  ({worker}, attempt {len(self.status.attempts)})"


class Overview:
    """Looks at a ledger again and again; runs that are over are not read twice.

    Attributes:
        finals: runs that are over. working: those that somebody works at.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger, self._clock = ledger, clock
        self.finals: dict[str, Status] = {}
        self.working: list[Working] = []
        self.counts: Counter[str] = Counter()
        self._ends: deque[tuple[float, float]] = deque()
        self.look()

    def look(self) -> list[str]:
        """Read what has changed; returns the names of runs that have ended since the last look."""
        ended, self.working, self.counts = [], [], Counter()
        for name in self._ledger.jobs:
            status = self.finals.get(name) or self._ledger.read(name)
            state = status.state if status is not None else QUEUED
            self.counts[state] += 1
            if status is None or name in self.finals:
                continue
            if state in FINAL:
                self.finals[name] = status
                ended.append(name)
            elif status.worker is not None:
                self.working.append(Working(name, status, self._ledger.last_beat(name, status.worker.token)))
        self._remember()
        return ended

    @property
    def size(self) -> int:
        """Runs of the list."""
        return len(self._ledger.jobs)

    @property
    def open(self) -> bool:
        """Whether a run is not over."""
        return len(self.finals) < len(self._ledger.jobs)

    @property
    def failed(self) -> dict[str, str]:
        """Runs that have failed, and why."""
        return {name: status.reason for name, status in self.finals.items() if status.state == FAILED}

    @property
    def work(self) -> float:
        """Runs that are over, and shares of those that go on."""
        shares = (
            each.beat.step / each.beat.iterations
            for each in self.working
            if each.beat and each.beat.iterations
        )
        return self.counts[DONE] + self.counts[FAILED] + sum(shares)

    @property
    def seconds_left(self) -> float | None:
        """As long as the rest will take at the pace of the last quarter of an hour; None where that is not known."""
        (since, before), (now, work) = self._ends[0], self._ends[-1]
        if work <= before:
            return None
        return (len(self._ledger.jobs) - work) * (now - since) / (work - before)

    @property
    def line(self) -> str:
        """How many runs are where, and the time left."""
        told = [f"{self.counts[state]} {state}" for state in reversed(STATES) if self.counts[state]]
        left = self.seconds_left
        if self.open and left is not None:
            told.append(f"about {duration(left)} left")
        return f"{len(self._ledger.jobs)} runs: {', '.join(told)}"

    def _remember(self) -> None:
        now = self._clock()
        self._ends.append((now, self.work))
        while len(self._ends) > 2 and now - self._ends[0][0] > PACE:
            self._ends.popleft()


def duration(seconds: float) -> str:
    """A time as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
