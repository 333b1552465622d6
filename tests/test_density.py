"""Density control: thresholds, schedule, statistics, and what happens to the optimiser."""

import logging
import math
from pathlib import Path

import pytest
import torch

from arguments import OptimizationParams, load
from dreammapping.outputs import fractions
from scene.density import DensityControl, Footprint, recovery_steps, reset_opacity, spoiling_resets
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import build_optimizer
from tests.gaussians import random_gaussians, seeded

ROOT = Path(__file__).parent.parent
EXTENT = 3.5
LIMIT = 0.003 * EXTENT
STRONG, WEAK = 0.0008, 0.0007


def gaussians(
    scales: list[float], opacities: list[float] | None = None
) -> tuple[GaussianModel, torch.optim.Adam]:
    """Round Gaussians of the given standard deviations, with a step of the optimiser behind them."""
    count = len(scales)
    model = random_gaussians(count)
    model.replace(
        {
            "log_scales": torch.tensor(scales).log()[:, None].repeat(1, 3),
            "opacity_logits": torch.tensor(opacities or [0.5] * count).logit()[:, None],
        }
    )
    optimizer = build_optimizer(model, OptimizationParams(), EXTENT)
    sum(getattr(model, name).sum() for name in model.parameter_names).backward()
    moments_only = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, moments_only, strict=True):
        group["lr"] = rate
    return model, optimizer


def footprint(gradients: list[list[float]], radii: list[list[int]] | None = None) -> Footprint:
    """Views by Gaussians of screen gradients, all along one slanted direction."""
    norms = torch.tensor(gradients)
    means2d = torch.zeros(*norms.shape, 3, requires_grad=True)
    means2d.grad = norms[..., None] * torch.tensor([0.6, -0.8, 0.0])
    seen = torch.ones_like(norms) if radii is None else torch.tensor(radii)
    return Footprint(means2d, seen.to(torch.int32))


def update(model, optimizer, gradients, step=200, radii=None, max_gaussians=None, **settings):
    control = DensityControl(OptimizationParams(**settings), EXTENT, max_gaussians)
    control.update(model, optimizer, footprint(gradients, radii), step, seeded())
    return control


def test_small_gaussians_with_a_strong_gradient_are_cloned_exactly():
    model, optimizer = gaussians([LIMIT * 0.9, LIMIT * 0.9])
    means = model.means.detach().clone()
    update(model, optimizer, [[STRONG, WEAK]])
    assert torch.equal(model.means, means[[0, 1, 0]])
    moments = optimizer.state[model.means]["exp_avg"]
    assert moments[:2].all()
    assert not moments[2].any()


def test_large_gaussians_with_a_strong_gradient_are_replaced_by_two_smaller():
    model, optimizer = gaussians([LIMIT * 1.1, LIMIT * 1.1])
    means = model.means.detach().clone()
    update(model, optimizer, [[STRONG, WEAK]])
    assert len(model) == 3
    assert torch.equal(model.means[0], means[1])
    torch.testing.assert_close(model.scales[1:], torch.full((2, 3), LIMIT * 1.1 / 1.6))
    distances = (model.means[1:] - means[0]).norm(dim=1)
    assert ((distances > 0) & (distances < 6 * LIMIT)).all()
    assert not optimizer.state[model.means]["exp_avg"][1:].any()


def test_children_are_samples_of_their_parent():
    """Mean and covariance of many children, in the parent's own axes."""
    model, optimizer = gaussians([1.0] * 4000)
    shape = torch.tensor([[0.02, 0.1, 0.3]]).log()
    quat = torch.tensor([[0.5, 0.1, -0.7, 0.4]])
    model.replace(
        {"means": torch.zeros(4000, 3), "log_scales": shape.repeat(4000, 1), "quats": quat.repeat(4000, 1)}
    )
    optimizer = build_optimizer(model, OptimizationParams(), EXTENT)
    update(model, optimizer, [[STRONG] * 4000])
    from utils.rotations import quaternions_to_matrices

    axes = quaternions_to_matrices(quat[0])
    covariance = axes.T @ torch.cov(model.means.detach().T) @ axes
    torch.testing.assert_close(covariance, torch.diag(shape[0].exp() ** 2), rtol=0.06, atol=5e-4)


