"""A run whose networks are CUDA graphs: on a card, and where there is none with graphs that a CPU emulates."""

import copy

import pytest
import torch

from dreammapping.optimization import Optimization, start
from tests.emulated_graphs import emulate
from tests.settings import config_of
from tests.tolerances import NETWORK, POOLED

ITERATIONS = 3
REPLAYS = 1 + 3 * 2
"""Of an iteration: the U-Net's one call; encoder, operator and the renders' roughness, each with its backward pass."""


@pytest.fixture(params=["emulated", "gpu"])
def device(request, monkeypatch):
    if request.param == "gpu":
        return request.getfixturevalue("gpu")
    emulate(monkeypatch)
    monkeypatch.setattr(Optimization, "_records", lambda self: self.config.HardwareParams.graphs == "auto")
    return torch.device("cpu")


@pytest.fixture
def replays(device, monkeypatch):
    """One for each time that a graph was launched."""
    found, replay = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (found.append(self), replay(self))[1])
    return found


def started(prior, device, graphs):
    # group normalisation: at the bottleneck the batch's would divide by the difference of two values
    return start(
        config_of(
            model_key=str(prior), text="a cat", device=str(device), graphs=graphs, precision="float32", memory="max",
            compile="never", m_norm="group", C_batch_size=2, init_shape="sphere", init_num_pts=60, image_w=32,
            image_h=32,
        )
    )  # fmt: skip


def gradients(optimization, step, monkeypatch):
    """Of the operator and of the Gaussians, before they are stepped with."""
    found, apply = [], optimization._apply_gradients

    def watched(total):
        for optimizer in optimization._optimizers():
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            found.append(torch.cat([each.grad.flatten() for each in parameters if each.grad is not None]))
        apply(total)

    with monkeypatch.context() as patch:
        patch.setattr(optimization, "_apply_gradients", watched)
        optimization.iteration(step)
    return found


def test_each_iteration_replays_and_has_the_gradients_of_the_eager_one(prior, device, replays, monkeypatch):
    """Both begin each iteration from the same state, of which the graphs have made the most part."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        recorded, eager = (started(prior, device, graphs) for graphs in ("auto", "never"))
        for step in range(1, ITERATIONS + 1):
            eager.load_state_dict(copy.deepcopy(recorded.state_dict()))
            replays.clear()
            found = gradients(recorded, step, monkeypatch)
            assert len(replays) == REPLAYS
            expected = gradients(eager, step, monkeypatch)
            assert len(replays) == REPLAYS, "the eager one launches none"
            for ours, theirs, tolerance in zip(found, expected, (POOLED, NETWORK), strict=True):
                assert (ours - theirs).norm() < tolerance[torch.float32] * theirs.norm()
        assert recorded.skipped == eager.skipped == 0
        assert recorded.score_model.evaluations == eager.score_model.evaluations
