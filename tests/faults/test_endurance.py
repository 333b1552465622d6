"""Many iterations and many runs in one process, without growth of memory, threads or open files."""

import gc
import threading
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
import torch

from arguments import load
from dreammapping import optimize
from tests.faults.programs import SUBJECTS, WORDS, size_and_seed

pytestmark = pytest.mark.whole_runs

MEMORY = 48_000_000
"""Bytes by which a process may grow though it keeps nothing: what the allocators have not given back."""


def configured(prior: Path, folder: Path, subject: str, steps: int, *more: str):
    words = [
        f"iterations={steps}",
        f"ImageParams.steps={steps}",
        "densify_until_iter=0",
        f"output_path={folder}",
    ]
    return load([*WORDS, *SUBJECTS[subject], f"model_key={prior}", *words, *more])[0]


def held() -> dict[str, int]:
    """What this process holds: tensors and their bytes, threads, open files, and memory."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    process = psutil.Process()
    return {
        "tensors": len(tensors),
        "bytes": sum(one.untyped_storage().nbytes() for one in tensors if one.device.type == "cpu"),
        "threads": threading.active_count(),
        "files": process.num_fds() if hasattr(process, "num_fds") else 0,
        "memory": process.memory_info().rss,
    }


def assert_no_growth(before: dict[str, int], after: dict[str, int]) -> None:
    memory = after["memory"] - before["memory"]
    exact = ("tensors", "bytes", "threads", "files")
    assert {name: after[name] - before[name] for name in exact} == dict.fromkeys(exact, 0)
    assert memory < MEMORY, f"{memory} bytes more"


def iterate(prior: Path, folder: Path, subject: str, steps: int) -> None:
    """One run; what it holds before its middle and before its end, when all that was due has long been written."""
    found = {}

    def look(step: int, _optimization: object) -> None:
        if step in (steps // 2 - 1, steps - 1):
            found[step] = held()

    rare = [
        f"checkpoint_interval={steps // 4}",
        "video_frames=1",
        "pro_frames_num=4",
        f"vis_interval={steps // 4}",
    ]
    rare += ["save_ratio=2", f"picture_interval={steps // 4}", f"log_interval={max(steps // 100, 1)}"]
    optimize(configured(prior, folder, subject, steps, *rare), quiet=True, callback=look)
    assert_no_growth(*found.values())


def run_often(prior: Path, folder: Path, subjects: Iterable[str], rounds: int) -> None:
    """Runs of all subjects in turn; the first two rounds import and keep what all later ones use."""
    found = []
    for index in range(rounds):
        for subject in subjects:
            optimize(configured(prior, folder / subject / str(index), subject, 3), quiet=True)
        found.append(held())
    assert_no_growth(found[1], found[-1])


def test_iterations_keep_nothing(prior, tmp_path):
    iterate(prior, tmp_path, "picture", 24)


def test_runs_keep_nothing(prior, tmp_path):
    run_often(prior, tmp_path, ["picture"], 4)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
def test_iterations_keep_nothing_at_length(prior, tmp_path, subject):
    steps, _ = size_and_seed("SOAK_ITERATIONS", 2000)
    iterate(prior, tmp_path, subject, steps)


@pytest.mark.slow
def test_runs_keep_nothing_at_length(prior, tmp_path):
    runs, _ = size_and_seed("SOAK_RUNS", 30)
    run_often(prior, tmp_path, SUBJECTS, max(runs // len(SUBJECTS), 3))
