"""A worker's shift: which run it takes next, what follows from how that ended, and when there is nothing left.

A generator without clock or processes of its own: whoever drives it carries out the runs that it claims and lets the
time pass that it waits. So workers of any kind, and a simulation of hundreds, do the very same.
"""

import math
import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import BUSY, LOST, STOPPED, Outcome, Patience, given_up, settled
from dreammapping.sweep.status import FAILED, FINAL, QUEUED, RUNNING, Status, Worker

STALE = 90.0
"""Seconds without a sign of life after which a run is taken from its worker."""
POLL = 2.0
"""Seconds between two looks at runs that others hold."""
LOOKS, OFTEN = 16, 3.0
"""Runs that others hold of which one look takes in so many, and more where each would come to its turn less often than
so many times in `stale` seconds: the files of hundreds of workers are not read by hundreds at every poll."""


@dataclass(frozen=True)
class Claim:
    """A run to carry out now; how it ended is sent back."""

    name: str
    status: Status


@dataclass(frozen=True)
class Wait:
    """Nothing is free: come back after so many seconds."""

    seconds: float


class Watch:
    """Who gives signs of life, by the watcher's own clock alone: clocks of hosts differ, and they jump.

    Args:
        stale: seconds of one and the same sign after which it is too old.
        gap: seconds between two looks after which it is counted anew: what kept the watcher from looking, a file server
            that did not answer or a machine that slept, may have kept the other one from writing.
    """

    def __init__(self, clock: Callable[[], float], stale: float, gap: float = math.inf) -> None:
        self._clock, self._stale, self._gap = clock, stale, gap
        self._seen: dict[str, tuple[object, float, float]] = {}

    def is_stale(self, name: str, sign: object) -> bool:
        """Whether a sign has been the same for too long; `sign` is whatever changes while somebody lives."""
        now = self._clock()
        before, since, looked = self._seen.get(name, (None, now, now))
        if before != sign or now - looked > self._gap:
            since = now
        self._seen[name] = sign, since, now
        return now - since > self._stale

    def __contains__(self, name: str) -> bool:
        return name in self._seen

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)


def shift(
    ledger: Ledger,
    worker: Worker,
    names: Collection[str],
    *,
    start_of: Callable[[str], int],
    index: int = 0,
    count: int = 1,
    patience: Patience = Patience(),  # noqa: B008, frozen
    clock: Callable[[], float] = time.monotonic,
    stale: float = STALE,
    poll: float = POLL,
) -> Generator[Claim | Wait, Outcome | None, None]:
    """Claim one run after another, until all are over or one is stopped.

    Args:
        names: the runs that the worker may take.
        start_of: the iteration of a run's newest checkpoint.
        index, count: which of how many workers it is that go through these names together, each its own share first.
        clock: seconds that only ever grow.
    """
    names = list(names)
    open_names = dict.fromkeys(in_order(names, index, count))
    # of what is said to be over, each worker reads its own share; all read what was said before they came, as runs
    # that had failed may have been queued again since
    doubted, own, offset = set(names), set(names[index::count]), 0
    # a look at all runs of a long list may itself take more than two polls
    watch = Watch(clock, stale, gap=max(2 * poll, stale / 2))
    while open_names:
        finals, offset = ledger.finals(offset)
        for name in finals & open_names.keys():
            if name in doubted:
                _last(open_names, name)  # those are read when nothing else is left
            else:
                del open_names[name]
        doubted = own
        claimed, looks = None, 0
        most = max(LOOKS, math.ceil(OFTEN * poll / stale * len(open_names)))
        for name in list(open_names):
            held = name in watch
            if held and looks == most:
                break
            status = ledger.read(name)
            if status is not None and status.state in FINAL:
                del open_names[name]
                continue
            if _is_free(ledger, worker, name, status, watch):
                assert status is not None
                claimed = ledger.claim(name, worker, status, start_of(name))
                if claimed is not None:
                    break
            _last(open_names, name)  # what others hold is looked at in turn, after all that may be free
            looks += held
        if claimed is None:
            if open_names:
                yield Wait(poll)
            continue
        watch.forget(name)
        if given_up(claimed, patience):
            *before, last = claimed.attempts
            why = next(each.message for each in reversed(before) if each.outcome == LOST)
            reason = f"it was lost {patience.losses} times from iteration {last.start} on: {why}"
            ledger.change(
                name, worker, lambda status, reason=reason: status.ended("given up").final(FAILED, reason)
            )
            continue
        outcome = yield Claim(name, claimed)
        assert outcome is not None
        ledger.change(name, worker, lambda status, outcome=outcome: settled(status, outcome, patience))
        if outcome.kind in (STOPPED, LOST):
            return
        if outcome.kind == BUSY:
            _last(open_names, name)
            yield Wait(poll)


def _last(names: dict[str, None], name: str) -> None:
    """Move a name to the end."""
    del names[name]
    names[name] = None


def in_order(names: list[str], index: int, count: int) -> list[str]:
    """All names, those of worker `index` of `count` first and then the others' from a place of its own on, so that
    workers seldom ask for the same run."""
    place = index * len(names) // count
    return list(dict.fromkeys([*names[index::count], *names[place:], *names[:place]]))


def carry_on(
    shift: Generator[Claim | Wait, Outcome | None, None],
    carry_out: Callable[[Claim], Outcome],
    wait: Callable[[float], object],
    stopping: Callable[[], bool],
) -> None:
    """Drive a shift to its end, or until it is to stop; a run that was claimed by then is given back."""
    outcome = None
    while True:
        try:
            action = shift.send(outcome)
        except StopIteration:
            return
        outcome = None
        if isinstance(action, Claim):
            outcome = Outcome(STOPPED) if stopping() else carry_out(action)
        elif stopping():
            return
        else:
            wait(action.seconds)


def _is_free(ledger: Ledger, worker: Worker, name: str, status: Status | None, watch: Watch) -> bool:
    """Whether a run can be claimed: it is queued, or whoever holds it is gone."""
    if status is None:
        if watch.is_stale(name, None):
            ledger.restore(name, worker)
        return False
    if status.state == QUEUED:
        return True
    assert status.state == RUNNING and status.worker is not None
    # a worker that claims a run once more counts from the start again: the attempt is a part of the sign
    sign = len(status.attempts), status.attempts[-1].began, ledger.last_beat(name, status.worker.token)
    return status.worker.has_died() or watch.is_stale(name, sign)