def test_the_same_generator_gives_the_same_children():
    runs = []
    for _ in range(2):
        model, optimizer = gaussians([0.1, 0.1])
        update(model, optimizer, [[STRONG, STRONG]])
        runs.append(model.means.detach())
    assert torch.equal(*runs)


def test_statistics_are_the_mean_over_the_views_that_see_a_gaussian():
    model, optimizer = gaussians([0.005] * 3)
    # Seen twice, mean STRONG; seen twice, mean WEAK; seen once, and strong where it was not seen.
    update(model, optimizer, [[2 * STRONG, 2 * WEAK, 9.0], [0.0, 0.0, WEAK]], radii=[[3, 3, 0], [3, 3, 3]])
    assert len(model) == 4


@pytest.mark.parametrize(("choice", "expected"), [("all_views", 3), ("last_view", 2)])
def test_which_views_count(choice, expected):
    model, optimizer = gaussians([0.005, 0.005])
    update(model, optimizer, [[4 * STRONG, 0.0], [0.0, 0.0]], densify_stats=choice)
    assert len(model) == expected


@pytest.mark.parametrize(("other", "expected"), [(1.0, 2), (-1.0, 1)])
def test_gradients_of_all_views_can_be_summed_before_their_norm_is_taken(other, expected):
    """GaussianDreamer (systems/GaussianDreamer.py:340-351): one norm a step, of the sum, whoever sees the Gaussian."""
    model, optimizer = gaussians([0.005])
    seen = footprint([[0.6 * STRONG], [0.6 * other * STRONG], [0.0]], radii=[[3], [3], [0]])
    control = DensityControl(OptimizationParams(densify_stats="summed_views"), EXTENT)
    control.update(model, optimizer, seen, 200, seeded())
    assert len(model) == expected


def test_a_sum_of_gradients_leaves_out_what_no_view_sees_and_what_is_broken():
    model, optimizer = gaussians([0.005] * 3)
    seen = footprint([[STRONG, math.nan, 9.0], [0.0, STRONG, 0.0]], radii=[[3, 3, 0], [3, 3, 0]])
    control = DensityControl(OptimizationParams(densify_stats="summed_views"), EXTENT)
    control.update(model, optimizer, seen, 199, seeded())
    torch.testing.assert_close(control.gradient_sums, torch.tensor([STRONG, STRONG, 0.0]))
    assert control.view_counts.tolist() == [1, 1, 0]


def test_statistics_add_up_over_iterations_and_start_anew_after_densification():
    model, optimizer = gaussians([0.005, 0.005])
    control = DensityControl(OptimizationParams(), EXTENT)
    control.update(model, optimizer, footprint([[2 * STRONG, 0.0]]), 199, seeded())
    assert len(model) == 2
    control.update(model, optimizer, footprint([[0.0, 0.0]]), 200, seeded())
    assert len(model) == 3
    assert control.gradient_sums.tolist() == [0, 0, 0]
    assert control.view_counts.tolist() == [0, 0, 0]


def test_broken_gradients_do_not_count():
    model, optimizer = gaussians([0.005] * 3)
    control = update(model, optimizer, [[math.nan, math.inf, WEAK], [STRONG, 0.0, math.nan]], step=199)
    torch.testing.assert_close(control.gradient_sums, torch.tensor([STRONG, 0.0, WEAK]))
    assert control.view_counts.tolist() == [1, 1, 1]


def test_no_gradient_no_statistics():
    model, optimizer = gaussians([0.005])
    control = DensityControl(OptimizationParams(), EXTENT)
    unseen = Footprint(torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.int32))
    control.update(model, optimizer, unseen, 200, seeded())
    assert len(model) == 1


