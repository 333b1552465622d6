"""Sweeps without models: names, lists, claims in files, retries, and many workers by a clock of the test's own."""

import csv
import dataclasses
import errno
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
import types

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from arguments import load
from benchmarks.sweep import simulate
from dreammapping.__main__ import VERBS, main
from dreammapping.sweep import group, on_ray
from dreammapping.sweep.bench import Bench
from dreammapping.sweep.grid import Grid, Job, grid, wish
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.overview import Overview, duration
from dreammapping.sweep.processes import Team
from dreammapping.sweep.results import write_gallery, write_results
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
from dreammapping.sweep.shift import Claim, Wait, Watch, carry_on, in_order, shift
from dreammapping.sweep.slug import run_name, slug
from dreammapping.sweep.status import DONE, FAILED, QUEUED, RUNNING, Status, Worker
from dreammapping.sweep.worker import shard
from guidance.prior import memory
from utils.errors import InUse, UserError
from utils.lock import Lock

QUICK = "configs/quickstart.yaml"


def listed(*names: str, settings: str = "seed: 0\n") -> Grid:
    return Grid([Job(name, "a red car", 0, "one", {}) for name in names], {"one": settings})


@pytest.fixture
def ledger(tmp_path):
    return Ledger.enlist(tmp_path / "sweep", listed("a", "b", "c"))


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "animals.txt"
    path.write_text("# two animals\na red duck\n\n  a blue cat  \n", encoding="utf-8")
    return path


def elsewhere() -> Worker:
    """A worker of a host that nothing is known of."""
    return dataclasses.replace(Worker.me(), host="far", place="far", ticks=1)


# names


@given(st.lists(st.text(max_size=80), unique=True, min_size=2, max_size=2))
def test_two_texts_never_share_a_slug(texts):
    first, second = map(slug, texts)
    assert first != second
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and name[0] != "."
        for name in (first, second)
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red car", "a_red_car"),
        ("A red car", "a_red_car-"),
        ("a_red_car", "a_red_car-"),
        ("a red  car", "a_red_car-"),
    ],
)
def test_a_slug_is_the_text_where_it_can_be_read_back(text, name):
    assert slug(text).startswith(name) and (slug(text) == name or name[-1] == "-")


def test_names_tell_what_is_varied_and_fit_a_file_system():
    assert run_name("a red car", {"guidance_scale": "7.5"}, 3) == "a_red_car-guidance_scale_7.5-s3"
    long = [run_name("a" * 500, {f"key{index}": "x" * 40 for index in range(20)}, seed) for seed in (1, 2)]
    assert max(map(len, long)) <= 255 and len(set(long)) == 2


# lists


def test_a_grid_is_every_prompt_with_every_setting_and_seed(prompts):
    words = ["guidance_scale=[5,7.5]", "guidance=[vdm,sds]", "t_range=[0.1,0.4]", "iterations=9"]
    made = grid(wish(None, prompts, QUICK, words, 2))
    assert [job.name for job in made.jobs[:3]] == [
        "a_red_duck-guidance_scale_5-guidance_vdm-s0",
        "a_red_duck-guidance_scale_5-guidance_vdm-s1",
        "a_red_duck-guidance_scale_5-guidance_sds-s0",
    ]
    assert len(made.jobs) == 2 * 2 * 2 * 2 and len(made.settings) == 4
    assert {job.prompt for job in made.jobs} == {"a red duck", "a blue cat"}
    chosen = yaml.safe_load(made.settings[made.jobs[2].settings])
    assert chosen["OptimizationParams"]["iterations"] == 9
    assert (chosen["GuidanceParams"]["guidance"], chosen["GuidanceParams"]["t_range"]) == ("sds", [0.1, 0.4])


def test_pairs_of_numbers_are_varied_as_lists_of_pairs(prompts):
    made = grid(wish(None, prompts, QUICK, ["t_range=[[0.1,0.4],[0.2,0.5]]"], 1))
    assert len(made.jobs) == 4


