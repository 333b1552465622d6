"""What a large model takes on a CPU is said before the first of it is looked for; a small one is not spoken of."""

import logging

import pytest

from arguments import load
from dreammapping import pace
from dreammapping.optimization import start
from utils.errors import UserError


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(pace.os, "cpu_count", lambda: 2)


def said(caplog, *words: str) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pace.warn_of_pace(load(["--opt", "configs/cat.yaml", "device=cpu", *words])[0])
    return caplog.text


def test_the_papers_setting_takes_two_weeks_of_two_cores(caplog):
    assert "2 cores) 5000 iterations of 4 views take roughly 14 days" in said(caplog)
    assert "0.8 hours" in said(caplog, "iterations=50", "C_batch_size=1")


def test_the_toybox_and_other_small_folders_are_not_spoken_of(caplog, tmp_path):
    assert said(caplog, "model_key=toybox") == ""
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"")
    assert said(caplog, f"model_key={tmp_path}") == ""
    with weights.open("r+b") as file:
        file.truncate(int(pace.LARGE))  # a hole: no byte of it is on the disk
    assert "roughly 14 days" in said(caplog, f"model_key={tmp_path}")


def test_it_is_said_before_what_is_missing_ends_the_run(caplog, monkeypatch):
    monkeypatch.setattr("dreammapping.optimization.missing_models", lambda _: ["nothing is here"])
    with pytest.raises(UserError, match="nothing is here"):
        start(load(["--opt", "configs/cat.yaml", "device=cpu"])[0])
    assert "roughly 14 days" in caplog.text
