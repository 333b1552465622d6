"""Steps that are not finite, at random places: skipped and counted, ten in a row stop a run, restarts keep the bits."""

import random
from pathlib import Path

import pytest
import torch

from arguments import load
from dreammapping import optimize
from dreammapping.optimization import NON_FINITE_LIMIT, Optimization
from tests.faults.programs import SUBJECTS, WORDS, differences, left, size_and_seed
from utils import checkpoint
from utils.errors import UserError

pytestmark = pytest.mark.whole_runs

BAD = (float("nan"), float("inf"), -float("inf"))
PLACES = ("loss", "subject", "operator")
"""The loss, the gradient of one of the subject's parameters, and that of one of the operator's (or the LoRA's)."""


def configured(prior: Path, folder: Path, subject: str, *more: str):
    few = [
        "save_video=false",
        "save_process=false",
        "vis_interval=1000",
        "picture_interval=1000",
        "save_ratio=1",
    ]
    return load([*WORDS, *SUBJECTS[subject], *few, f"model_key={prior}", f"output_path={folder}", *more])[0]


def poison(optimization: Optimization, steps: set[int], seed: int) -> None:
    """Let the iterations `steps` meet a number that is not finite, at a place that the seed and the step choose."""
    apply = optimization._apply_gradients

    def broken(total: torch.Tensor) -> None:
        step = optimization.step + 1
        if step in steps:
            rng = random.Random(f"{seed}:{step}")
            place, value = rng.choice(PLACES), rng.choice(BAD)
            if place == "loss":
                total = total * value
            else:
                one = optimization.subject if place == "subject" else optimization.guidance
                parameters = [
                    p for group in one.optimizer.param_groups for p in group["params"] if p.grad is not None
                ]
                chosen = rng.choice(parameters).grad.view(-1)
                chosen[rng.randrange(len(chosen))] = value
        apply(total)

    optimization._apply_gradients = broken


def poisoned(config, steps: set[int], seed: int, **how):
    """Run to the end, and check at every step that a poisoned one changed no parameter and no moment."""
    before = {}

    def check(step: int, optimization: Optimization) -> None:
        now = parameters(optimization)
        if step in steps:
            assert optimization.skipped == 1 + before.get("skipped", optimization.skipped - 1), step
            assert all(torch.equal(a, b) for a, b in zip(now, before.get("values", now), strict=True)), step
        else:
            assert optimization.skipped == 0, step
            assert "values" not in before or not all(map(same, now, before["values"])), step
        before.update(values=now, skipped=optimization.skipped)
        assert all(value.isfinite().all() for value in now), step

    original = Optimization.__init__

    def init(self, *arguments, **words):
        original(self, *arguments, **words)
        poison(self, steps, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimization, "__init__", init)
        return optimize(config, quiet=True, callback=check, **how)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def parameters(optimization: Optimization) -> list[torch.Tensor]:
    """Copies of all parameters and of Adam's moments."""
    optimizers = optimization._optimizers()
    values = [p for one in optimizers for group in one.param_groups for p in group["params"]]
    moments = [
        m for one in optimizers for p in one.state.values() for m in p.values() if isinstance(m, torch.Tensor)
    ]
    return [value.detach().clone() for value in [*values, *moments]]


def trial(prior: Path, folder: Path, subject: str, rng: random.Random) -> None:
    """Poison some steps; stop and resume somewhere; the same bits as without the stop."""
    steps = set(rng.sample(range(2, 11), rng.randint(1, 5)))
    seed, stop = rng.randrange(10**6), rng.randint(4, 9)
    still = "densify_until_iter=0"  # so that parameters can be compared step by step
    one, two = folder / "one", folder / "two"
    poisoned(configured(prior, one, subject, still), steps, seed)
    config = configured(prior, two, subject, still)

    class Killed(BaseException):
        pass

    original = checkpoint.save

    def save(place, step, tree):
        original(place, step, tree)
        if step >= stop:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            poisoned(config, steps, seed)
    poisoned(config, steps, seed, resume=True)
    differing = differences(left(two / "run"), left(one / "run"))
    assert set(differing) <= {"config.yaml", "cfg_args", "index.html"}, (
        subject,
        steps,
        seed,
        stop,
        differing,
    )


def test_poisoned_steps_are_skipped_and_a_restart_keeps_the_bits(prior, tmp_path):
    trial(prior, tmp_path, "vdm", random.Random(0))


@pytest.mark.slow
def test_poisoned_steps_are_skipped_and_a_restart_keeps_the_bits_at_length(prior, tmp_path):
    trials, seed = size_and_seed("SOAK_POISON", 60)
    for index in range(trials):
        subject = list(SUBJECTS)[index % len(SUBJECTS)]
        trial(prior, tmp_path / str(index), subject, random.Random(f"{seed}:{index}"))


@pytest.mark.parametrize("subject", ["picture", pytest.param("vsd", marks=pytest.mark.slow)])
def test_ten_poisoned_steps_in_a_row_stop_a_run_also_over_a_restart(prior, tmp_path, subject):
    """The count goes on where it was: nine and a restart and one more are ten."""
    config = configured(prior, tmp_path, subject, "iterations=20", "steps=20", "densify_until_iter=0")
    steps = set(range(5, 5 + NON_FINITE_LIMIT))
    with pytest.raises(UserError, match=r"iteration 14: .*10 steps in a row.*--resume"):
        poisoned(config, steps, 0)
    assert checkpoint.step_of(checkpoint.checkpoints(tmp_path / "run" / "checkpoints")[-1]) == 12
    with pytest.raises(UserError, match=r"iteration 14: .*10 steps in a row.*--resume"):
        poisoned(config, steps, 0, resume=True)
    assert poisoned(config, set(), 0, resume=True).exit_code == 0
