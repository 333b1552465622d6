"""A sweep's folder: who claims a run, who has lost it, and what is not lost."""

import errno
import os
import shutil
import threading

import pytest

from dreammapping.sweep.grid import Grid, Job
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import (
    DONE_SO,
    ERROR,
    Outcome,
    Patience,
    settled,
)
from dreammapping.sweep.shift import Claim, Wait, Watch, carry_on, shift
from dreammapping.sweep.status import DONE, FAILED, QUEUED, RUNNING, Status, Worker
from tests.sweep_lists import elsewhere, listed
from utils.errors import InUse, UserError
from utils.lock import Lock


@pytest.fixture
def ledger(tmp_path):
    return Ledger.enlist(tmp_path / "sweep", listed("a", "b", "c"))


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


def test_what_killed_commands_and_workers_left_half_written_is_removed_at_the_next_start(ledger):
    folder = ledger.folder
    for path in (folder / "sweep.json", folder / "settings" / "one.yaml", ledger.path("a") / "status.json",
                 ledger.path("a") / "heartbeat.json"):  # fmt: skip
        path.with_name(f".{path.stem}.0123abcd.partial{path.suffix}").write_text("half")
    again = Ledger.enlist(folder, listed("a"))
    assert again.claim("a", Worker.me(), Status(), 0)
    assert not list(folder.rglob("*.partial*"))


def test_settings_that_somebody_edited_are_not_run_under_the_names_of_others(ledger):
    path = ledger.folder / "settings" / "one.yaml"
    path.write_text("seed: 0\niterations: 2\n")
    with pytest.raises(
        UserError, match=r"one\.yaml: expected the settings that were written there, found others"
    ):
        Ledger.enlist(ledger.folder, listed("a", "d"))
    assert list(Ledger(ledger.folder).jobs) == ["a", "b", "c"] and "iterations" in path.read_text()
    path.unlink()
    assert list(Ledger.enlist(ledger.folder, listed("a", "d")).jobs) == ["a", "b", "c", "d"]
    assert path.read_text() == "seed: 0\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
@pytest.mark.parametrize(
    "name", ["sweep.json", "status/a/status.json", "status/a/heartbeat.json", "status/final.txt", "settings"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(ledger, name):
    other = Grid([Job("a", "a cat", 0, "two", {})], {"two": "seed: 0\n"})
    path = ledger.folder / (f"settings/{ledger.jobs['a'].settings}.yaml" if name == "settings" else name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    told = rf"{path}: expected a file of the sweep, got a pipe or device; restore the file"
    if name == "sweep.json":
        with pytest.raises(UserError, match=told):
            Ledger(ledger.folder)
    elif name == "settings":
        with pytest.raises(UserError, match=told):
            Ledger.enlist(ledger.folder, other)
    elif path.name == "status.json":
        with pytest.raises(UserError, match=told):
            ledger.read("a")
    elif path.name == "heartbeat.json":
        assert ledger.last_beat("a", "word") is None
    else:
        assert ledger.finals() == (set(), 0)
        worker = Worker.me()
        ledger.claim("b", worker, Status(), 0)
        ledger.change("b", worker, lambda status: settled(status, Outcome(DONE_SO), Patience()))
        assert ledger.read("b").state == DONE


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


def test_a_look_takes_in_a_few_of_many_held_runs_and_finds_a_silent_one_in_time(tmp_path):
    """Of 400 runs each comes to its turn three times in the 90 seconds after which silence counts."""
    names = [f"run{number}" for number in range(400)]
    ledger = Ledger.enlist(tmp_path / "sweep", listed(*names))
    for name in names:
        assert ledger.claim(name, elsewhere(), Status(), 0)
    reads, read, now = [], ledger.read, 0.0
    ledger.read = lambda name: reads.append(name) or read(name)
    ledger.last_beat = lambda name, token: Beat(token, 0 if name == "run0" else now)
    actions = shift(ledger, Worker.me(), names, start_of=lambda _: 0, clock=lambda: now, stale=90, poll=2)
    assert isinstance(next(actions), Wait) and len(set(reads)) == 400
    for _ in range(80):
        now += 2
        reads.clear()
        action = next(actions)
        assert len(reads) <= 27
        if isinstance(action, Claim):
            break
    assert isinstance(action, Claim) and action.name == "run0" and 90 < now <= 135
