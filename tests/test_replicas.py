"""One optimisation in two processes is that in one, but for the order in which floats are summed."""

import json
import socket
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arguments.groups.guidance import METHODS
from tests.faults.programs import Program, Programs
from tests.replicating import end_the_last, join_group, part
from utils import checkpoint

if sys.platform != "linux":
    pytest.skip("needs Linux: fork", allow_module_level=True)

ONE_STEP = [
    "iterations=1",
    "save_video=false",
    "save_process=false",
    "page=false",
    "lmc_bank=4",
    "lmc_sampling_steps=2",
    "lmc_steps=1",
    "C_batch_size=4",
]
SUMS = 1e-4
"""Of the largest: what the order of float32 sums over some thousand terms, which cancel, changes in a gradient. A share
or a statistic that was wrong would change it by a tenth or more."""
CANCELLED = 1e-3
"""The same, where a normalisation cancels all: the gradient of a bias before it is nothing but rounding."""


def start(server: Programs, where: Path, words: list[str], count: int, *before) -> list[Program]:
    port = free_port()
    return [
        server.start(
            where, words, (join_group, [rank, count, port]), *((hook, [rank, count]) for hook in before)
        )
        for rank in range(count)
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(runs: list[Program]) -> None:
    for run in runs:
        assert run.wait(1200.0) == 0, "\n".join(each.said for each in runs)


def state(run: Path) -> dict[str, object]:
    """The last checkpoint, flat."""
    return dict(flat(checkpoint.load(checkpoint.checkpoints(run / "checkpoints")[-1])))


def flat(tree, name=""):
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from flat(value, f"{name}/{key}")


def check_same(found: dict[str, object], expected: dict[str, object], part: str, atol: float = 0.0) -> None:
    """The same draws, counts and sizes to the bit, and below `part` the same values but for the order of sums."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        got = found[name]
        if not isinstance(value, Tensor):
            assert got == value, name
        elif not value.is_floating_point():
            assert torch.equal(got, value), name
        else:
            assert got.shape == value.shape, name
            if part in name:
                largest = float(value.abs().max()) if value.numel() else 0.0
                torch.testing.assert_close(got, value, atol=max(SUMS * largest, atol), rtol=SUMS, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_have_the_gradients_of_one_by_every_method(server, tmp_path, method):
    words = [f"guidance={method}", *ONE_STEP]
    finish(start(server, tmp_path / "two", words, 2))
    finish(start(server, tmp_path / "one", words, 1))
    found, expected = (state(tmp_path / name / "run") for name in ("two", "one"))
    check_same(
        found, expected, "/subject/optimizer/"
    )  # after one step Adam's first moment is a tenth of the gradient
    theirs = [
        name for name in expected if name.startswith("/guidance_optimizer/") and name.endswith("exp_avg")
    ]
    largest = max((float(expected[name].abs().max()) for name in theirs), default=0.0)
    for name in theirs:
        torch.testing.assert_close(found[name], expected[name], atol=CANCELLED * largest, rtol=SUMS, msg=name)
    assert bool(theirs) == (method in ("vdm", "vsd", "dreamflow", "asd", "lods", "lods_lora"))


@pytest.mark.parametrize(
    "words",
    [["guidance=sds"], ["guidance=vdm", "operator=linear", "densify_stats=last_view"]],
    ids=["sds", "vdm"],
)
def test_fifty_steps_with_all_that_grows_end_with_the_same_gaussians(server, tmp_path, words):
    words = [*words, "iterations=50", "checkpoint_interval=50", "save_video=false", "C_batch_size=4"]
    words += [
        "densification_interval=10",
        "opacity_reset_interval=1000",
        "init_num_pts=60",
        "max_gaussians=1000",
    ]
    two = start(server, tmp_path / "two", words, 2)
    finish(two)
    finish(start(server, tmp_path / "one", words, 1))
    found, expected = (state(tmp_path / name / "run") for name in ("two", "one"))
    for name in ("means", "sh_dc", "log_scales", "opacity_logits", "quats"):
        key = f"/subject/gaussians/{name}"
        assert found[key].shape == expected[key].shape, "not the same number of Gaussians"
        # Adam steps as far along a gradient that is nothing but rounding as along any other, so what no view says
        # anything of may go anywhere, and how many those are depends on the machine; the rest has the order of sums
        # alone. A view that is missing, or counted twice, moves all of them: so most are to stay.
        atol = 1e-5 * max(1.0, float(expected[key].abs().max()))
        close = torch.isclose(found[key], expected[key], atol=atol, rtol=1e-5)
        assert close.float().mean() > 0.5, (
            f"{key}: {(~close).sum()} of {close.numel()} differ, by {(found[key] - expected[key]).abs().max():.1e}"
        )
    said = [json.loads((tmp_path / name / "run" / "run.json").read_text()) for name in ("two", "one")]
    assert (
        said[0]["gaussians"] > 60 and said[0]["score_model_evaluations"] == said[1]["score_model_evaluations"]
    )
    assert not two[1].said, "only the first process speaks"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_that_some_began_others_end(server, tmp_path, before, after):
    words = ["guidance=sds", "iterations=12", "checkpoint_interval=12", "save_video=false", "C_batch_size=4"]
    begun = start(
        server, tmp_path / "changed", words, before, end_the_last
    )  # a signal to one ends all together
    assert [run.wait() for run in begun] == [143] * before, "\n".join(run.said for run in begun)
    finish(start(server, tmp_path / "changed", [*words, "--resume"], after))
    finish(start(server, tmp_path / "alone", words, 1))
    check_same(
        *(state(tmp_path / name / "run") for name in ("changed", "alone")), "/subject/gaussians/", atol=1e-5
    )


def test_processes_that_part_stop(server, tmp_path):
    runs = start(server, tmp_path, ["guidance=vdm", "C_batch_size=2"], 2, part)
    assert [run.wait() for run in runs] == [2, 2]
    assert "iteration 1: expected the same parameters in all processes" in runs[0].said


def test_views_that_cannot_be_shared_out_are_one_line(server, tmp_path):
    runs = start(server, tmp_path, ["C_batch_size=3"], 2)
    assert [run.wait() for run in runs] == [2, 2]
    assert "C_batch_size: expected a multiple of the 2 processes, got 3; set it to 4" in runs[0].said


def test_pictures_are_shared_too(server, tmp_path):
    words = ["guidance=sds", "representation=image", "ImageParams.particles=4", "checkpoint_interval=10"]
    finish(start(server, tmp_path / "two", words, 2))
    finish(start(server, tmp_path / "one", words, 1))
    check_same(
        state(tmp_path / "two" / "run"), state(tmp_path / "one" / "run"), "/subject/particles", atol=1e-5
    )


def test_the_laws_of_a_group(server, tmp_path):
    port = free_port()
    runs = [
        server.call(tmp_path, ("tests.replicating", "laws"), [], (join_group, [rank, 2, port]))
        for rank in range(2)
    ]
    finish(runs)
