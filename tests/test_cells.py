"""Cells of tables, trained as the runs of a sweep: which are, what is kept of them, and what a stop leaves."""

import dataclasses
import shutil
import signal
from pathlib import Path
from typing import ClassVar

import pytest

from dreammapping.reproduction import table
from dreammapping.reproduction.cells import CellStore
from dreammapping.reproduction.operator_chain import chain, train_chain
from dreammapping.reproduction.table import Plan, finish_cells, make_cells
from dreammapping.sweep import processes
from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import DONE_SO, ERROR, NOT_FINITE, Outcome
from dreammapping.sweep.shift import carry_on, shift
from dreammapping.sweep.status import Worker
from utils.errors import UserError

PROMPTS = ["a red cat", "a red car", "a red bus", "a red bee"]


class Played:
    """A worker whose runs take no time; each ends as `ends` has it for its prompt."""

    ends: ClassVar[dict[str, Outcome]] = {}
    did: ClassVar[list[str]] = []
    given: ClassVar[list[tuple[str, Path]]] = []
    start: ClassVar[int] = 0

    def __init__(self, words, _given, _said, place) -> None:
        self.given.append((words[words.index("--count") + 1], place))
        ledger = Ledger(Path(words[0]))
        names = words[words.index("--only") + 1 :]

        def carry_out(claim):
            prompt = ledger.jobs[claim.name].prompt
            self.did.append(prompt)
            ledger.run_folder(claim.name).mkdir(exist_ok=True)
            (ledger.run_folder(claim.name) / "config.yaml").write_text(
                "GuidanceParams: {text: a red cat, model_key: toybox}\n"
            )
            (ledger.run_folder(claim.name) / "run.json").write_text('{"finished": true, "seconds": 3.0}')
            return self.ends.get(prompt, Outcome(DONE_SO))

        actions = shift(ledger, Worker.me(), names, start_of=lambda _: self.start)
        carry_on(actions, carry_out, lambda _: None, lambda: False)

    def poll(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        self.did.append(signal.Signals(number).name)

    def wait(self, _timeout: float) -> int:
        return 0


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "popen", Played)
    monkeypatch.setattr(processes, "LOOK", 0.0)
    monkeypatch.setattr(Played, "ends", {})
    monkeypatch.setattr(Played, "did", [])
    monkeypatch.setattr(Played, "given", [])
    return Plan(overrides=(f"output_path={tmp_path / 'output'}",))


@pytest.fixture
def store(tmp_path):
    return CellStore(tmp_path / "cells.json")


def cells_of(plan, *prompts):
    return make_cells(plan, list(prompts or PROMPTS), {"vdm": ()})


def finish(plan, store, *prompts, judge=lambda _: {"value": 1}, **words):
    return finish_cells(cells_of(plan, *prompts), store, plan, judge, **words)


def test_finished_cells_are_not_run_again(plan, store):
    assert finish(plan, store, *PROMPTS[:2]) == finish(plan, store) == finish(plan, store) == []
    assert Played.did == PROMPTS
    assert all(store.get(cell)["seconds"] == 3.0 for cell in cells_of(plan))


def test_a_run_of_the_folder_that_is_not_asked_for_is_left_alone(plan, store):
    Played.ends[PROMPTS[0]] = Outcome(ERROR, "no disk")
    finish(plan, store, *PROMPTS[:1])
    finish(plan, store, *PROMPTS[1:2])
    assert Played.did == PROMPTS[:2]


def test_a_failed_cell_is_reported_and_tried_again_the_next_time_and_the_others_go_on(plan, store):
    Played.ends[PROMPTS[1]] = Outcome(ERROR, "no disk")
    (failure,) = finish(plan, store)
    assert "a red car | vdm | seed 0" in failure and "no disk; see " in failure
    assert [store.get(cell) is None for cell in cells_of(plan)] == [False, True, False, False]
    Played.ends.clear()
    assert finish(plan, store) == [] and Played.did == [*PROMPTS, PROMPTS[1]]


