"""A run's own settings, given again: the new run begins beside the old one and leaves it alone."""

import shlex
from pathlib import Path

import pytest

from arguments import Command, load, to_yaml
from dreammapping.beside import in_its_place
from utils.errors import UserError
from utils.files import write_text
from utils.repository import QUICKSTART

WORDS = ["--opt", str(QUICKSTART)]


def run_in(folder: Path, *words: str, results: bool = True) -> Path:
    """A run's settings in its folder; returns their file."""
    config, _ = load([*WORDS, *words])
    write_text(folder / "config.yaml", to_yaml(config))
    if results:
        write_text(folder / "point_cloud" / "iteration_7" / "point_cloud.ply", "ply")
    return folder / "config.yaml"


def folder_of(settings: Path, *words: str) -> Path:
    config, command = load(["--opt", str(settings), *words])
    return in_its_place(config, command).ModelParams.run_folder


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
    assert in_its_place(config, command) is config
    assert in_its_place(config, Command()) is config


@pytest.mark.parametrize("key", ["workspace", "model_path"])
def test_a_folder_without_a_name_of_its_own_has_one_by_its_place(tmp_path, monkeypatch, key):
    (tmp_path / "cat" / "below").mkdir(parents=True)
    for place, name in (("cat", "."), ("cat/below", "..")):
        monkeypatch.chdir(tmp_path / place)
        settings = run_in(Path(name), "output_path=.", f"{key}={name}")
        assert folder_of(settings).resolve() == tmp_path / "cat-2"


@pytest.mark.parametrize("flag", ["--resume", "--force"])
@pytest.mark.parametrize("place", ["workspace=old", "model_path={}/runs/old"])
def test_a_run_that_was_renamed_goes_on_by_its_new_name_alone(tmp_path, flag, place):
    """Its settings still name its former folder, where another run may be by now."""
    old, now = tmp_path / "runs" / "old", tmp_path / "runs" / "the new"
    settings = run_in(old, f"output_path={tmp_path / 'runs'}", place.format(tmp_path))
    (old / ".dreammapping").touch()
    assert folder_of(settings, flag) == old
    settings = old.rename(now) / "config.yaml"
    with pytest.raises(UserError, match=r"config\.yaml: expected .*; say which one is meant: ") as refused:
        folder_of(settings, flag)
    *_, advice = str(refused.value).partition("meant: ")
    first, _, second = shlex.split(advice.replace(" or ", " . "))
    assert (folder_of(settings, flag, first), folder_of(settings, flag, second)) == (now, old)


@pytest.mark.parametrize("flag", ["--resume", "--force"])
def test_settings_that_lie_in_no_run_go_where_they_say(tmp_path, flag):
    settings = run_in(tmp_path / "settings", f"output_path={tmp_path}", "workspace=cat", results=False)
    assert folder_of(settings, flag) == tmp_path / "cat"