@pytest.mark.parametrize(
    ("step", "acts"), [(100, False), (150, False), (200, True), (2900, True), (3000, False)]
)
def test_densification_happens_on_upstreams_steps(step, acts):
    model, optimizer = gaussians([0.005])
    update(model, optimizer, [[STRONG]], step=step)
    assert (len(model) == 2) == acts


@pytest.mark.parametrize(("step", "acts"), [(299, False), (300, True), (2700, True), (3000, False)])
def test_opacity_resets_happen_on_upstreams_steps(step, acts):
    model, optimizer = gaussians([0.005, 0.005], [0.5, 0.008])
    update(model, optimizer, [[0.0, 0.0]], step=step)
    expected = [0.01, 0.008] if acts else [0.5, 0.008]
    torch.testing.assert_close(model.opacities[:, 0], torch.tensor(expected))


@pytest.mark.parametrize(("save", "acts"), [(300, False), (391, False), (392, True), (299, True)])
def test_a_reset_has_time_to_recover_before_a_save_or_is_left_out(save, acts):
    """From 0.01 to 1/2 a logit goes 4.6: 92 steps of Adam at the rate of 0.05."""
    model, optimizer = gaussians([0.005])
    control = DensityControl(OptimizationParams(), EXTENT, saves={save})
    control.update(model, optimizer, footprint([[0.0]]), 300, seeded())
    assert (float(model.opacities.detach()) == pytest.approx(0.01)) == acts


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_so_many_steps_bring_an_opacity_back_and_one_less_does_not(rate):
    model, optimizer = gaussians([0.005])
    reset_opacity(model, optimizer)
    optimizer = torch.optim.Adam([model.opacity_logits], lr=rate, eps=1e-15)
    steps = recovery_steps(rate)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (-model.opacity_logits).sum().backward()
        optimizer.step()
        assert (float(model.opacities.detach()) >= 0.5) == (step == steps)


def schedule(iterations, parts=2, **settings):
    params = OptimizationParams(iterations=iterations, **settings)
    return spoiling_resets(params, fractions(iterations, parts))


OF_GAUSSIANS = [
    path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.parent.name not in ("field", "image")
]


@pytest.mark.parametrize("path", OF_GAUSSIANS, ids=lambda path: path.stem)
def test_no_reset_of_a_schedule_that_is_shipped_is_left_out(path):
    config, _ = load(["--opt", str(path), "model_key=toybox", "text=a red car"])
    saves = fractions(config.iterations, config.save_ratio)
    assert spoiling_resets(config.OptimizationParams, saves) == set()


@pytest.mark.parametrize(
    ("iterations", "settings", "left_out"),
    [
        (1500, {}, {1500}),
        (1200, {"densify_until_iter": 900}, {600}),
        (3000, {}, {1500}),
        (1500, {"densify_until_iter": 1500}, set()),
        (2500, {}, {1200}),
        (2500, {"opacity_lr": 0.1}, set()),
        (900, {"opacity_lr": 0.0}, {300, 600, 900}),
        (100, {"opacity_reset_interval": 30}, {30, 60, 90}),
    ],
)
def test_which_resets_are_left_out(iterations, settings, left_out):
    assert schedule(iterations, **settings) == left_out


def test_the_schedule_says_once_which_resets_it_leaves_out(caplog):
    with caplog.at_level(logging.WARNING):
        control = DensityControl(OptimizationParams(), EXTENT, saves=fractions(1500, 2))
        model, optimizer = gaussians([0.005])
        control.update(model, optimizer, footprint([[0.0]]), 1500, seeded())
        DensityControl(OptimizationParams(), EXTENT, saves=fractions(5000, 2))
    (message,) = caplog.messages
    assert message.endswith("after iteration 1500")
    caplog.clear()
    DensityControl(OptimizationParams(opacity_reset_interval=10), EXTENT, saves={200})
    assert "after iteration 110, 120, 130, 140, 150, 160, 170, 180 and 2 more" in caplog.text


