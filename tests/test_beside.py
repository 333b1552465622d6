"""A run's own settings, given again: the new run begins beside the old one and leaves it alone."""

from pathlib import Path

import pytest

from arguments import load, to_yaml
from dreammapping.beside import beside_its_run
from utils.files import write_text

WORDS = ["--opt", "configs/quickstart.yaml"]


def run_in(folder: Path, *words: str, results: bool = True) -> Path:
    """A run's settings in its folder; returns their file."""
    config, _ = load([*WORDS, *words])
    write_text(folder / "config.yaml", to_yaml(config))
    if results:
        write_text(folder / "point_cloud" / "iteration_7" / "point_cloud.ply", "ply")
    return folder / "config.yaml"


def folder_of(settings: Path, *words: str) -> Path:
    config, command = load(["--opt", str(settings), *words])
    return beside_its_run(config, command.opt).ModelParams.run_folder


def test_it_goes_into_the_next_free_folder(tmp_path):
    settings = run_in(tmp_path / "cat", f"output_path={tmp_path}", "workspace=cat")
    assert folder_of(settings) == tmp_path / "cat-2"
    (tmp_path / "cat-2").mkdir()
    assert folder_of(settings) == tmp_path / "cat-3"


def test_also_where_the_folder_has_a_path_of_its_own(tmp_path):
    settings = run_in(tmp_path / "cat", f"model_path={tmp_path / 'cat'}")
    assert folder_of(settings) == tmp_path / "cat-2"


def test_a_folder_that_is_named_stays_named(tmp_path):
    settings = run_in(tmp_path / "cat", f"output_path={tmp_path}", "workspace=cat")
    assert folder_of(settings, "workspace=dog") == tmp_path / "dog"


def test_a_start_that_failed_is_started_again_in_its_place(tmp_path):
    settings = run_in(tmp_path / "cat", f"output_path={tmp_path}", "workspace=cat", results=False)
    assert folder_of(settings) == tmp_path / "cat"


def test_what_is_left_of_a_finished_run_stays_alone(tmp_path):
    """Its checkpoints and Gaussians may have been deleted to save room."""
    settings = run_in(tmp_path / "cat", f"output_path={tmp_path}", "workspace=cat", results=False)
    write_text(tmp_path / "cat" / "run.json", '{"versions": {}, "iterations": 7, "finished": true}')
    assert folder_of(settings) == tmp_path / "cat-2"


@pytest.mark.parametrize("name", ["quickstart", "cat"])
def test_settings_that_are_no_runs_are_left_alone(name):
    config, command = load(["--opt", f"configs/{name}.yaml"])
    assert beside_its_run(config, command.opt) is config
    assert beside_its_run(config, None) is config
