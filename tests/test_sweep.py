"""What follows from how a run ended, many workers by a clock of the test's own, groups, Ray, and what is shown."""

import csv
import dataclasses
import itertools
import json
import shutil
import signal
import statistics
import sys
import threading
import time
import types
from collections import Counter
from functools import partial

import pytest

from arguments import load, to_yaml
from benchmarks.sweep import simulate
from dreammapping.__main__ import main
from dreammapping.optimization import Optimization
from dreammapping.sweep import command, group, on_ray
from dreammapping.sweep.attempt import Priors, attempt, kind_of
from dreammapping.sweep.bench import Bench
from dreammapping.sweep.grid import Grid, Job, Wish, grid
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.overview import Overview, duration
from dreammapping.sweep.results import TABLES, _scores, write_gallery, write_results
from dreammapping.sweep.retries import (
    BUSY,
    DONE_SO,
    ERROR,
    FULL,
    LOST,
    MEMORY,
    NOT_FINITE,
    PLANS,
    STOPPED,
    Outcome,
    Patience,
    given_up,
    settled,
)
from dreammapping.sweep.shift import Wait, carry_on, in_order, shift
from dreammapping.sweep.status import DONE, FAILED, QUEUED, Status, Worker
from dreammapping.sweep.worker import shard
from guidance.prior import memory
from tests.finished_run import finished_run
from tests.sweep_lists import elsewhere, listed
from utils.errors import Alone
from utils.own_files import RECORD
from utils.run import Run


@pytest.fixture
def ledger(tmp_path):
    return Ledger.enlist(tmp_path / "sweep", listed("a", "b", "c"))


# what follows from how a run ended


def after(*outcomes: Outcome) -> Status:
    status = Status()
    for outcome in outcomes:
        status = settled(status.claimed(Worker.me(), 0), outcome, Patience())
    return status


def test_plans_are_those_of_the_prior():
    assert tuple(memory.PLANS) == PLANS


@pytest.mark.parametrize(
    ("plan", "following"), [("max", "24gb"), ("24gb", "12gb"), ("12gb", "8gb"), ("8gb", None)]
)
def test_full_memory_asks_for_the_next_smaller_plan(plan, following):
    status = after(Outcome(FULL, "full", plan))
    assert (status.state, status.changes.get(MEMORY)) == (
        (FAILED, None) if following is None else (QUEUED, following)
    )


def test_full_memory_at_load_goes_down_all_plans_and_then_fails():
    status = after(*[Outcome(FULL, "does not hold the models")] * 4)
    assert status.state == FAILED and status.reason == "does not hold the models"
    assert [attempt.changes.get(MEMORY) for attempt in status.attempts] == [None, "24gb", "12gb", "8gb"]


def test_numbers_that_are_not_finite_ask_for_another_seed_which_the_record_says():
    broken = Outcome(NOT_FINITE, "not finite", seeds=(3, 2**63 - 1))
    once = after(broken)
    assert once.state == QUEUED and once.changes["seed"] != 3
    assert once.claimed(Worker.me(), 0).attempts[-1].changes["seed"] == once.changes["seed"]
    assert after(broken, broken).state == QUEUED and after(broken, broken, broken).state == FAILED


def test_anything_else_is_not_tried_again():
    assert after(Outcome(ERROR, "the prompt is too long")).state == FAILED


def test_what_is_busy_lets_others_come_first_and_leaves_one_line(ledger):
    seen = []

    def carry_out(claim):
        seen.append(claim.name)
        return Outcome(BUSY if claim.name == "a" and len(seen) < 7 else DONE_SO)

    carry_on(
        shift(ledger, Worker.me(), "abc", start_of=lambda _: 0), carry_out, lambda _: None, lambda: False
    )
    assert "".join(seen) == "abcaaaa"
    assert [attempt.outcome for attempt in ledger.read("a").attempts] == [BUSY, DONE_SO]


