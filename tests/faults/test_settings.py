"""Damaged settings files and command lines: read, or refused in one line, quickly and with little memory."""

import shlex
from pathlib import Path

import pytest

from arguments import load, to_yaml
from tests.faults.fuzz import fuzz, long_form

ROOT = Path(__file__).parents[2]
WORDS = (
    "&a", "*a", "<<", "!!int", "!!float", "!!timestamp", "!!binary", "!!set", "!!omap", "!!python/object:os.system",
    "!", "---", "...", "%YAML 1.1", "|", ">", "?", "{", "[", "~", "yes", "2024-13-45", "1:2:3", "0b1", "${seed}", "???",
    "GuidanceParams", "OptimizationParams", "lora_rank", "device", "t_range",
)  # fmt: skip


def read_file(path):
    config, _ = load(["--opt", str(path), "--print-config"])
    assert to_yaml(config) and config.ModelParams.run_folder


def read_words(path):
    words = path.read_bytes().decode(errors="surrogateescape").replace("\0", "").split("\n")
    config, _ = load([word for word in words if word not in ("-h", "--help")])
    assert to_yaml(config) and config.ModelParams.run_folder


def files():
    names = ("configs/cat.yaml", "configs/quickstart.yaml", "tests/luciddreamer_configs/ts_lora.yaml")
    found = {Path(name).name: (ROOT / name).read_bytes() for name in names}
    found["resolved.yaml"] = to_yaml(load(["--print-config"])[0]).encode()
    found["merged.yaml"] = (
        b"seed: &s 1\ntest_ratio: *s\nModelParams: &m {batch: 3}\nOptimizationParams: {<<: {iterations: 3}}\n"
    )
    return found


def lines():
    words = (
        "model_key=toybox 'text=a red car' iterations=30 t_range='[0.1, 0.4]' --seed 3 --resume",
        "GuidanceParams.guidance_scale=7.5 'text=a fox' model_key=toybox device=cuda:0 --quiet --preset fast",
        "output_path=~/runs 'text=a' model_key=toybox GuidanceParams.lora_rank=4 fp16=no --save_video false",
    )
    return {f"{index}.words": "\n".join(shlex.split(line)).encode() for index, line in enumerate(words)}


READERS = pytest.mark.parametrize(
    ("read", "seeds"), [(read_file, files), (read_words, lines)], ids=["files", "words"]
)


@READERS
def test_damaged_settings_are_read_or_refused_in_one_line(tmp_path, read, seeds):
    report = fuzz(read, seeds(), 125, seed=0, folder=tmp_path, words=WORDS)
    assert report.failures == [], str(report)
    assert report.read > 0 and report.refused > 0


@pytest.mark.slow
@READERS
def test_damaged_settings_at_length(tmp_path, read, seeds):
    cases, seed = long_form()
    report = fuzz(read, seeds(), cases, seed, tmp_path, words=WORDS)
    assert report.failures == [], str(report)