@pytest.mark.parametrize(("words", "noise"), [([], [0, 1]), (["noise_seed=5"], [5, 5])])
def test_a_run_with_a_seed_has_the_settings_that_it_has_alone(tmp_path, prompts, words, noise):
    made = grid(wish(None, prompts, QUICK, words, 2))
    path = tmp_path / "settings.yaml"
    path.write_text(made.settings[made.jobs[0].settings], encoding="utf-8")
    same = {"GuidanceParams.text": "a red duck", "ModelParams.workspace": "run"}
    for seed in (0, 1):
        config, _ = load(["--opt", str(path)], {**same, "seed": seed})
        assert config == load(["--opt", QUICK, *words, f"seed={seed}"], same)[0]
        assert config.GuidanceParams.noise_seed == noise[seed]


@pytest.mark.parametrize(
    ("words", "starts"), [([], [""]), (["init_prompt=[a dog.,a cow.]"], ["a dog.", "a cow."])]
)
def test_every_prompt_starts_from_its_own_shape(prompts, words, starts):
    made = grid(wish(None, prompts, "configs/cat.yaml", words, 1))
    found = [yaml.safe_load(text)["GenerateCamParams"] for text in made.settings.values()]
    assert [each["init_prompt"] for each in found] == starts
    assert all(each["init_shape"] == "shape" for each in found)