def test_a_lost_device_is_the_death_of_its_worker_and_no_fault_of_the_run(ledger, monkeypatch):
    broken = Outcome(ERROR, "RuntimeError: CUDA error: unspecified launch failure")
    monkeypatch.setattr("dreammapping.sweep.bench.attempt", lambda *_args, **_words: broken)
    for _ in range(2):
        bench = Bench(ledger, Worker.me())
        actions = shift(ledger, bench.worker, ["a"], start_of=lambda _: 0, patience=Patience(losses=2))
        carry_on(actions, bench.carry_out, lambda _: None, lambda bench=bench: bench.over)
        assert bench.broken and ledger.read("a").state == QUEUED
    assert [attempt.outcome for attempt in ledger.read("a").attempts] == [LOST, LOST]
    assert list(shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0, patience=Patience(losses=2))) == []
    assert ledger.read("a").state == FAILED and ledger.read("a").reason.endswith(broken.message)


@pytest.mark.parametrize("kind", [STOPPED, BUSY])
def test_what_was_stopped_costs_no_patience(kind):
    status = after(*[Outcome(kind)] * 50)
    assert status.state == QUEUED and not given_up(status.claimed(Worker.me(), 0), Patience())


def test_a_run_that_costs_its_worker_again_and_again_is_given_up_unless_it_gets_on():
    status = Status()
    for start in (0, 0, 0, 4, 4, 4):
        status = status.claimed(Worker.me(), start).ended("lost")
    assert not given_up(status.claimed(Worker.me(), 4), Patience(losses=4))
    assert given_up(status.claimed(Worker.me(), 4), Patience(losses=3))
    assert not given_up(status.claimed(Worker.me(), 8), Patience(losses=3))


def test_what_was_claimed_when_the_worker_was_to_stop_is_given_back(ledger):
    seen = []

    def carry_out(claim):
        seen.append(claim.name)
        return Outcome(DONE_SO)

    carry_on(
        shift(ledger, Worker.me(), ledger.jobs, start_of=lambda _: 0),
        carry_out,
        lambda _: None,
        lambda: len(seen) == 2,
    )
    assert seen == ["a", "b"] and [ledger.read(name).state for name in "abc"] == [DONE, DONE, QUEUED]


def test_shards_share_a_list_out():
    names = [f"run{index}" for index in range(10)]
    parts = [shard(names, f"{index}/3") for index in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == names and [len(part) for part in parts] == [4, 3, 3]


def test_every_worker_may_take_every_run_its_own_first():
    names = [f"run{index}" for index in range(10)]
    assert in_order(names, 1, 3)[:3] == ["run1", "run4", "run7"]
    assert sorted(in_order(names, 1, 3)) == names


def test_signs_of_an_earlier_attempt_of_the_same_worker_are_not_those_of_now(ledger):
    now, holder = 0.0, elsewhere()
    actions = shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0, clock=lambda: now, stale=10, poll=4)
    for _ in range(2):
        ledger.claim("a", holder, ledger.read("a"), 0)
        ledger.beat("a", Beat(holder.token, 1))
        assert next(actions) == Wait(4)
        now += 30
        ledger.change("a", holder, lambda status: settled(status, Outcome(FULL, "full", "max"), Patience()))


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_die_lose_nothing_and_do_nothing_twice(tmp_path, seed):
    tally = simulate(tmp_path / "sweep", runs=120, workers=16, failures=0.2, seed=seed)  # asserts it
    assert tally.deaths > 0 and len(tally.failed) > 0 and tally.clock < 3 * tally.ideal / 16 + 3600


def test_each_status_is_read_a_few_times_however_many_workers_there_are(tmp_path, monkeypatch):
    reads, read = Counter(), Ledger.read
    monkeypatch.setattr(Ledger, "read", lambda self, name: reads.update([name]) or read(self, name))
    simulate(tmp_path / "sweep", runs=120, workers=24, failures=0.0)
    # the median, as all look in turn at the last runs that others are at
    assert statistics.median(reads.values()) < 24 / 2


