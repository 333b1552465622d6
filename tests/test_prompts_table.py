"""The table over prompts: what is chosen, that finished cells are never run again, and what the table says."""

import itertools

import pytest

from dreammapping.reproduction import cells, prompts
from dreammapping.reproduction.cells import Cell, CellStore, code_digest, digest
from dreammapping.reproduction.table import Plan, make_cell, standing, write_report
from toybox import world
from toybox.recognition import parse_caption
from utils.errors import UserError

CELLS = [Cell(f"a red {name}", "vdm", 0, "0badcafe") for name in ("cat", "car", "bus", "bee")]


def scores(r_precision: float) -> dict[str, float]:
    names = ("r_precision", "object_accuracy", "colour_accuracy", "view_accuracy")
    return {"similarity": 30.0} | dict.fromkeys(names, r_precision)


def result(prompt: str, method: str, r_precision: float, **changes) -> dict:
    known = {
        "prompt": prompt,
        "method": method,
        "seed": 0,
        "jobs": 1,
        "views": 24,
        "seconds": 120.0,
        "run": "gone",
    }
    measured = {"asset": scores(r_precision), "truth": scores(1.0), "start": scores(0.0)}
    return known | measured | {"held_out": parse_caption(prompt) in world.HELD_OUT} | changes


def test_half_of_the_prompts_are_held_out_and_no_object_comes_twice():
    pairs = [parse_caption(prompt) for prompt in prompts.choose_prompts(12, exclude="a red car")]
    assert [pair in world.HELD_OUT for pair in pairs] == [False, True] * 6
    assert len({name for name, _ in pairs}) == 12
    assert "car" not in {name for name, _ in pairs}


def test_more_prompts_begin_with_the_same():
    six, twelve = (prompts.choose_prompts(count, exclude="a red car") for count in (6, 12))
    assert twelve[:6] == six == prompts.choose_prompts(6, exclude="a red car")


def test_too_many_prompts_are_refused():
    with pytest.raises(UserError, match="--prompts: expected 2 to 25, got 26"):
        prompts.choose_prompts(26, exclude="a red car")


def test_two_commands_with_one_file_keep_each_other_s_cells(tmp_path):
    first, second = (CellStore(tmp_path / "cells.json") for _ in range(2))
    first.put(CELLS[0], {"value": 1})
    second.put(CELLS[1], {"value": 2})
    assert CellStore(tmp_path / "cells.json").results.keys() == {cell.key for cell in CELLS[:2]}


def test_whatever_changes_the_result_changes_the_cell():
    variants = [
        Cell(*fields)
        for fields in itertools.product(("a red cat", "a red car"), ("vdm", "sds"), (0, 1), ("x", "y"))
    ]
    assert len({cell.key for cell in variants}) == len({cell.workspace for cell in variants}) == 16


def test_digest_goes_by_contents(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    assert digest("a", file) == digest("a", "one") != digest("aone")
    before = digest(file)
    file.write_text("two")
    assert digest(file) != before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"cells": ["of a notebook"]}', "[" * 100_000])
def test_a_broken_store_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "cells.json"
    path.write_text(text)
    with pytest.raises(UserError, match="expected finished cells"):
        CellStore(path)
    assert path.read_text() == text


