"""The laws of a subject, over Gaussians, a picture, fields, and one that these tests make."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from arguments import load
from dreammapping import optimize
from dreammapping.dry_run import dry_run
from dreammapping.optimization import Optimization
from dreammapping.subject import Subject
from tests.tolerances import same
from utils import checkpoint
from utils.contact_sheet import GAP, LINE
from utils.errors import UserError
from utils.images import read_picture

pytestmark = pytest.mark.whole_runs


def palette() -> type[Subject]:
    """The example of CONTRIBUTING.md, as it stands there."""
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## How to add a representation")
    code = section.partition("```python\n")[2].partition("```")[0]
    assert code.count("\n") <= 60
    names: dict[str, type[Subject]] = {}
    exec(code, names)
    return names["Palette"]


Palette = palette()
SUBJECTS = {"gaussians": None, "image": None, "grid": None, "hash": None, "palette": Palette}
ASSETS = {
    "gaussians": "point_cloud/iteration_8/point_cloud.ply",
    "image": "picture.png",
    "grid": "field.safetensors",
    "hash": "field.safetensors",
    "palette": "palette.png",
}


@pytest.fixture(params=SUBJECTS)
def kind(request):
    return request.param


@pytest.fixture
def build(kind):
    """What makes the subject, None where the settings do."""
    return SUBJECTS[kind]


def settings(kind: str, prior: Path, folder: Path, *words: str):
    """Settings of 8 iterations of a kind, with everything in them; further words are added."""
    common = [
        f"model_key={prior}", f"output_path={folder}", "workspace=run", "device=cpu", "text=a red car",
        "guidance=vdm", "perpneg=false", "fp16=false", "warmup_iter=4", "checkpoint_interval=4", "log_interval=2",
        "iterations=8",
        "ImageParams.steps=8", "vis_interval=4", "picture_interval=4", "ImageParams.particles=2",
        f"representation={'gaussians' if kind == 'palette' else kind}",
        "FieldParams.resolution=6", "FieldParams.resolution_final=10", "FieldParams.samples=12",
        "hash_levels=3", "hash_table=8", "hash_base=3", "hash_finest=12", "hash_width=8", "importance_samples=4",
        "hash_start_levels=2", "hash_level_iter=[3, 2]", "occupancy_resolution=6", "occupancy_interval=3",
        "lambda_orient=[0, 1]", "lambda_opaque=[0.1, 1]", "FieldParams.ramp_iter=[2, 6]", "early_width=16",
        "early_iter=4",
        "init_num_pts=120", "image_w=20", "image_h=20", "C_batch_size=2", "densify_from_iter=1", "video_frames=2",
        "densification_interval=3", "densify_grad_threshold=0.00001", "opacity_reset_interval=5",
        "pro_frames_num=4", "test_ratio=1", "sh_degree=1", "shs_aug_ratio=0.5", "progressive_view_iter=3",
        "scale_up_cameras_iter=2",
    ]  # fmt: skip
    return load([*common, *words])[0]


@pytest.fixture
def configured(kind, prior, tmp_path):
    """The same, for runs of the test's own."""
    return functools.partial(settings, kind, prior, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(prior, tmp_path_factory):
    """The folder of a whole run of a kind, made when it is first asked for; nobody writes into it."""

    @functools.cache
    def of(kind: str) -> Path:
        config = settings(kind, prior, tmp_path_factory.mktemp("undisturbed"))
        return optimize(config, quiet=True, build=SUBJECTS[kind]).folder

    return of


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [*((kind, "vdm") for kind in SUBJECTS), *((kind, "vsd") for kind in ("gaussians", "image"))],
    indirect=["kind"],
)
def test_a_killed_run_ends_with_the_same_bits(kind, build, configured, undisturbed, guidance):
    if guidance == "vdm":
        whole = undisturbed(kind)
    else:
        whole = optimize(configured(f"guidance={guidance}"), quiet=True, build=build).folder

    def kill(step, _optimization):
        if step == 6:  # two iterations after the checkpoint, which the resumed run repeats
            raise SystemExit("killed")

    config = configured(f"guidance={guidance}", "workspace=killed")
    with pytest.raises(SystemExit):
        optimize(config, quiet=True, build=build, callback=kill)
    resumed = optimize(config, resume=True, quiet=True, build=build)
    for name in (ASSETS[kind], "checkpoints/iteration_000008/tensors.safetensors"):
        assert (resumed.folder / name).read_bytes() == (whole / name).read_bytes()
    lines = (resumed.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, signal.SIGTERM) for kind in SUBJECTS), ("palette", signal.SIGINT), ("palette", signal.SIGHUP)],
    indirect=["kind"],
)
def test_a_signal_ends_the_iteration_saves_and_the_run_goes_on_from_there(build, configured, number, caplog):
    def interrupt(step, _optimization):
        if step == 3:
            os.kill(os.getpid(), number)

    result = optimize(configured(), quiet=True, build=build, callback=interrupt)
    assert result.exit_code == 128 + number
    assert "saved after iteration 3 of 8; to continue, repeat the command with --resume" in caplog.text
    assert checkpoint.load(result.folder / "checkpoints" / "iteration_000003")["step"] == 3
    manifest = json.loads((result.folder / "run.json").read_text())
    assert (manifest["iterations"], manifest["finished"]) == (3, False)
    assert optimize(configured(), resume=True, quiet=True, build=build).exit_code == 0