def test_what_has_failed_and_is_queued_again_is_done_by_whoever_comes_to_it_first(ledger):
    worker = Worker.me()
    for name in "abc":
        ledger.claim(name, worker, Status(), 0)
        ledger.change(name, worker, lambda status: settled(status, Outcome(ERROR, "no luck"), Patience()))
    again, seen = Ledger.enlist(ledger.folder, listed("a", "b", "c"), retry_failed=True), []
    carry_on(
        shift(again, Worker.me(), "abc", start_of=lambda _: 0, index=1, count=3),
        lambda claim: seen.append(claim.name) or Outcome(DONE_SO),
        lambda _: None,
        lambda: False,
    )
    assert sorted(seen) == ["a", "b", "c"]


# one run on several cards


HEARD = Outcome(LOST, "another process has ended")


@pytest.mark.parametrize(
    ("left", "kind"),
    [
        ([Outcome(BUSY, "in use"), Outcome(ERROR, "connection reset")], BUSY),
        ([HEARD, Outcome(FULL, "full")], FULL),
        ([Outcome(ERROR, "the prompt is too long")] * 2, ERROR),
        ([Outcome(STOPPED)] * 2, STOPPED),
        ([HEARD, Outcome(ERROR, "x")], ERROR),
        ([HEARD], LOST),
        ([HEARD, HEARD], LOST),
        ([HEARD, Outcome(DONE_SO)], LOST),
        ([Outcome(STOPPED)], LOST),
        ([Outcome(FULL, "full")], FULL),
        ([Outcome(DONE_SO)], LOST),
        ([], LOST),
    ],
)
def test_a_group_ends_as_the_one_that_tells_most_and_is_lost_with_one_that_tells_nothing(ledger, left, kind):
    place = ledger.path("a")
    for rank, outcome in enumerate(left):
        (place / f"outcome-{rank}.json").write_text(json.dumps(dataclasses.asdict(outcome)))
    found = group._outcome(place, 2, 1, False)
    assert found.kind == kind and ("group.txt" in found.message) == (kind == LOST)


def test_who_hears_that_another_process_is_gone_is_lost(monkeypatch):
    def broken_off(_step):
        raise RuntimeError("gloo: connection closed by peer")

    optimization = Optimization.__new__(Optimization)
    monkeypatch.setattr(optimization, "_bookmark", lambda: None)
    monkeypatch.setattr(optimization, "_iterate", broken_off)
    monkeypatch.setattr("dreammapping.optimization.is_broken_off", lambda _: True)
    with pytest.raises(Alone, match="iteration 3: another process") as raised:
        optimization.iteration(3)
    assert kind_of(raised.value) == LOST


def test_who_has_lost_a_process_of_its_group_begins_anew(ledger, monkeypatch):
    monkeypatch.setattr("dreammapping.sweep.bench.group.carry_out", lambda *_, **__: Outcome(LOST, "died"))
    bench = Bench(ledger, Worker.me(), processes=2)
    actions = shift(ledger, bench.worker, ["a"], start_of=lambda _: 0)
    carry_on(actions, bench.carry_out, lambda _: None, lambda: bench.over)
    assert bench.broken and ledger.read("a").state == QUEUED


@pytest.mark.parametrize("loss", ["another has the run", "its worker has died"])
def test_a_group_ends_when_its_worker_does(ledger, monkeypatch, loss):
    heard, mine = threading.Event(), Worker.me()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(group, "ASK", 0.01)
    monkeypatch.setattr("dreammapping.sweep.group.signal.SIGTERM", signal.SIGUSR1)  # spares the tests
    previous = signal.signal(signal.SIGUSR1, lambda *_: heard.set())
    held = ledger.claim("a", mine, Status(), 0)

    def attempt(*_args, **_words):
        assert not heard.wait(0.1)
        if loss == "another has the run":
            ledger.claim("a", elsewhere(), held, 0)
        else:
            monkeypatch.setattr(Worker, "has_died", lambda _: True)
        return Outcome(STOPPED if heard.wait(10.0) else DONE_SO)

    monkeypatch.setattr("dreammapping.sweep.attempt.attempt", attempt)
    try:
        assert group.main([str(ledger.folder), "a"]) == 1 and heard.is_set()
    finally:
        signal.signal(signal.SIGUSR1, previous)


