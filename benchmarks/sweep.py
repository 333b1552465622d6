"""Whether a sweep holds, and what it costs: `python -m benchmarks.sweep simulate | overhead | scaling | replicas`.

`simulate`: thousands of runs on hundreds of workers, by a clock that no one waits for. Scheduler and files are those of
real sweeps; only the runs take no time. Workers die and runs fail; at the end nothing is lost and nothing done twice.
`overhead`: what a worker's second run costs before and after its iterations, beside its first, which loads the prior as
a run alone does.
`scaling`: the same list with one worker and with two. `replicas`: one run in one process with two threads, and in two
processes with one.
"""

import argparse
import heapq
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from dreammapping.finished import FinishedRun
from dreammapping.sweep.grid import Grid, Job, Wish, grid
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, NOT_FINITE, Outcome
from dreammapping.sweep.shift import Claim, Wait, in_order, shift
from dreammapping.sweep.status import DONE, FAILED, Worker
from utils.repository import QUICKSTART, ROOT

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


def overhead(words: list[str]) -> str:
    """What the first and the second run of a worker take beside their iterations, in words."""
    from dreammapping.sweep.attempt import Priors, attempt

    with tempfile.TemporaryDirectory() as folder:
        wish = Wish(
            QUICKSTART,
            ["a red car", "a blue duck"],
            _changes(["iterations=20", *words]),
            1,
            Path(folder) / "sweep",
        )
        listed = grid(wish)
        ledger, priors, lines = Ledger.enlist(wish.output, listed), Priors(), []
        for label, job in zip(("first", "second"), listed.jobs, strict=True):
            times = [time.perf_counter()]
            outcome = attempt(
                ledger, job.name, {}, priors, stop=lambda: False,
                tell=lambda *_, times=times: times.append(time.perf_counter()),
            )  # fmt: skip
            times.append(time.perf_counter())
            assert outcome.kind == DONE_SO, outcome.message
            began, _, *ends, over = times
            iteration = statistics.median(after - before for before, after in itertools.pairwise(ends))
            lines.append(
                f"{label:7}{ends[0] - began - iteration:6.2f} s until its first iteration, {iteration:.3f} s an "
                f"iteration, {over - ends[-1]:.2f} s after the last, {over - began:.2f} s in all\n"
            )
    return "".join(lines)


def scaling(words: list[str]) -> str:
    """The same list of four runs with one worker and with two, in words; each with its share of the cores."""
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("a red car\na blue duck\na green house\na white mushroom\n", encoding="utf-8")
            command = ["-m", "dreammapping", "sweep", "--prompts", str(prompts), "--opt", str(QUICKSTART)]
            options = ["--output", f"{folder}/sweep", "--workers", str(workers), "--quiet"]
            began = time.perf_counter()
            _run([*command, *options, "iterations=60", "save_video=false", *words])
            seconds[workers] = time.perf_counter() - began
    return (
        f"one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {seconds[1] / seconds[2]:.2f} times as fast, the "
        "start of the workers included\n"
    )


def replicas(words: list[str]) -> str:
    """One run in one process with two threads and in two processes with one thread each, in words."""
    with tempfile.TemporaryDirectory() as folder:
        common = [
            "--opt",
            str(QUICKSTART),
            f"output_path={folder}",
            "iterations=60",
            "save_video=false",
            "--quiet",
            *words,
        ]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        _run(["train.py", *common, "workspace=one"], threads=2)
        _run([*torchrun, "train.py", *common, "workspace=two"], threads=1)
        one, two = (_seconds(Path(folder) / name) for name in ("one", "two"))
    return f"one process {one:.3f} s an iteration, two {two:.3f} s: {two / one:.2f} of it\n"


def _run(words: list[str], threads: int | None = None) -> None:
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=os.environ | given, check=True)


def _seconds(run: Path) -> float:
    """The median of the log's seconds of an iteration, without the first line's, which holds the start."""
    return statistics.median(line["seconds_per_iteration"] for line in FinishedRun.open(run).metrics[1:])


def _changes(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def main(words: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("what", choices=("simulate", "overhead", "scaling", "replicas"))
    parser.add_argument("--runs", type=int, default=10_000, help="of simulate (default 10,000)")
    parser.add_argument("--workers", type=int, default=256, help="of simulate (default 256)")
    parser.add_argument(
        "--failures", type=float, default=0.05, help="share of attempts that fail (default 0.05)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    options = parser.parse_intermixed_args(words)
    if options.what == "simulate":
        sys.stdout.write(simulated(options.runs, options.workers, options.failures))
        return 0
    measure = {"overhead": overhead, "scaling": scaling, "replicas": replicas}[options.what]
    sys.stdout.write(measure(options.overrides))
    return 0


if __name__ == "__main__":
    sys.exit(main())