def test_steps_that_are_not_finite_are_skipped_and_ten_in_a_row_stop_the_run(build, configured):
    optimization = Optimization(configured("opacity_reset_interval=1000"), build=build)
    subject = optimization.subject
    parameters = [p for group in subject.optimizer.param_groups for p in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    show = subject.show

    def poisoned(step, rng):
        shown = show(step, rng)
        poison = {"poison": shown.seen.sum() * float("nan")}
        return dataclasses.replace(shown, losses=lambda: {**shown.losses(), **poison})

    subject.show = poisoned
    for step in range(1, 10):
        optimization.iteration(step)
    assert optimization.skipped == 9
    assert all(map(torch.equal, before, parameters))
    with pytest.raises(UserError, match=r"not finite in 10 steps in a row.*--resume"):
        optimization.iteration(10)


def test_a_poisoned_step_costs_that_step_alone(build, configured):
    optimization = Optimization(configured(), build=build)
    show = optimization.subject.show

    def poisoned(step, rng):
        shown = show(step, rng)
        poison = {"poison": shown.seen.sum() * float("nan")} if step == 2 else {}
        return dataclasses.replace(shown, losses=lambda: {**shown.losses(), **poison})

    optimization.subject.show = poisoned
    skipped = []
    for step in range(1, 5):
        optimization.iteration(step)
        skipped.append(optimization.skipped)
    assert skipped == [0, 1, 0, 0]


def test_a_dry_run_trains_nothing_and_says_what_a_run_would_take(build, configured, tmp_path):
    report = dry_run(configured(), build)
    assert "memory" in report and "for 8 iterations" in report and "2 views an iteration" in report
    assert not (tmp_path / "run").exists()


def test_the_manifest_says_what_was_run_on_what_and_at_what_cost(kind, undisturbed):
    manifest = json.loads((undisturbed(kind) / "run.json").read_text())
    assert manifest["finished"] and manifest["iterations"] == 8
    assert manifest["score_model_evaluations"] == {"forward": 8 * 2 * 2, "backward": 0, "pretraining": 0}
    assert manifest.keys() >= {
        "versions", "platform", "seconds", "peak_memory_bytes", "prompt", "representation", "method", "preset", "seed",
        "prior", "device", "precision", "memory_plan", "warm_up_seconds",
    }  # fmt: skip
    assert manifest["prior"]["sha256"]


def test_a_run_leaves_its_asset_and_pictures_of_what_the_prior_made_of_it(kind, undisturbed):
    folder = undisturbed(kind)
    assert (folder / ASSETS[kind]).stat().st_size > 0
    rows = 3 if kind in ("image", "palette") else 5
    side = 64 if kind in ("image", "palette") else 20
    height, width, _ = read_picture(folder / "train_process" / "iter_8.jpg").shape
    assert width == 2 * side + GAP and height == rows * (side + LINE) + (2 * rows - 1) * GAP
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_pictures_before_the_first_iteration_are_those_of_the_start(build, configured):
    pictures = Optimization(configured(), build=build).pictures()
    assert pictures and all(row.isfinite().all() and row.ndim == 4 for row in pictures.values())


def test_memory_that_runs_out_is_saved_and_goes_on_with_the_same_bits(
    kind, build, configured, undisturbed, monkeypatch
):
    guide = Optimization._guide

    def full(self, shown, step):
        guided = guide(self, shown, step)
        if step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return guided

    with monkeypatch.context() as patch:
        patch.setattr(Optimization, "_guide", full)
        said = r"iteration 3: this machine's memory is full; try .*saved after iteration 2"
        with pytest.raises(UserError, match=said):
            optimize(configured(), quiet=True, build=build)
    resumed = optimize(configured(), resume=True, quiet=True, build=build)
    assert (resumed.folder / ASSETS[kind]).read_bytes() == (undisturbed(kind) / ASSETS[kind]).read_bytes()


def test_a_checkpoint_of_another_subject_is_refused(kind, build, configured, undisturbed, tmp_path):
    shutil.copytree(undisturbed(kind), tmp_path / "run")
    other = Palette if build is None else None
    with pytest.raises(
        UserError, match=r"does not fit these settings .*, or delete .*, which may be damaged"
    ):
        optimize(configured(), resume=True, quiet=True, build=other)


def test_a_checkpoint_that_had_it_all_on_one_level_is_read(build, configured):
    optimization = Optimization(configured(), build=build)
    optimization.iteration(1)
    state = optimization.state_dict()
    again = Optimization(configured(), build=build)
    earlier = {"evaluations": {"forward": state["evaluations"]["forward"], "backward": 0}}
    again.load_state_dict({k: v for k, v in state.items() if k != "subject"} | state["subject"] | earlier)
    expected = Optimization(configured(), build=build)
    expected.load_state_dict(state)
    assert same(again.state_dict(), expected.state_dict())
