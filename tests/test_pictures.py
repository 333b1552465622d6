"""Figures 10 and 14: methods are set side by side from one start, and what is finished is not made again."""

import pytest

from arguments import load
from dreammapping.__main__ import main
from tests.tiny_models import save_pipeline
from utils.images import read_picture


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture
def words(prior, tmp_path):
    return [
        f"model_key={prior}", f"output_path={tmp_path}", "workspace=run", "device=cpu", "text=a red car", "fp16=false",
        "perpneg=false", "ImageParams.steps=2", "ImageParams.particles=2", "picture_interval=2",
    ]  # fmt: skip


def test_methods_are_set_side_by_side_from_one_start(words, tmp_path, capsys):
    command = ["reproduce", "pictures", "--methods", "sds@7.5,sds@100,vdm", *words]
    assert main(command) == 0
    path = tmp_path / "run_comparison.png"
    height, width, _ = read_picture(path).shape
    assert width == 3 * 64 + 2 * 4 and height > 64
    said = capsys.readouterr().out
    assert said.count("forward") == 3 and str(path) in said
    scales = [load(["--opt", str(tmp_path / f"run_sds_{s}" / "config.yaml")])[0] for s in ("7.5", "100")]
    assert [config.GuidanceParams.guidance_scale for config in scales] == [7.5, 100]

    made = (tmp_path / "run_vdm" / "run.json").stat().st_mtime_ns
    assert main(command) == 0
    assert (tmp_path / "run_vdm" / "run.json").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "vdn"], "vsd"),
        (["text="], "text"),
        (["representation=gaussians"], "representation=image"),
        (["--report"], "leave out --report"),
    ],
)
def test_mistakes_are_one_line(words, extra, message, capsys):
    assert main(["reproduce", "pictures", *words, *extra]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
