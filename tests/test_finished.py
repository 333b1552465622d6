"""A finished run is read in one place, and what is missing or broken in it is one line."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch

from arguments import load, to_yaml
from dreammapping.finished import FinishedRun
from scene.cameras import cameras_json, orbit
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from utils.errors import UserError
from utils.run import Run

ROOT = Path(__file__).parent.parent
READERS = (
    *(f"dreammapping/{room}" for room in ("evaluation", "mesh", "page", "reproduction", "study", "sweep")),
    "benchmarks",
)
"""What works on finished runs."""


@pytest.fixture
def folder(tmp_path):
    """A run folder as the program writes it, with two saved iterations."""
    config, _ = load(["text=a red car", "image_w=40", "image_h=24", "model_key=toybox"])
    with Run(tmp_path / "run") as run:
        run.claim(to_yaml(config))
        for step in (20, 100):
            model = GaussianModel.from_points(torch.rand(step, 3) - 0.5, torch.rand(step, 3), 0)
            write_gaussians(run.path("point_cloud", f"iteration_{step}", "point_cloud.ply"), model)
            run.log({"step": step, "loss": 0.5})
        run.write_text("cameras.json", json.dumps(cameras_json(orbit(5, config.GenerateCamParams))))
        run.write_manifest(device="cpu", finished=True)
        run.stands()
    return run.folder


def test_what_a_run_wrote_is_read_back(folder):
    run = FinishedRun.open(folder)
    assert run.prompt == "a red car" and run.config.GenerateCamParams.image_w == 40
    assert run.iterations == [20, 100]
    assert [len(run.gaussians(step)) for step in (20, 100, None)] == [20, 100, 100]
    assert run.manifest["finished"] is True and run.manifest["seconds"] >= 0
    assert [line["step"] for line in run.metrics] == [20, 100]


@pytest.mark.parametrize("elevated", [False, True])
def test_cameras_come_back_as_they_were(folder, elevated):
    expected = orbit(5, FinishedRun.open(folder).config.GenerateCamParams, elevated_ring=elevated)
    (folder / "cameras.json").write_text(json.dumps(cameras_json(expected)))
    found = FinishedRun.open(folder).cameras()
    assert (found.width, found.height, len(found)) == (40, 24, len(expected))
    for name, values in expected.tensors().items():
        near = {"rtol": 1e-5, "atol": 1e-3 if name.endswith("_deg") else 1e-5}
        torch.testing.assert_close(found.tensors()[name], values, **near)


def test_a_line_that_was_cut_off_is_left_out(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12')
    assert [line["step"] for line in FinishedRun.open(folder).metrics] == [20, 100]


def test_a_run_that_still_goes_on_can_be_read(folder):
    (folder / "run.json").unlink()
    assert len(FinishedRun.open(folder).gaussians()) == 100


BROKEN = {
    "config.yaml": ("seed: [", lambda run: run.config),
    "run.json": ('{"device": ', lambda run: run.manifest),
    "metrics.jsonl": ('not json\n{"step": 1}\n', lambda run: run.metrics),
    "cameras.json": ('[{"id": 0}]', lambda run: run.cameras()),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(folder, name):
    text, read = BROKEN[name]
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        read(FinishedRun.open(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*found none"):
        BROKEN[name][1](FinishedRun.open(folder))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
@pytest.mark.parametrize("name", [name for name in BROKEN if name != "config.yaml"])
def test_a_pipe_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="expected a file, got a pipe"):
        BROKEN[name][1](FinishedRun.open(folder))


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "[" * 100_000])
def test_a_manifest_of_another_form_is_refused(folder, text):
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: expected"):
        _ = FinishedRun.open(folder).manifest


@pytest.mark.parametrize("text", ["[]", "3", "{}", '[{"position": 1, "rotation": 2}]', '[["a"]]'])
def test_cameras_of_another_form_are_refused(folder, text):
    (folder / "cameras.json").write_text(text)
    with pytest.raises(UserError, match=r"cameras\.json: expected cameras"):
        FinishedRun.open(folder).cameras()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_one_line(name):
    with pytest.raises(UserError, match="run folder: expected a path"):
        FinishedRun.open(Path(name))


def test_a_picture_is_told_from_a_run_that_has_saved_nothing(tmp_path):
    config, _ = load(["text=a red car", "model_key=toybox", "representation=image"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(UserError, match="expected a run of Gaussians, got one of kind image"):
        FinishedRun.open(tmp_path).gaussians()


def test_nothing_but_the_reader_opens_the_files_of_a_run():
    files = [path for room in READERS for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 10
    named = {
        f"{path.relative_to(ROOT)}: {node.value}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in BROKEN
    }
    assert named == set()
