"""What sweeps cost, and that they lose nothing: `python -m benchmarks.sweep simulate | overhead | scaling | replicas`.

`simulate`: thousands of runs on hundreds of workers, on a simulated clock. Scheduler and files are those of real
sweeps; only the runs take no time. Workers die and runs fail; at the end nothing is lost and nothing done twice.
`overhead`: what a worker's second run costs before its first step, beside its first, which loads the prior; and both as
a whole beside the same run alone.
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
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from benchmarks.command import RESULTS, finish_measurement
from benchmarks.rasterizer import machine
from dreammapping.finished import FinishedRun
from dreammapping.sweep.grid import Grid, Job, Wish, grid
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, NOT_FINITE, Outcome
from dreammapping.sweep.shift import Claim, Wait, carry_on, shift
from dreammapping.sweep.status import DONE, FAILED, Worker
from utils.parser import Parser
from utils.repository import QUICKSTART, ROOT

BEAT, STALE, POLL, RESTART = 150.0, 300.0, 15.0, 45.0
"""Seconds of the simulated clock."""
SECONDS = (300.0, 900.0)
"""How long a simulated run takes, at least and at most."""
DEATH = "death"
ROUNDS = 3
"""Times that `replicas` takes both."""


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
            ledger, worker, names, start_of=lambda _: 0, index=index, count=workers, clock=lambda: now,
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


def simulated(runs: int, workers: int, failures: float) -> dict[str, Any]:
    """A simulation in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        files, began = file_system(Path(folder)), time.perf_counter()
        tally = simulate(Path(folder) / "sweep", runs, workers, failures)
        took = time.perf_counter() - began
    claims = sorted(tally.claims)
    return {
        "files": files,
        "runs": runs,
        "workers": workers,
        "failures": failures,
        "done_once": len(tally.done),
        "failed_for_good": len(tally.failed),
        "deaths": tally.deaths,
        "claims": len(claims),
        "claim_seconds": {
            "median": statistics.median(claims),
            "of_99_percent": claims[int(0.99 * len(claims))],
            "longest": claims[-1],
        },
        "hours": tally.clock / 3600,
        "hours_always_at_work": tally.ideal / workers / 3600,
        "simulated_in_seconds": took,
    }


def file_system(folder: Path) -> str:
    """The kind of file system that a folder lies in; "" where that cannot be told."""
    places = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((places[each] for each in [folder, *folder.parents] if each in places), "")


def table_of_simulation(found: dict[str, Any]) -> str:
    """In words."""
    median, most, longest = (f"{1000 * seconds:.1f} ms" for seconds in found["claim_seconds"].values())
    return (
        f"{found['runs']} runs, {found['workers']} workers, {found['failures']:.0%} of attempts fail: "
        f"{found['done_once']} done once, {found['failed_for_good']} failed for good, 0 lost, 0 done twice; "
        f"{found['deaths']} workers died\n"
        f"claims    {found['claims']} on {found['files']}: median {median}, 99 % below {most}, longest {longest}\n"
        f"clock     {found['hours']:.2f} h; {found['hours_always_at_work']:.2f} h if all workers were always at work; "
        f"simulated in {found['simulated_in_seconds']:.0f} s"
    )


def overhead(words: list[str]) -> dict[str, Any]:
    """Seconds of a worker's first and second run, and of the first one alone."""
    from dreammapping.optimization import Optimization
    from dreammapping.sweep.bench import Bench

    changes = ["iterations=20", *words]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        _run(
            [
                "train.py",
                "--opt",
                str(QUICKSTART),
                "--quiet",
                *changes,
                f"output_path={folder}",
                "workspace=alone",
            ]
        )
        alone = time.perf_counter() - began
        settings = dict(word.split("=", 1) for word in changes)
        wish = Wish(QUICKSTART, ["a red car", "a blue duck"], settings, 1, Path(folder) / "sweep")
        ledger = Ledger.enlist(wish.output, grid(wish))
        bench, first_steps, ends = Bench(ledger, Worker.me()), [], [time.perf_counter()]
        iteration = Optimization.iteration

        def timed(self: Optimization, step: int) -> Any:
            if step == 1:
                first_steps.append(time.perf_counter())
            return iteration(self, step)

        def carry_out(claim: Claim) -> Outcome:
            outcome = bench.carry_out(claim)
            assert outcome.kind == DONE_SO, outcome.message
            ends.append(time.perf_counter())
            return outcome

        with mock.patch.object(Optimization, "iteration", timed):
            actions = shift(ledger, bench.worker, list(ledger.jobs), start_of=bench.start_of)
            carry_on(actions, carry_out, time.sleep, lambda: False)
    rows = [
        {"start": step - before, "all": after - before}
        for step, (before, after) in zip(first_steps, itertools.pairwise(ends), strict=True)
    ]
    return {"settings": changes, "alone": alone, "first": rows[0], "second": rows[1]}


