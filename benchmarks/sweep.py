"""Whether a sweep holds, and what it costs: `python -m benchmarks.sweep [simulate | overhead | scaling]`.

`simulate`: thousands of runs on hundreds of workers, by a clock that no one waits for. Scheduler and files are those of
real sweeps; only the runs take no time. Workers die and runs fail; at the end nothing is lost and nothing done twice.
`overhead`: a run in a sweep beside the same run alone. `scaling`: the same list with one worker and with two.
"""

import heapq
import itertools
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from dreammapping.sweep.grid import Grid, Job
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, NOT_FINITE, Outcome
from dreammapping.sweep.shift import Claim, Wait, in_order, shift
from dreammapping.sweep.status import DONE, FAILED, Worker

BEAT, STALE, POLL, RESTART = 60.0, 300.0, 30.0, 45.0
"""Seconds of the simulated clock."""
SECONDS = (300.0, 900.0)
"""How long a simulated run takes, at least and at most."""
DEATH = "death"


@dataclass
class Tally:
    """What came of a simulation.

    Attributes:
        done, failed: how often each run ended so.
        claims: seconds, of the real clock, from one run's end to the next one in hand.
        clock: seconds that the sweep would have taken.
    """

    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    claims: list[float] = field(default_factory=list)
    clock: float = 0.0
    ideal: float = 0.0


@dataclass
class _Hand:
    """A simulated worker and what it is at."""

    worker: Worker
    index: int
    actions: Generator[Claim | Wait, Outcome | None, None]
    claim: Claim | None = None
    outcome: Outcome | None = None
    ends: float = 0.0
    beats: int = 0


def simulate(folder: Path, runs: int, workers: int, failures: float, seed: int = 0) -> Tally:
    """Carry out a sweep by a simulated clock.

    Args:
        failures: the share of attempts that do not end well: a fifth each memory, not finite, busy, an error, and the
            death of the worker.

    Raises:
        AssertionError: two workers were at one run, or a run was done that another had done.
    """
    rng, tally = random.Random(seed), Tally()
    jobs = [Job(f"run_{index:05d}", "a red car", index, "none", {}) for index in range(runs)]
    ledger = Ledger.enlist(folder, Grid(jobs, {"none": ""}))
    names = list(ledger.jobs)
    now, order = 0.0, itertools.count()
    busy: dict[str, int] = {}
    events: list[tuple[float, int, _Hand]] = []

    def begin(index: int) -> None:
        worker = Worker.me()
        actions = shift(
            ledger, worker, in_order(names, index, workers), start_of=lambda _: 0, clock=lambda: now,
            stale=STALE, poll=POLL,
        )  # fmt: skip
        heapq.heappush(events, (now + rng.random(), next(order), _Hand(worker, index, actions)))

    def go_on(hand: _Hand) -> None:
        outcome, hand.outcome, hand.claim = hand.outcome, None, None
        began = time.perf_counter()
        try:
            action = hand.actions.send(outcome)
        except StopIteration:
            return
        if isinstance(action, Wait):
            heapq.heappush(events, (now + action.seconds, next(order), hand))
            return
        tally.claims.append(time.perf_counter() - began)
        assert action.name not in busy and action.name not in tally.done, f"{action.name} is done twice"
        busy[action.name] = hand.index
        fails = rng.random() < failures
        seconds = rng.uniform(*SECONDS)
        tally.ideal += seconds
        kind = rng.choice((FULL, NOT_FINITE, BUSY, ERROR, DEATH)) if fails else DONE_SO
        hand.claim, hand.ends = action, now + seconds * (rng.random() if fails else 1.0)
        hand.outcome = Outcome(kind, kind, "max")
        hand.beats = 0
        heapq.heappush(events, (now, next(order), hand))

    def live(hand: _Hand) -> None:
        """A sign of life, or the end of a run."""
        assert hand.claim is not None and hand.outcome is not None
        name, kind = hand.claim.name, hand.outcome.kind
        if now < hand.ends:
            hand.beats += 1
            ledger.beat(name, Beat(hand.worker.token, hand.beats))
            heapq.heappush(events, (min(now + BEAT, hand.ends), next(order), hand))
            return
        del busy[name]
        if kind == DEATH:
            tally.deaths += 1
            heapq.heappush(
                events, (now + RESTART, next(order), _Hand(hand.worker, hand.index, hand.actions, ends=-1))
            )
            return
        if kind == DONE_SO:
            tally.done[name] += 1
        go_on(hand)

    for index in range(workers):
        begin(index)
    while events:
        now, _, hand = heapq.heappop(events)
        if hand.ends < 0:
            begin(hand.index)
        elif hand.claim is not None:
            live(hand)
        else:
            go_on(hand)
    tally.clock = now
    tally.failed.update(name for name in names if (status := ledger.read(name)) and status.state == FAILED)
    lost = [
        name for name in names if (status := ledger.read(name)) is None or status.state not in (DONE, FAILED)
    ]
    assert not lost, f"{len(lost)} runs are not over, {lost[0]} among them"
    assert all(count == 1 for count in tally.done.values()) and not tally.done.keys() & tally.failed.keys()
    assert len(tally.done) + len(tally.failed) == runs
    return tally


def simulated(runs: int, workers: int, failures: float) -> str:
    """A simulation in a folder that is removed, in words."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        tally = simulate(Path(folder) / "sweep", runs, workers, failures)
        took = time.perf_counter() - began
    claims = sorted(1000 * seconds for seconds in tally.claims)
    return (
        f"{runs} runs, {workers} workers, {failures:.0%} of attempts fail: {len(tally.done)} done once, "
        f"{len(tally.failed)} failed for good, 0 lost, 0 done twice; {tally.deaths} workers died\n"
        f"claims    {len(claims)}: median {statistics.median(claims):.2f} ms, 99 % below "
        f"{claims[int(0.99 * len(claims))]:.2f} ms, longest {claims[-1]:.2f} ms\n"
        f"clock     {tally.clock / 3600:.2f} h; {tally.ideal / workers / 3600:.2f} h if all workers were always at "
        f"work; simulated in {took:.0f} s\n"
    )