def test_opacity_reset_forgets_the_moments_of_opacity_alone():
    model, optimizer = gaussians([0.005, 0.005])
    reset_opacity(model, optimizer)
    assert not optimizer.state[model.opacity_logits]["exp_avg"].any()
    assert not optimizer.state[model.opacity_logits]["exp_avg_sq"].any()
    assert optimizer.state[model.means]["exp_avg"].all()


def test_faint_gaussians_are_pruned():
    model, optimizer = gaussians([0.005] * 3, [0.0049, 0.0051, 0.5])
    kept = model.means[1:].detach().clone()
    update(model, optimizer, [[0.0] * 3])
    assert torch.equal(model.means, kept)


@pytest.mark.parametrize(("step", "left"), [(200, 2), (300, 2), (400, 1)])
def test_wide_gaussians_are_pruned_after_the_first_opacity_reset(step, left):
    model, optimizer = gaussians([0.34, 0.36])
    update(model, optimizer, [[0.0, 0.0]], step=step)
    assert len(model) == left


@pytest.mark.parametrize(("step", "left"), [(400, 3), (600, 2)])
def test_from_when_and_how_wide_gaussians_are_pruned_can_be_said(step, left):
    """Where opacity is never reset, the first reset cannot be what it waits for (GaussianDreamer, DreamGaussian)."""
    model, optimizer = gaussians([0.34, 0.36, 0.45])
    settings = {"opacity_reset_interval": 10_000, "prune_scale": 0.4 / EXTENT, "prune_scale_from_iter": 500}
    update(model, optimizer, [[0.0] * 3], step=step, **settings)
    assert len(model) == left


def test_broken_gaussians_are_pruned():
    model, optimizer = gaussians([0.005] * 3, [0.5, math.nan, 0.5])
    model.means.data[0, 1] = math.inf
    update(model, optimizer, [[0.0] * 3])
    assert len(model) == 1


def test_the_last_gaussians_stay(caplog):
    model, optimizer = gaussians([0.005] * 2, [0.001, 0.001])
    with caplog.at_level(logging.WARNING):
        update(model, optimizer, [[0.0, 0.0]])
    assert len(model) == 2
    assert "none was pruned" in caplog.text


def test_at_the_cap_the_strongest_gradients_win():
    model, optimizer = gaussians([0.005, 0.005, 0.1, 0.1])
    means = model.means.detach().clone()
    update(model, optimizer, [[2 * STRONG, 3 * STRONG, 4 * STRONG, STRONG]], max_gaussians=6)
    assert len(model) == 6
    assert torch.equal(model.means[:4], means[[0, 1, 3, 1]])
    update(model, optimizer, [[STRONG] * 6], max_gaussians=6)
    assert len(model) == 6


def test_a_cap_below_the_count_creates_nothing_and_removes_nothing():
    model, optimizer = gaussians([0.005] * 3)
    update(model, optimizer, [[STRONG] * 3], max_gaussians=2)
    assert len(model) == 3


def test_resumed_control_acts_like_one_that_went_on():
    model, optimizer = gaussians([0.005] * 4)
    twin, twin_optimizer = gaussians([0.005] * 4)
    control = DensityControl(OptimizationParams(), EXTENT)
    control.update(model, optimizer, footprint([[STRONG, WEAK, 2 * STRONG, 0.0]]), 150, seeded())
    resumed = DensityControl(OptimizationParams(), EXTENT)
    resumed.load_state_dict(control.state_dict())
    last = footprint([[WEAK, WEAK, 0.0, 0.0]])
    control.update(model, optimizer, last, 200, seeded(3))
    resumed.update(twin, twin_optimizer, last, 200, seeded(3))
    assert len(model) > 4
    assert torch.equal(model.means, twin.means)
    assert all(isinstance(value, torch.Tensor) for value in control.state_dict().values())


def test_settings_reach_the_thresholds():
    model, optimizer = gaussians([0.005], [0.03])
    update(model, optimizer, [[1e-5]], densify_grad_threshold=1e-6, prune_opacity=0.02)
    assert len(model) == 2