def test_a_sweep_file_says_the_same_as_the_command_line(tmp_path, prompts):
    path = tmp_path / "animals.yaml"
    path.write_text(
        f"opt: {QUICK}\nprompts: animals.txt\nseeds: [0, 1]\n"
        "settings:\n  guidance_scale: [5, 7.5]\n  OptimizationParams:\n    iterations: 9\n"
    )
    words = ["guidance_scale=[5,7.5]", "iterations=9"]
    assert grid(wish(path)) == grid(wish(None, prompts, QUICK, words, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("propmts: [a]", "got 'propmts'; did you mean prompts?"),
        ("prompts: []", "prompts: expected at least one, got []"),
        ("prompts: [a cat]\nseeds: 0", "seeds: expected a number of seeds"),
        ("prompts: [a cat]\nseeds: [1, -1]", "seeds: expected a number of seeds"),
        ("prompts: [a cat, 7]", "expected a list of texts"),
        ("prompts: [a cat, a cat]", "expected every run once, got a_cat-s0 twice"),
        ("prompts: [a cat, ' ']", "expected a text, got an empty one"),
        ("prompts: [a cat]\nsettings: {guidance_scale: []}", "guidance_scale: expected at least one"),
        ("prompts: [a cat]\nsettings: {guidance_scale: [1, 1]}", "expected every run once"),
        ("prompts: [a cat]\nsettings: {gidance: sds}", "did you mean GuidanceParams.guidance"),
        ("prompts: [a cat]\nsettings: {guidance_scale: [x]}", "guidance_scale: expected a number, got 'x'"),
        ("prompts: [a cat]\nsettings: {seed: 3}", "expected another setting, got what seeds gives"),
        ("prompts: nowhere.txt", "nowhere.txt"),
        ("- a cat", "expected a sweep with opt, prompts"),
        ("prompts: [a", "expected YAML"),
    ],
)
def test_a_bad_sweep_file_is_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text if "opt" in text or text.startswith("-") else f"opt: {QUICK}\n{text}")
    assert main(["sweep", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one list, SWEEP.yaml or --prompts FILE, got none"),
        (["a.yaml", "b.yaml"], "got a.yaml and b.yaml"),
        (["a.yaml", "--workers", "0"], "--workers: expected at least 1, got 0"),
        (["a.yaml", "--shard", "0/4"], "--shard: expected i/n with i from 1 to n, got '0/4'"),
        (["a.yaml", "--cards", "1.5"], "--cards: expected a whole number without --ray, got 1.5"),
        (
            ["a.yaml", "--ray", "--cards", "1.5"],
            "expected a whole number or a fraction below 1, got 1.5; try 1",
        ),
        (["status", "/nowhere"], "expected a sweep's folder with its sweep.json"),
    ],
)
def test_a_bad_command_is_one_line(capsys, words, message):
    assert main(["sweep", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "found", "message"),
    [
        (["--cards", "4"], "0,1", "expected room for 1 worker with 4 cards each, got 2 cards; ask for less"),
        (["--cards", "2", "--workers", "2"], "0,1,2", "room for 2 workers with 2 cards each, got 3 cards"),
    ],
)
def test_more_cards_than_there_are_is_one_line(tmp_path, prompts, monkeypatch, capsys, words, found, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", found)
    monkeypatch.setattr("dreammapping.sweep.processes.run", None)  # it would begin
    out = tmp_path / "out"
    assert main(["sweep", "--prompts", str(prompts), "--opt", QUICK, "--output", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_workers_may_share_a_card_and_several_do_without():
    assert [Team(4, 1).size(["0"]), Team(None, 2).size(list("01234")), Team(None, 2).size([])] == [4, 2, 1]


def test_sigterm_ends_the_command_with_its_number(tmp_path, prompts, monkeypatch, capsys):
    def engine(_options):
        return lambda _folder, _progress: signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("dreammapping.sweep.command._engine", engine)
    words = ["sweep", "--prompts", str(prompts), "--opt", QUICK, "--output", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 143 and "the same command goes on" in capsys.readouterr().err


def test_what_is_far_too_much_is_counted_and_not_made(prompts, monkeypatch):
    wanted = wish(None, prompts, QUICK, ["guidance_scale=[1,2]", "lambda_guidance=[1,2]"], 3)
    monkeypatch.setattr("dreammapping.sweep.grid.MOST", 23)
    monkeypatch.setattr("dreammapping.sweep.grid.itertools.product", None)
    with pytest.raises(UserError, match="expected at most 23 runs, got 2 prompts x 4 settings x 3 seeds"):
        grid(wanted)


# the folder


def test_a_changed_list_adds_and_never_loses(ledger):
    worker = Worker.me()
    ledger.claim("a", worker, Status(), 0)
    ledger.change("a", worker, lambda status: settled(status, Outcome(DONE_SO), Patience()))
    more = Ledger.enlist(ledger.folder, listed("d", "b"))
    assert list(more.jobs) == ["a", "b", "c", "d"]
    assert [more.read(name).state for name in more.jobs] == [DONE, QUEUED, QUEUED, QUEUED]


def test_a_run_with_other_settings_is_refused_by_their_names(ledger):
    other = Grid(
        [Job("b", "a red car", 0, "two", {})], {"two": "seed: 0\nGuidanceParams: {guidance_scale: 9}\n"}
    )
    with pytest.raises(
        UserError, match=r"got b with another GuidanceParams.guidance_scale; choose another --output"
    ):
        Ledger.enlist(ledger.folder, other)
    assert list(Ledger(ledger.folder).jobs) == ["a", "b", "c"]


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="expected a sweep's folder, or an empty one"):
        Ledger.enlist(tmp_path, listed("a"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_failed_runs_are_queued_again_where_that_is_asked_for(ledger):
    worker = Worker.me()
    ledger.claim("a", worker, Status(), 0)
    ledger.change("a", worker, lambda status: settled(status, Outcome(ERROR, "no luck"), Patience()))
    assert Ledger.enlist(ledger.folder, listed("a")).read("a").state == FAILED
    again = Ledger.enlist(ledger.folder, listed("a"), retry_failed=True)
    assert again.read("a").state == QUEUED and len(again.read("a").attempts) == 1
    assert next(shift(again, Worker.me(), ["a"], start_of=lambda _: 0)).name == "a"


def test_a_run_that_two_queue_again_is_not_taken_from_who_has_it(ledger, monkeypatch):
    worker = Worker.me()
    ledger.claim("a", worker, Status(), 0)
    ledger.change("a", worker, lambda status: settled(status, Outcome(ERROR, "no luck"), Patience()))
    failed, first = ledger.read("a"), Ledger.enlist(ledger.folder, listed("a"), retry_failed=True)
    first.claim("a", worker, first.read("a"), 0)
    late = Ledger(ledger.folder)
    monkeypatch.setattr(late, "read", lambda name: failed)
    late._queue("a", Worker.me())
    assert ledger.read("a").worker == worker


def test_a_folder_that_another_command_is_just_making_is_no_other_one(tmp_path):
    folder = tmp_path / "sweep"
    (folder / "settings").mkdir(parents=True)
    (folder / ".sweep.lock").touch()
    (folder / ".sweep.01234567.partial.json").touch()
    assert list(Ledger.enlist(folder, listed("a")).jobs) == ["a"]


def test_who_adds_too_long_to_a_list_is_told_of(ledger, monkeypatch):
    monkeypatch.setattr("dreammapping.sweep.ledger.ADDING", 0.0)
    with (
        Lock(ledger.folder / ".sweep.lock"),
        pytest.raises(InUse, match="expected other commands to write their list within 0 s"),
    ):
        Ledger.enlist(ledger.folder, listed("c"))
    assert (
        "c" in Ledger.enlist(ledger.folder, listed("c")).jobs
    )  # and once it has ended, nothing is in the way


def test_others_may_add_to_a_list_while_its_runs_are_queued(tmp_path, monkeypatch):
    def queue(self, *_):
        with Lock(self.folder / ".sweep.lock"):
            pass

    monkeypatch.setattr(Ledger, "_queue", queue)
    Ledger.enlist(tmp_path / "sweep", listed("a"))


@pytest.mark.parametrize("begin", ["_queue", "restore"])
def test_a_status_that_somebody_has_made_by_now_stays(ledger, monkeypatch, begin):
    held = ledger.claim("a", Worker.me(), Status(), 0)
    late = Ledger(ledger.folder)
    monkeypatch.setattr(late, "read", lambda name: None)  # it was so a moment ago
    late._queue("a", None) if begin == "_queue" else late.restore("a", Worker.me())
    assert ledger.read("a") == held


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EBUSY])
def test_what_a_shared_folder_says_in_passing_stops_nobody(ledger, monkeypatch, number):
    def refuse(*_args, **_words):
        raise OSError(number, "in passing")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        assert ledger.claim("a", Worker.me(), Status(), 0) is None
        patched.setattr("pathlib.Path.read_text", refuse)
        assert ledger.read("a") is None
    assert ledger.claim("a", Worker.me(), Status(), 0) is not None


def test_a_status_that_is_taken_from_who_was_taking_it_is_not_taken(ledger, monkeypatch):
    rename = os.rename

    def robbed(source, target):
        rename(source, target)
        rename(target, ledger.path("a") / "status.json")

    monkeypatch.setattr(os, "rename", robbed)
    assert ledger.claim("a", Worker.me(), Status(), 0) is None and ledger.read("a") == Status()


def test_a_hint_is_never_the_truth(ledger):
    (ledger.folder / "status" / "final.txt").write_text("a\nb\n")
    seen = []
    carry_on(
        shift(ledger, Worker.me(), ledger.jobs, start_of=lambda _: 0),
        lambda claim: seen.append(claim.name) or Outcome(DONE_SO),
        lambda _: None,
        lambda: False,
    )
    assert sorted(seen) == ["a", "b", "c"] and seen[0] == "c"


def test_of_many_who_ask_at_once_each_run_goes_to_one(tmp_path):
    names = [f"run{index}" for index in range(60)]
    ledger = Ledger.enlist(tmp_path / "sweep", listed(*names))
    got: list[str] = []
    barrier = threading.Barrier(8)

    def ask() -> None:
        worker = Worker.me()
        barrier.wait()
        for name in names:
            seen = ledger.read(name)
            if seen is not None and seen.state == QUEUED and ledger.claim(name, worker, seen, 0) is not None:
                got.append(name)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(names)


def test_who_has_lost_a_run_cannot_end_it(ledger):
    slow, fast = elsewhere(), Worker.me()
    held = ledger.claim("a", slow, Status(), 0)
    taken = ledger.claim("a", fast, held, 3)
    assert [attempt.outcome for attempt in taken.attempts] == ["lost", ""]
    assert ledger.change("a", slow, lambda status: status.final(DONE)) is None
    assert ledger.read("a").worker == fast


def test_a_status_that_a_power_cut_has_emptied_is_as_queued(ledger):
    (ledger.path("a") / "status.json").write_text("")
    assert ledger.claim("a", Worker.me(), ledger.read("a"), 0).state == RUNNING


def test_a_vanished_folder_is_one_line(ledger):
    shutil.rmtree(ledger.folder)
    actions = shift(ledger, Worker.me(), ledger.jobs, start_of=lambda _: 0)
    with pytest.raises(UserError, match="expected the sweep, found it gone"):
        next(actions)


def test_a_word_in_the_list_that_is_none_is_one_line(ledger):
    (ledger.folder / "sweep.json").write_text('{"runs": [{"name": 1}]}')
    with pytest.raises(UserError, match="expected the list of a sweep"):
        Ledger(ledger.folder)


# who is gone


def test_signs_of_life_are_judged_by_the_watchers_own_clock():
    now = 0.0
    watch = Watch(lambda: now, stale=10)
    assert not watch.is_stale("a", 1)
    for count in range(2, 40):  # one that lives is never taken, however late it is
        now += 9
        assert not watch.is_stale("a", count)
    now += 9
    assert not watch.is_stale("a", 39)
    now += 2
    assert watch.is_stale("a", 39)


def test_time_in_which_nobody_looked_is_nobodys_silence():
    now = 0.0
    watch = Watch(lambda: now, stale=10, gap=6)
    for later, stale in [(0.0, False), (5.0, False), (100.0, False), (105.0, False), (111.0, True)]:
        now = later
        assert watch.is_stale("a", 1) is stale


def test_a_shift_that_was_away_gives_others_their_time(ledger):
    now = 0.0
    ledger.claim("a", elsewhere(), Status(), 0)
    actions = shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0, clock=lambda: now, stale=10, poll=4)
    for later in (0.0, 100.0, 104.0, 108.0):
        now = later
        assert next(actions) == Wait(4)
    now = 112.0
    assert isinstance(next(actions), Claim)


def test_a_dead_process_of_this_machine_is_known_at_once(ledger):
    child = os.fork()
    if child == 0:
        ledger.claim("a", Worker.me(), Status(), 0)
        os._exit(0)
    os.waitpid(child, 0)
    assert ledger.read("a").worker.has_died() and not Worker.me().has_died()
    action = next(shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0))
    assert isinstance(action, Claim) and action.status.attempts[0].outcome == "lost"


def test_a_silent_worker_of_another_host_loses_its_run_and_a_living_one_keeps_it(ledger):
    now = 0.0
    holder = elsewhere()
    ledger.claim("a", holder, Status(), 0)
    actions = shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0, clock=lambda: now, stale=10, poll=4)
    for count in range(5):
        ledger.beat("a", Beat(holder.token, count))
        assert next(actions) == Wait(4)
        now += 4
    for _ in range(2):
        assert next(actions) == Wait(4)
        now += 4
    action = next(actions)
    assert isinstance(action, Claim) and [attempt.outcome for attempt in action.status.attempts] == [
        "lost",
        "",
    ]


