"""Damaged run folders: --resume goes on, or refuses in one line; so does whatever reads a finished run."""

import json
import math
from pathlib import Path

import pytest

from arguments import differences, load, to_yaml
from dreammapping.finished import FinishedRun
from dreammapping.optimization import Optimization
from tests.faults.fuzz import fuzz, long_form
from utils import checkpoint
from utils.run import Run

pytestmark = pytest.mark.whole_runs

WORDS = (
    "dict", "tensor", "#0", "#1", "/subject/gaussians/means", "exp_avg", "step", "state", "param_groups", "F64", "I64",
    "F16", "BOOL", "shape", "data_offsets", "seconds", "NaN", "Infinity", "[", "{}", "[]", "subject", "lr", "params",
)  # fmt: skip


SLOW = 30.0
"""Seconds of a case: every file is flushed to the disk, which others may keep busy."""


@pytest.fixture(scope="module")
def optimization(prior):
    """Two steps of a run that has moments, statistics and a stack of cameras."""
    words = [
        f"model_key={prior}", "device=cpu", "text=a red car", "fp16=false", "guidance=vdm", "perpneg=false",
        "iterations=8", "init_num_pts=20", "image_w=16", "image_h=16", "C_batch_size=1", "sh_degree=1",
    ]  # fmt: skip
    made = Optimization(load(words)[0])
    made.iteration(1)
    made.iteration(2)
    return made


def run_files(optimization, folder):
    """The files of a run that was saved after its second step."""
    with Run(folder) as run:
        run.claim(to_yaml(optimization.config))
        checkpoint.save(run.path("checkpoints"), 2, optimization.state_dict())
        run.stands()
        run.log({"step": 1, "loss": 0.5})
        run.log({"step": 2, "loss": math.nan})
        run.write_manifest(iterations=2, finished=False, peak_memory_bytes=10)
    saved = folder / "checkpoints" / "iteration_000002"
    state = json.loads((saved / "state.json").read_text("utf-8"))
    del state["sha256"]  # as of before there were checksums, which would end every trial at once
    (saved / "state.json").write_text(json.dumps(state), "utf-8")
    paths = [folder / name for name in ("config.yaml", "metrics.jsonl", "run.json")]
    return {
        path.name: path.read_bytes() for path in (*paths, saved / "state.json", saved / "tensors.safetensors")
    }


def resumes(optimization, files):
    """A reader that puts a damaged file into its place in a run, and goes on with that run."""

    def resume(path: Path) -> None:
        run_folder = path.parent / "run"
        saved = run_folder / "checkpoints" / "iteration_000002"
        saved.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            place = saved if name in ("state.json", "tensors.safetensors") else run_folder
            (place / name).write_bytes(path.read_bytes() if name == path.name else content)
        (run_folder / ".dreammapping").touch()
        config = optimization.config
        with Run(run_folder, resume=True) as run:
            if path.name == "config.yaml":
                differences(run.path("config.yaml"), config)
            elif path.name in ("state.json", "tensors.safetensors"):
                optimization.load_state_dict(checkpoint.load(saved))
                optimization.iteration(3)
                optimization.state_dict()
            run.claim(to_yaml(config))
            run.rewind_metrics(1)
            run.log({"step": 2})
            run.write_manifest(finished=True)
        steps = [
            json.loads(line)["step"] for line in run.path("metrics.jsonl").read_text("utf-8").splitlines()
        ]
        assert steps[-1] == 2 and all(step <= 2 for step in steps)
        assert json.loads(run.path("run.json").read_text("utf-8"))["finished"] is True

    return resume


def reads_finished(files):
    """A reader that opens the run in which a damaged file lies."""

    def read(path: Path) -> None:
        run_folder = path.parent / "finished"
        run_folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (run_folder / name).write_bytes(path.read_bytes() if name == path.name else content)
        finished = FinishedRun.open(run_folder)
        assert finished.prompt and finished.iterations == []
        assert isinstance(finished.manifest, dict)
        assert all(isinstance(line, dict) for line in finished.metrics)

    return read


READERS = pytest.mark.parametrize("which", ["resume", "finished"])


def reader_of(which, optimization, folder):
    files = run_files(optimization, folder / "made")
    if which == "resume":
        return resumes(optimization, files), files
    files = {
        name: content for name, content in files.items() if "." in name and not name.startswith(("st", "te"))
    }
    return reads_finished(files), files


@READERS
def test_a_damaged_run_is_gone_on_with_or_refused_in_one_line(tmp_path, optimization, which):
    reader, files = reader_of(which, optimization, tmp_path)
    report = fuzz(reader, files, 60, seed=0, folder=tmp_path, words=WORDS, seconds=SLOW)
    assert report.failures == [], str(report)
    assert report.read > 0 and report.refused > 0


@pytest.mark.slow
@READERS
def test_a_damaged_run_at_length(tmp_path, optimization, which):
    reader, files = reader_of(which, optimization, tmp_path)
    cases, seed = long_form()
    report = fuzz(reader, files, cases, seed, tmp_path, words=WORDS, seconds=SLOW)
    assert report.failures == [], str(report)
