"""The parameters, their activations, and the optimiser with its one surgeon."""

import copy
import math

import pytest
import torch

from arguments import OptimizationParams
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import build_optimizer, edit, set_learning_rates
from tests.gaussians import random_gaussians, seeded

EXTENT = 3.5


def stepped(count: int = 6, sh_degree: int = 1) -> tuple[GaussianModel, torch.optim.Adam]:
    """A model after one optimiser step, so that every row has moments of its own."""
    model = random_gaussians(count, sh_degree)
    optimizer = build_optimizer(model, OptimizationParams(), EXTENT)
    step(model, optimizer)
    return model, optimizer


def step(model: GaussianModel, optimizer: torch.optim.Adam) -> None:
    loss = sum((getattr(model, name) * torch.arange(len(model)).view(-1, *[1] * (getattr(model, name).dim() - 1))).sum()
               for name in model.parameter_names)  # fmt: skip
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def state(model: GaussianModel, optimizer: torch.optim.Adam) -> dict[str, torch.Tensor]:
    """Parameters and moments, by name."""
    tensors = {}
    for group in optimizer.param_groups:
        (parameter,) = group["params"]
        assert parameter is getattr(model, group["name"])
        tensors[group["name"]] = parameter.detach().clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{group['name']}.{moment}"] = optimizer.state[parameter][moment].clone()
    assert set(optimizer.state) == {group["params"][0] for group in optimizer.param_groups}
    return tensors


def test_activations_and_shapes():
    model = random_gaussians(5, sh_degree=2)
    assert (len(model), model.sh_degree, model.sh.shape) == (5, 2, (5, 9, 3))
    torch.testing.assert_close(model.scales, model.log_scales.exp())
    torch.testing.assert_close(model.rotations.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(model.opacities, 1 / (1 + (-model.opacity_logits).exp()))


def test_points_of_a_grid_become_round_gaussians_as_wide_as_the_grid():
    line = torch.arange(4.0) * 0.1
    points = torch.cartesian_prod(line, line, line)
    model = GaussianModel.from_points(points, torch.full((64, 3), 0.25), sh_degree=1)
    torch.testing.assert_close(model.scales, torch.full((64, 3), 0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.opacities, torch.full((64, 1), 0.1))
    torch.testing.assert_close(model.sh_dc, torch.full((64, 1, 3), -0.25 / 0.28209479177387814))
    assert model.sh_rest.shape == (64, 3, 3)
    assert not model.sh_rest.any()
    assert model.active_sh_degree == 0


def test_coinciding_points_get_a_width():
    model = GaussianModel.from_points(torch.zeros(5, 3), torch.zeros(5, 3), sh_degree=0)
    torch.testing.assert_close(model.scales, torch.full((5, 3), 1e-7).sqrt())


def test_learning_rates_are_lucid_dreamers():
    params = OptimizationParams()
    _, optimizer = stepped()
    rates = {}
    for when in (0, params.iterations // 2, params.iterations):
        set_learning_rates(optimizer, params, EXTENT, when)
        rates[when] = {group["name"]: group["lr"] for group in optimizer.param_groups}
    start = {
        "means": 5.6e-4,
        "log_scales": 5e-3,
        "quats": 1e-3,
        "opacity_logits": 0.05,
        "sh_dc": 5e-3,
        "sh_rest": 2.5e-4,
    }
    end = start | {"means": 5.6e-6, "log_scales": 1e-3, "quats": 2e-4, "sh_dc": 3e-3}
    assert rates[0] == pytest.approx(start)
    assert rates[params.iterations] == pytest.approx(end)
    assert rates[params.iterations // 2] == pytest.approx({k: math.sqrt(start[k] * end[k]) for k in start})
    assert all(group["eps"] == 1e-15 for group in optimizer.param_groups)


def test_edit_moves_parameters_and_moments_together():
    model, optimizer = stepped()
    before = state(model, optimizer)
    source = torch.tensor([4, 0, 4, 2])
    edit(model, optimizer, source)
    after = state(model, optimizer)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value[source]), name


def test_fresh_rows_take_values_and_lose_their_moments():
    model, optimizer = stepped()
    before = state(model, optimizer)
    fresh = torch.tensor([False, True, True])
    values = {"means": torch.tensor([[1.0, 2, 3], [4, 5, 6]])}
    edit(model, optimizer, torch.tensor([5, 1, 1]), fresh=fresh, values=values)
    after = state(model, optimizer)
    assert torch.equal(after["means"][1:], values["means"])
    assert torch.equal(after["quats"][1:], before["quats"][[1, 1]])
    for name in model.parameter_names:
        assert torch.equal(after[name][0], before[name][5])
        assert torch.equal(after[f"{name}.exp_avg"][0], before[f"{name}.exp_avg"][5])
        assert not after[f"{name}.exp_avg"][1:].any()
        assert not after[f"{name}.exp_avg_sq"][1:].any()


def test_prune_after_clone_conserves_everything():
    model, optimizer = stepped()
    before = state(model, optimizer)
    edit(model, optimizer, torch.tensor([0, 1, 2, 3, 4, 5, 1, 3]), fresh=torch.arange(8) >= 6)
    edit(model, optimizer, torch.arange(6))
    after = state(model, optimizer)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_permuted_training_is_training_permuted():
    """The optimiser goes on after an edit as if nothing had happened: no step is lost, none taken twice."""
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    model, optimizer = stepped()
    twin, twin_optimizer = stepped()
    edit(twin, twin_optimizer, order)

    def train(gaussians, adam, weights):
        ((gaussians.means * weights).sum() + gaussians.opacity_logits.square().sum()).backward()
        adam.step()
        adam.zero_grad()

    weights = torch.randn(6, 3, generator=seeded())
    for _ in range(3):
        train(model, optimizer, weights)
        train(twin, twin_optimizer, weights[order])
    assert torch.equal(twin.means, model.means[order])
    assert torch.equal(twin.opacity_logits, model.opacity_logits[order])
    assert not torch.equal(model.means, stepped()[0].means)


def test_an_edit_leaves_the_graph_of_the_old_parameters_valid():
    model, optimizer = stepped()
    old, loss = model.means, model.means.square().sum()
    edit(model, optimizer, torch.tensor([0, 1]))
    model.means.sum().backward()
    loss.backward()
    assert old.grad.shape == (6, 3)
    assert model.means.grad.shape == (2, 3)


def test_edit_before_the_first_step():
    model = random_gaussians(4)
    optimizer = build_optimizer(model, OptimizationParams(), EXTENT)
    edit(model, optimizer, torch.tensor([0, 0, 1]))
    step(model, optimizer)
    assert len(state(model, optimizer)["means"]) == 3


def test_saved_state_brings_its_own_count_and_the_run_goes_on_bit_for_bit():
    model, optimizer = stepped(count=9, sh_degree=1)
    model.active_sh_degree = 1
    other = random_gaussians(2, sh_degree=1, seed=5)
    other_optimizer = build_optimizer(other, OptimizationParams(), EXTENT)
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the moments
    for _ in range(2):
        step(model, optimizer)
        step(other, other_optimizer)
    assert other.active_sh_degree == 1
    resumed = state(other, other_optimizer)
    assert all(torch.equal(value, resumed[name]) for name, value in state(model, optimizer).items())