def test_the_code_of_a_cell_is_all_that_trains_and_judges_and_nothing_that_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "ROOT", tmp_path)

    def after(name: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("changed")
        return code_digest.__wrapped__()

    first = code_digest.__wrapped__()
    for name in ("reproduction/prompts.py", "page/page.py", "viewer/templates/frame.py"):
        assert after(f"dreammapping/{name}") == first
    assert after("guidance/notes.md") == first
    trains = (
        "guidance/vdm.py",
        "dreammapping/finished.py",
        "train.py",
        "field_renderer/render.py",
        "utils/page/a.py",
    )
    assert len({first, *(after(name) for name in trains)}) == 6


@pytest.fixture
def stored(tmp_path):
    """A store with a cell of today, one of other code, one of other settings, and one of another table."""
    plan, store = Plan(prompts=2), CellStore(tmp_path / "cells.json")
    first, second, third = prompts.all_prompts(prompts.TUNED_ON)[:3]

    def put(prompt: str, code: str, digest: str | None = None, **changes) -> None:
        cell, _ = make_cell(plan, prompt, "vdm", prompts.METHODS["vdm"], seed=0)
        cell = cell if digest is None else Cell(cell.prompt, cell.method, cell.seed, digest)
        store.put(cell, result(prompt, "vdm", 0.5) | {"asked": plan.asked, "code": code} | changes)

    put(third, code_digest(), digest="ancient")
    put(second, "other")
    put(first, code_digest())
    put(first, code_digest(), digest="trial", asked=["configs/cat.yaml"])
    return plan, store, [first, second, third]


def test_a_table_keeps_all_its_rows_and_counts_the_outdated(stored):
    plan, store, chosen = stored
    results, outdated = standing(store, plan, prompts.METHODS, prompts.all_prompts(prompts.TUNED_ON))
    assert [each["prompt"] for each in results] == chosen
    assert [each["asked"] for each in results] == [plan.asked] * 3
    assert outdated == 2
    assert "2 of 3 runs were made by earlier code, settings or prior." in prompts.markdown(
        results, 3, outdated
    )


def test_a_table_of_a_part_has_what_was_finished_before(stored, monkeypatch):
    _, store, _ = stored
    monkeypatch.setattr(prompts, "RESULTS", store.path.parent)
    store.path.rename(store.path.with_name("prompts.json"))
    _, text = prompts.reproduce(Plan(prompts=2), train=False)
    assert "3 prompts, 1 seed, 24 views" in text and "Unfinished: 3 of 5 runs." in text


def test_nothing_is_written_unasked_and_all_of_it_where_it_is(stored, tmp_path, monkeypatch):
    _, store, chosen = stored
    page = tmp_path / "results.md"
    page.write_text(f"before\n{prompts.BEGIN}\n{prompts.END}\n")
    monkeypatch.setattr(prompts, "RESULTS", store.path.parent)
    front = tmp_path / "README.md"
    front.write_text(page.read_text())
    monkeypatch.setattr(prompts, "REPORT", page)
    monkeypatch.setattr(prompts, "FRONT_PAGE", front)
    store.path.rename(store.path.with_name("prompts.json"))
    before = page.read_text()
    _, text = prompts.reproduce(Plan(prompts=2), train=False)
    assert page.read_text() == before
    prompts.reproduce(Plan(prompts=2), train=False, write=True)
    assert text in page.read_text() and all(prompt in page.read_text() for prompt in chosen)
    assert "Not measured yet." in front.read_text()  # of one method alone


@pytest.mark.parametrize(("name", "value"), [("prompts", 0), ("seeds", 0), ("views", 3), ("jobs", 0)])
def test_a_plan_of_nothing_is_refused(name, value):
    with pytest.raises(UserError, match=f"--{name}: expected at least .*, got {value}"):
        Plan(**{name: value})


def test_the_table_has_means_spreads_and_both_kinds_of_prompt():
    held_out = world.caption(*min(world.HELD_OUT))
    results = [
        result("a green cat", "vdm", 1.0),
        result(held_out, "vdm", 0.5),
        result("a green cat", "sds", 0.25, jobs=2),
    ]
    lines = prompts.markdown(results, expected=4).splitlines()
    assert lines[2].startswith("| true objects | 1.00 ± 0.00 | 1.00 | 1.00 |")
    assert lines[3] == "| VDM + DCA | 0.75 ± 0.35 | 1.00 | 0.50 | 0.75 | 0.75 | 0.75 | 30.0 | 2.0 |"
    assert lines[4] == "| SDS, CFG 7.5 | 0.25 | 0.25 | - | 0.25 | 0.25 | 0.25 | 30.0 | 2.0* |"
    assert lines[5].startswith("| untrained start | 0.00")
    assert "Unfinished: 3 of 4 runs." in lines[7]
    assert f"| {held_out} (held out) | 1.00 | 0.50 | - | 0.00 |" in lines


@pytest.mark.parametrize(
    ("vdm", "sds", "verdict"),
    [
        ([1.0, 1.0, 1.0, 0.7], [1.0, 1.0, 1.0, 0.5], "no difference between the two is shown."),
        (
            [1.0, 0.9, 0.9, 1.0],
            [0.5, 0.5, 0.6, 0.6],
            "by +0.40, with a standard error of 0.04: a difference.",
        ),
        ([1.0], [0.5], "Too few runs to compare the two."),
    ],
)
def test_the_summary_says_whether_the_runs_can_tell_the_methods_apart(vdm, sds, verdict):
    names = [world.caption(name, "green") for name in world.OBJECTS if (name, "green") not in world.HELD_OUT]
    results = [
        result(prompt, method, value)
        for method, values in (("vdm", vdm), ("sds", sds))
        for prompt, value in zip(names, values, strict=False)
    ]
    text = prompts.summary(results)
    assert verdict in text
    assert f"{len(vdm)} prompts, 1 seed each" in text


def test_the_report_is_written_between_its_marks_again_and_again(tmp_path):
    path = tmp_path / "results.md"
    path.write_text(f"before\n{prompts.BEGIN}\nold\n{prompts.END}\nafter\n")
    for text in ("one", r"two \1"):
        write_report(text, path, prompts.BEGIN, prompts.END)
        assert path.read_text() == f"before\n{prompts.BEGIN}\n{text}\n{prompts.END}\nafter\n"


def test_a_report_without_marks_is_refused(tmp_path):
    path = tmp_path / "results.md"
    path.write_text("text")
    with pytest.raises(UserError, match="put them where the table goes"):
        write_report("table", path, prompts.BEGIN, prompts.END)


def test_the_shipped_report_has_its_marks():
    assert prompts.REPORT.read_text().index(prompts.BEGIN) < prompts.REPORT.read_text().index(prompts.END)