def test_the_status_of_who_died_while_changing_it_comes_back(ledger):
    now = 0.0
    os.rename(ledger.path("a") / "status.json", ledger.path("a") / "taken-dead.json")
    actions = shift(ledger, Worker.me(), ["a"], start_of=lambda _: 0, clock=lambda: now, stale=10, poll=4)
    for _ in range(4):
        assert next(actions) == Wait(4)
        now += 4
    assert isinstance(next(actions), Claim)
    assert [path.name for path in ledger.path("a").iterdir()] == ["status.json"]


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
    assert ledger.read("a").state == FAILED


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


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_die_lose_nothing_and_do_nothing_twice(tmp_path, seed):
    tally = simulate(tmp_path / "sweep", runs=200, workers=24, failures=0.2, seed=seed)  # asserts it
    assert tally.deaths > 0 and len(tally.failed) > 0 and tally.clock < 3 * tally.ideal / 24 + 3600


# one run on several cards


def test_a_group_whose_first_process_finds_the_folder_busy_is_busy(ledger):
    place = ledger.path("a")
    for rank, outcome in enumerate([Outcome(BUSY, "in use"), Outcome(ERROR, "connection reset")]):
        (place / f"outcome-{rank}.json").write_text(json.dumps(dataclasses.asdict(outcome)))
    assert group._outcome(place, 1, False).kind == BUSY


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


def test_runs_that_are_done_get_a_gallery_where_the_program_makes_pages(ledger, monkeypatch):
    given = []
    pages = types.ModuleType("pages")
    pages.main = lambda words: given.append(words) or 0
    monkeypatch.setitem(sys.modules, "pages", pages)
    monkeypatch.setitem(VERBS, "page", ("pages", "write pages"))
    assert not write_gallery(ledger) and given == []
    worker = Worker.me()
    ledger.claim("b", worker, Status(), 0)
    ledger.change("b", worker, lambda status: settled(status, Outcome(DONE_SO), Patience()))
    assert write_gallery(ledger) and given == [[str(ledger.folder / "b")]]


def test_results_are_a_row_for_every_run(ledger):
    worker = Worker.me()
    ledger.claim("b", worker, Status(), 0)
    ledger.change(
        "b", worker, lambda status: settled(status, Outcome(ERROR, 'a "reason", with comma'), Patience())
    )
    ledger.run_folder("b").mkdir()
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
