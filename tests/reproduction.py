"""Figures of the paper in a reduced form: in this process, with a prior and pictures of a few pixels."""

import json
import signal
from pathlib import Path

from dreammapping.__main__ import main
from dreammapping.sweep import worker

STEPS = 4
"""Iterations of each run."""
SMALL = ["--prompts", "1", "--seeds", "1", "--iterations", str(STEPS), "--views", "4"]
GAUSSIANS = [
    "init_shape=sphere", "init_num_pts=60", "densify_until_iter=2", "densify_from_iter=1", "lmc_bank=2",
    "lmc_sampling_steps=2", "lmc_steps=2",
]  # fmt: skip
FIELD = [
    "early_width=null", "FieldParams.resolution=8", "FieldParams.resolution_final=12", "FieldParams.samples=8",
    "occupancy_resolution=8", "importance_samples=4", "hash_levels=3", "hash_table=8", "hash_base=3",
    "hash_finest=12", "hash_width=8",
]  # fmt: skip


class Here:
    """In the place of a worker's process: the same in this one, without the seconds that a new process takes."""

    def __init__(self, words, _given, _said, _place=None) -> None:
        parent = words.index("--parent")
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._code = worker.main(words[:parent] + words[parent + 2 :])
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def poll(self) -> int:
        return self._code


def small_words(prior: Path, folder: Path) -> list[str]:
    """What makes any run small, and keeps it in a folder."""
    return [
        "--model", str(prior), "--output", str(folder / "report"), f"output_path={folder / 'runs'}", "device=cpu",
        "fp16=false", "page=false", "perpneg=false", "test_ratio=1", "save_process=false", "image_w=32", "image_h=32",
        "C_batch_size=1", f"checkpoint_interval={STEPS}", "ImageParams.particles=1", *GAUSSIANS, *FIELD,
        "negative=",  # the published ones are too long for a prior that spells its words
    ]  # fmt: skip


def left(folder: Path, name: str, suffix: str) -> Path:
    """A figure's file, with the name of its prior."""
    return folder / "report" / f"{name}_prior.{suffix}"


def numbers_of(folder: Path, name: str) -> dict:
    return json.loads(left(folder, name, "json").read_text(encoding="utf-8"))


def reproduce(name: str, *words: str) -> int:
    return main(["reproduce", name, *words])