# Ray, as far as it can be told without it


class FakeRay:
    """A cluster in which only the first actor is ever placed, and that one finds all runs over."""

    exceptions = types.SimpleNamespace(RayError=OSError, RayTaskError=KeyError)

    def __init__(self):
        self.actors, self.given, self.waits = 0, {}, 0

    def init(self, **given):
        self.given = given

    def shutdown(self):
        pass

    def cluster_resources(self):
        return {"CPU": 2.0}

    def method(self, **_given):
        return lambda function: function

    def remote(self, **_given):
        return lambda _kind: types.SimpleNamespace(
            options=lambda **_: types.SimpleNamespace(remote=self._actor)
        )

    def _actor(self, *_args):
        index, self.actors = self.actors, self.actors + 1
        call = {
            name: types.SimpleNamespace(remote=lambda name=name: (index, name)) for name in ("work", "stop")
        }
        return types.SimpleNamespace(**call)

    def wait(self, calls, num_returns, timeout):
        assert timeout <= 10.0, "waits for an actor that was never placed"
        self.waits += 1
        assert self.waits < 99, "waits for ever"
        ready = [call for call in calls if call[0] == 0]
        return ready, [call for call in calls if call not in ready]

    def get(self, _call):
        return 0


def test_actors_that_are_never_placed_are_not_waited_for(tmp_path, monkeypatch):
    ray = FakeRay()
    monkeypatch.setattr(on_ray, "GRACE", 0.01, raising=False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    shown = types.SimpleNamespace(show=lambda **_: time.sleep(0.001))
    on_ray.run(tmp_path, on_ray.Crew(workers=2), shown)
    assert ray.actors == 2 and ray.given["address"] == "local"


# what is shown


def test_an_overview_tells_how_far_all_runs_are(ledger, capsys):
    now = 0.0
    overview = Overview(ledger, lambda: now)
    assert overview.line == "3 runs: 3 queued"
    worker = Worker.me()
    ledger.claim("a", worker, Status(), 0)
    ledger.change("a", worker, lambda status: settled(status, Outcome(ERROR, "no luck"), Patience()))
    ledger.claim("b", worker, Status(), 0)
    ledger.beat("b", Beat(worker.token, 1, 50, 100))
    now = 150.0
    assert overview.look() == ["a"] and overview.failed == {"a": "no luck"}
    assert overview.line == f"3 runs: 1 failed, 1 running, 1 queued, about {duration(150.0)} left"
    assert main(["sweep", "status", str(ledger.folder)]) == 0
    shown = capsys.readouterr().out
    assert f"running  b  50 of 100  (process {worker.process} on {worker.host}, attempt 1)" in shown
    assert "failed   a: no luck" in shown


def test_two_varied_settings_of_one_name_have_a_column_each(tmp_path):
    varied = {"ASDParams.scale": 1, "CSDParams.scale": 2, "GuidanceParams.guidance": "sds"}
    made = Grid([Job("a", "a red car", 0, "one", varied)], {"one": "seed: 0\n"})
    (row,) = write_results(Ledger.enlist(tmp_path / "sweep", made))
    assert (row["ASDParams.scale"], row["CSDParams.scale"], row["guidance"]) == (1, 2, "sds")


def test_runs_that_are_done_get_a_gallery(ledger, monkeypatch):
    given, worker = [], Worker.me()
    monkeypatch.setattr("dreammapping.page.command.write", lambda folders, _to: given.append(folders))
    write_gallery(ledger)
    for name in "bc":
        ledger.claim(name, worker, Status(), 0)
        ledger.change(name, worker, lambda status: settled(status, Outcome(DONE_SO), Patience()))
    write_gallery(ledger)
    assert given == []  # somebody has removed the folders
    ledger.run_folder("b").mkdir()
    write_gallery(ledger)
    assert given == [[ledger.folder / "b"]]


def test_columns_of_a_run_are_there_when_its_settings_load_no_more(ledger):
    folder = ledger.run_folder("a")
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: nonsense\n")
    (folder / "run.json").write_text('{"seconds": 3.0}')
    assert write_results(ledger)[0]["seconds"] == 3.0


def test_results_are_a_row_for_every_run(ledger):
    worker = Worker.me()
    ledger.claim("b", worker, Status(), 0)
    ledger.change(
        "b", worker, lambda status: settled(status, Outcome(ERROR, 'a "reason", with comma'), Patience())
    )
    ledger.run_folder("b").mkdir()
    (ledger.run_folder("b") / "config.yaml").write_text(
        "GuidanceParams: {text: a red car, model_key: toybox}\n"
    )
    (ledger.run_folder("b") / "run.json").write_text(
        '{"gaussians": 7, "score_model_evaluations": {"forward": 8}}'
    )
    write_results(ledger)
    with (ledger.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a", "b", "c"]
    assert (rows[1]["state"], rows[1]["reason"]) == (FAILED, 'a "reason", with comma')
    assert (rows[1]["gaussians"], rows[1]["evaluations"], rows[0]["gaussians"]) == ("7", "8", "")
    as_json = json.loads((ledger.folder / "results.json").read_text())
    assert [row["state"] for row in as_json] == [QUEUED, FAILED, QUEUED]


def done_runs(folder, tell, *iterations):
    """A sweep whose runs are done, with folders that hold what `tell` says of each: its settings and run.json."""
    made = grid(
        Wish(
            settings_file(folder),
            ["a red car"],
            {"OptimizationParams.iterations": list(iterations)},
            1,
            folder / "sweep",
        )
    )
    ledger, worker = Ledger.enlist(folder / "sweep", made), Worker.me()
    for name, job in ledger.jobs.items():
        ledger.claim(name, worker, Status(), 0)
        ledger.change(name, worker, lambda status: settled(status, Outcome(DONE_SO), Patience()))
        ledger.run_folder(name).mkdir()
        changes, told = tell(job)
        changes = {"GuidanceParams.text": job.prompt, **changes}
        config, _ = load(["--opt", str(ledger.settings(name))], changes)
        (ledger.run_folder(name) / "config.yaml").write_text(to_yaml(config))
        known = {"prompt": job.prompt, "seed": job.seed, "finished": True} | told
        (ledger.run_folder(name) / "run.json").write_text(json.dumps(known))
    return ledger


def settings_file(folder):
    (folder / "settings.yaml").write_text("GuidanceParams: {text: a red car, model_key: toybox}\n")
    return folder / "settings.yaml"


@pytest.mark.parametrize(
    ("tell", "lack"),
    [
        (lambda job: ({}, {"prompt": "a green duck", "seed": 7}), "another run, with another prompt, seed"),
        (
            lambda job: ({"OptimizationParams.iterations": 9}, {}),
            "another run, with another OptimizationParams.iterations",
        ),
        (lambda job: ({}, {"finished": False}), "no finished run"),
    ],
)
def test_a_run_that_somebody_replaced_is_told_from_the_one_that_is_listed(tmp_path, caplog, tell, lack):
    rows = write_results(done_runs(tmp_path, tell, 4))
    assert [row["reason"] for row in rows] == [f"its folder holds {lack}"]
    (warning,) = [message for message in caplog.messages if lack in message]
    assert warning.startswith(rows[0]["folder"]) and warning.endswith("with --retry-failed makes it again")


def test_a_run_whose_folder_somebody_removed_is_told_of_and_others_are_not(tmp_path, caplog):
    ledger = done_runs(tmp_path, lambda job: ({}, {}), 4, 5)
    gone, _ = ledger.jobs
    caplog.clear()
    assert [row["reason"] for row in write_results(ledger)] == ["", ""] and not caplog.messages
    shutil.rmtree(ledger.run_folder(gone))
    assert [row["reason"] for row in write_results(ledger)] == ["its folder is gone", ""]
    (warning,) = caplog.messages
    assert warning.startswith(f"{ledger.run_folder(gone)}: was done, but its folder is gone; ")


def test_what_stands_in_the_place_of_a_run_is_kept_and_the_advice_works(tmp_path, monkeypatch):
    """A run whose checkpoints somebody deleted, say: train.py's advice is to give options that a sweep has not."""
    made = grid(Wish(settings_file(tmp_path), ["a red car"], {}, 1, tmp_path / "sweep"))
    ledger = Ledger.enlist(tmp_path / "sweep", made)
    (name,) = ledger.jobs
    theirs = ledger.run_folder(name) / "notes.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")

    def optimize(config, **_):
        with Run(config.ModelParams.run_folder):
            return types.SimpleNamespace(exit_code=0)

    monkeypatch.setattr("dreammapping.sweep.attempt.optimize", optimize)
    go = partial(attempt, ledger, name, {}, Priors(), tell=lambda *_: None, stop=lambda: False)
    outcome = go()
    assert outcome.kind == ERROR and theirs.read_text() == "mine"
    assert "move what is there away and repeat the command with --retry-failed" in outcome.message
    theirs.parent.rename(tmp_path / "away")
    assert go().kind == DONE_SO


def test_a_table_that_somebody_changed_is_theirs(ledger, capsys, caplog, monkeypatch):
    write_results(ledger)
    (ledger.folder / RECORD).unlink()  # as an earlier version left them
    write_results(ledger)
    table = ledger.folder / "results.csv"
    noted = table.read_text() + "my notes\n"
    table.write_text(noted)
    assert main(["sweep", "results", "--no-pages", str(ledger.folder)]) == 2
    error = capsys.readouterr().err
    assert (
        f"{table}: expected no file, or one that this program made there, found one that was changed" in error
    )
    assert table.read_text() == noted
    options = command.parser().parse_args(["--no-pages", "--quiet"])
    monkeypatch.setattr(command, "_engine", lambda _: lambda *_: None)
    monkeypatch.setattr(Ledger, "enlist", lambda *_, **__: ledger)
    command._carry_out(options, None, ledger.folder)
    (warning,) = [message for message in caplog.messages if "changed since" in message]
    assert warning.endswith(f"; then `python -m dreammapping sweep results {ledger.folder}` writes it")
    assert table.read_text() == noted


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("edit", ["a line more", "a cell"])
def test_a_changed_table_is_theirs_also_where_the_record_is_lost(ledger, tmp_path, capsys, name, edit):
    """As in a copy by `cp -r sweep/* copy/`."""
    write_results(ledger)
    (ledger.folder / RECORD).unlink()
    table = ledger.folder / name
    changed = (
        table.read_text() + "my notes\n" if edit == "a line more" else table.read_text().replace("a", "b", 1)
    )
    table.write_text(changed)
    assert main(["sweep", "results", "--no-pages", str(ledger.folder)]) == 2
    error = capsys.readouterr().err
    assert (
        "expected no file, or one that this program made there, found another; move it, or rename it" in error
    )
    assert error.count("\n") == 1 and table.read_text() == changed and not (ledger.folder / RECORD).exists()
    table.rename(ledger.folder / f"my_{name}")
    for other in set(TABLES) - {name}:
        (ledger.folder / other).rename(tmp_path / other)
    assert main(["sweep", "results", "--no-pages", str(ledger.folder)]) == 0


def test_the_judges_words_count_for_the_asset_that_is_there(tmp_path):
    """Not what was asked by another prompt, or of an earlier iteration."""
    run = finished_run(tmp_path / "run")
    said = {"iteration": 20, "prompt": "a red car", "asset": {"similarity": 0.3}}
    for changes, known in (
        ({}, said),
        ({"iteration": 10}, {}),
        ({"prompt": "a cat"}, {}),
        ({"asset": 1}, {}),
    ):
        (run / "judge.json").write_text(json.dumps(said | changes), encoding="utf-8")
        assert _scores(run) == known
    (run / "judge.json").write_text("[1]", encoding="utf-8")
    assert _scores(run) == {}