def table_of_overhead(found: dict[str, Any]) -> str:
    """In words."""
    lines = [
        f"{name} run of a worker: {found[name]['start']:.2f} s from {since} to its first step, "
        f"{found[name]['all']:.2f} s in all"
        for name, since in (("first", "the start of its shift"), ("second", "the end of the first"))
    ]
    return "\n".join([
        *lines,
        f"the first run alone, as a program that also imports its libraries: {found['alone']:.2f} s in all",
        "To a start belong claim, settings, prior, first Gaussians and the files that a run begins with, not its steps "
        "nor the pictures and videos after the first one.",
    ])  # fmt: skip


def scaling(words: list[str]) -> dict[str, Any]:
    """Seconds of the same list of four runs with one worker and with two, each with its share of the cores."""
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            prompts = Path(folder) / "prompts.txt"
            prompts.write_text("a red car\na blue duck\na green house\na white mushroom\n", encoding="utf-8")
            command = ["-m", "dreammapping", "sweep", "--prompts", str(prompts), "--opt", str(QUICKSTART)]
            options = ["--output", f"{folder}/sweep", "--workers", str(workers), "--quiet", "--no-pages"]
            began = time.perf_counter()
            _run([*command, *options, "iterations=60", "save_video=false", *words])
            seconds[workers] = time.perf_counter() - began
    return {"one_worker": seconds[1], "two_workers": seconds[2]}


def table_of_scaling(found: dict[str, Any]) -> str:
    """In words."""
    one, two = found["one_worker"], found["two_workers"]
    return f"one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast, the start of the workers included"


def replicas(words: list[str]) -> dict[str, Any]:
    """Seconds an iteration of one run in one process with two threads, and in two processes with one thread each.

    Both are taken in turn, so that what slows the machine for a while slows both.
    """
    found: dict[str, list[float]] = {"one_process": [], "two_processes": []}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for _ in range(ROUNDS):
        for name, launcher, threads in (("one_process", [], 2), ("two_processes", torchrun, 1)):
            with tempfile.TemporaryDirectory() as folder:
                place = [f"output_path={folder}", "workspace=run", "save_video=false", "--quiet"]
                pace = ["iterations=60", "test_ratio=1", "log_interval=5"]
                _run([*launcher, "train.py", "--opt", str(QUICKSTART), *place, *pace, *words], threads)
                lines = FinishedRun.open(Path(folder) / "run").metrics[1:]  # the first has the start in it
                found[name].append(statistics.median(line["seconds_per_iteration"] for line in lines))
    return {name: statistics.median(seconds) for name, seconds in found.items()} | {"rounds": found}


def table_of_replicas(found: dict[str, Any]) -> str:
    """In words."""
    one, two = found["one_process"], found["two_processes"]
    rounds = ", ".join(f"{b / a:.2f}" for a, b in zip(*found["rounds"].values(), strict=True))
    return f"one process {one:.3f} s an iteration, two {two:.3f} s: {two / one:.2f} of it (rounds: {rounds})"


def _run(words: list[str], threads: int | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment | given, check=True)


MEASURES: dict[
    str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], str]]
] = {
    "simulate": (
        lambda options: simulated(options.runs, options.workers, options.failures),
        table_of_simulation,
    ),
    "overhead": (lambda options: overhead(options.overrides), table_of_overhead),
    "scaling": (lambda options: scaling(options.overrides), table_of_scaling),
    "replicas": (lambda options: replicas(options.overrides), table_of_replicas),
}


def main(words: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("--runs", type=int, default=10_000, help="runs to simulate (default 10,000)")
    parser.add_argument("--workers", type=int, default=256, help="workers to simulate (default 256)")
    parser.add_argument(
        "--failures", type=float, default=0.05, help="share of attempts that fail (default 0.05)"
    )
    parser.add_argument("--json", type=Path, help="where the numbers go (default: benchmarks/results)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    options = parser.parse_intermixed_args(words)
    measure, table = MEASURES[options.what]
    return finish_measurement(
        lambda: {"machine": machine(torch.device("cpu")), **measure(options)},
        table,
        options.json or RESULTS / f"sweep_{options.what}.json",
    )


if __name__ == "__main__":
    sys.exit(main())