def test_a_run_with_another_seed_is_no_result(plan, store):
    outcomes = iter([Outcome(NOT_FINITE, "not finite"), Outcome(DONE_SO)])
    Played.ends = type("Ends", (), {"get": lambda *_: next(outcomes)})()
    (failure,) = finish(plan, store, PROMPTS[0])
    assert "another seed" in failure and store.results == {}


def test_a_run_that_goes_on_from_another_seed_s_is_no_result(plan, store, monkeypatch):
    """Its seeds were used up; the next call queues it as it was, and goes on from their checkpoint."""
    outcomes = iter([*[Outcome(NOT_FINITE, "not finite")] * 3, Outcome(DONE_SO)])
    Played.ends = type("Ends", (), {"get": lambda *_: next(outcomes)})()
    assert "not finite" in finish(plan, store, PROMPTS[0])[0]
    monkeypatch.setattr(Played, "start", 6)
    (failure,) = finish(plan, store, PROMPTS[0])
    assert "another seed" in failure and store.results == {}


def test_of_a_chain_nothing_begins_before_what_it_goes_on_from_is_done(plan, tmp_path):
    cells = chain(plan, tmp_path)
    Played.ends[next(iter(cells)).prompt] = Outcome(ERROR, "no disk")
    (failure,) = train_chain(cells, tmp_path)
    assert "no disk" in failure and len(Played.did) == 1
    Played.ends.clear()
    assert train_chain(cells, tmp_path) == [] and Played.did[1:] == [cell.prompt for cell in cells]


def test_workers_are_no_more_than_the_cells_and_work_in_the_repository(plan, store):
    finish(dataclasses.replace(plan, jobs=2), store, *PROMPTS[:1])
    finish(dataclasses.replace(plan, jobs=2), store)
    assert set(Played.given) == {("1", table.ROOT), ("2", table.ROOT)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_keeps_what_is_finished(plan, store, error):
    judged = []

    def judge(folder):
        judged.append(folder)
        if len(judged) == 3:
            raise error
        return {}

    with pytest.raises(error):
        finish(plan, store, judge=judge)
    assert len(store.results) == 2
    assert finish(plan, store) == [] and len(store.results) == 4  # what was done and not yet judged is judged
    assert Played.did == [*PROMPTS, "SIGTERM"]


def test_what_cannot_be_judged_is_a_failure(plan, store):
    def judge(_folder):
        raise UserError("no pictures")

    assert finish(plan, store, PROMPTS[0], judge=judge) == ["no pictures"] and store.results == {}


def test_what_other_code_has_made_is_made_again_where_that_is_asked_for(plan, store, monkeypatch):
    finish(plan, store, *PROMPTS[:2])
    monkeypatch.setattr(table, "code_digest", lambda: "another")
    finish(plan, store, *PROMPTS[:2])
    assert Played.did == PROMPTS[:2]
    first = cells_of(plan)
    store.put(next(iter(first)), store.get(next(iter(first))) | {"code": "another"})
    again = Plan(overrides=plan.overrides, again=True)
    finish(again, store, *PROMPTS[:2])
    assert Played.did == [*PROMPTS[:2], PROMPTS[1]]


def test_what_was_judged_otherwise_is_judged_and_not_trained_again(plan, store):
    finish(plan, store, PROMPTS[0])
    finish(plan, store, PROMPTS[0], judge=lambda _: {"value": 2}, outdated=lambda kept: kept["value"] == 1)
    assert Played.did == PROMPTS[:1] and [kept["value"] for kept in store.results.values()] == [2]


def test_a_run_whose_folder_is_gone_is_made_again(plan, store):
    finish(plan, store, PROMPTS[0])
    (kept,) = store.results.values()
    shutil.rmtree(table.ROOT / kept["run"])
    finish(plan, store, PROMPTS[0], outdated=lambda kept: True)
    assert Played.did == [PROMPTS[0]] * 2
