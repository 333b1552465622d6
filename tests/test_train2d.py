"""Text to 2D: a picture comes out, a restart changes no bit, and methods can be set side by side."""

import json

import pytest
import torch

import train2d
from arguments import load
from tests.tiny_models import save_pipeline
from utils import checkpoint
from utils.images import read_picture


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture
def words(prior, tmp_path):
    return [
        f"model_key={prior}", f"output_path={tmp_path}", "workspace=run", "device=cpu", "text=a red car", "fp16=false",
        "perpneg=false", "ImageParams.steps=4", "picture_interval=2", "checkpoint_interval=2", "log_interval=2",
        "--quiet",
    ]  # fmt: skip


@pytest.mark.parametrize("particle", ["latent", "pixel"])
def test_a_picture_is_optimised_and_a_restart_changes_no_bit(words, tmp_path, particle):
    words = [*words, f"particle={particle}", "particles=2", "guidance=vsd"]
    config, _ = load(words)
    start = train2d.ImageTraining(config).particles.detach().clone()
    assert train2d.main(words) == 0
    run = tmp_path / "run"
    whole = checkpoint.load(run / "checkpoints" / "iteration_000004")
    assert not torch.equal(whole["particles"], start)

    resumed = train2d.ImageTraining(config)
    resumed.load_state_dict(checkpoint.load(run / "checkpoints" / "iteration_000002"))
    for step in (3, 4):
        resumed.iteration(step)
    assert torch.equal(resumed.particles, whole["particles"])
    assert read_picture(run / "picture.png").shape == (64, 128, 3)
    assert read_picture(run / "train_process" / "step_4.jpg").shape == (192, 128, 3)
    assert json.loads((run / "run.json").read_text())["score_model_evaluations"]["backward"] == 4 * 2


def test_methods_are_set_side_by_side_from_one_start(words, tmp_path):
    assert train2d.main([*words, "--compare", "sds@7.5,sds@100,vdm"]) == 0
    assert read_picture(tmp_path / "run_comparison.png").shape == (64, 192, 3)
    scales = [load(["--opt", str(tmp_path / f"run_sds_{s}" / "config.yaml")])[0] for s in ("7.5", "100")]
    assert [config.GuidanceParams.guidance_scale for config in scales] == [7.5, 100]


@pytest.mark.parametrize(
    ("extra", "message"), [(["--compare"], "--compare"), (["--compare", "vdn"], "vsd"), (["text="], "text")]
)
def test_mistakes_are_one_line(words, extra, message, capsys):
    assert train2d.main([*words, *extra]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
