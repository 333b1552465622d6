"""A run folder has one owner, and its metrics and manifest survive a restart."""

import json

import pytest

from utils import checkpoint
from utils.errors import UserError
from utils.run import Run


def test_a_folder_with_another_run_is_refused(tmp_path):
    Run(tmp_path / "a", "seed: 0\n")
    with pytest.raises(UserError, match=r"holds another run; --resume .* --force .* workspace=NAME"):
        Run(tmp_path / "a", "seed: 1\n")


def test_force_replaces_the_run(tmp_path):
    Run(tmp_path / "a", "seed: 0\n").log({"step": 1})
    run = Run(tmp_path / "a", "seed: 1\n", force=True)
    assert not run.path("metrics.jsonl").exists() and run.path("config.yaml").read_text() == "seed: 1\n"


def test_a_folder_of_somebody_else_is_refused_even_by_force(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no run of ours"):
        Run(tmp_path / "a", "seed: 0\n", force=True)
    assert (tmp_path / "a" / "thesis.tex").exists()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="expected a folder for the run, found a file"):
        Run(tmp_path / "a", "seed: 0\n")


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Run(tmp_path / "a", "seed: 0\n", resume=True)


def test_resuming_names_the_settings_that_changed(tmp_path):
    run = Run(tmp_path / "a", "seed: 0\nGuidanceParams:\n  text: a cat\n")
    checkpoint.save(run.path("checkpoints"), 5, {"step": 5})
    assert Run(tmp_path / "a", "seed: 0\nGuidanceParams:\n  text: a dog\n", resume=True).changed_settings == [
        "GuidanceParams.text"
    ]


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    run = Run(tmp_path / "a", "seed: 0\n")
    for step in (10, 20, 30):
        run.log({"step": step})
    with run.path("metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # a line that a kill cut short
    run.rewind_metrics(20)
    assert [json.loads(line)["step"] for line in run.path("metrics.jsonl").read_text().splitlines()] == [
        10,
        20,
    ]


def test_the_manifest_adds_up_the_time_of_all_sessions(tmp_path):
    run = Run(tmp_path / "a", "seed: 0\n")
    run.manifest["seconds"] = 100.0
    run.write_manifest(finished=True)
    manifest = json.loads(run.path("run.json").read_text())
    assert manifest["seconds"] >= 100.0 and manifest["finished"] and manifest["peak_memory_bytes"] > 0
