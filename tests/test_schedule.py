"""ᾱ_t and what is computed from t alone, against the published schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arguments import GuidanceParams
from guidance.schedule import NoiseSchedule
from tests.tiny_models import alphas_cumprod


def schedule(warmup_steps=1500, **settings):
    return NoiseSchedule(alphas_cumprod(), GuidanceParams(**settings), warmup_steps)


@pytest.mark.parametrize(
    ("timestep", "weight"),
    [(20, 0.0187), (50, 0.0484), (100, 0.1058), (200, 0.2463), (300, 0.4095), (301, 1.0)],
)
def test_dca_weight_is_equation_18(timestep, weight):
    assert schedule().dca_weight(torch.tensor([timestep])).item() == pytest.approx(weight, abs=5e-5)


def test_dca_weight_at_the_cutoff_to_six_digits():
    assert schedule().dca_weight(torch.tensor([300])).item() == pytest.approx(0.409499, abs=5e-7)


@given(timestep=st.integers(0, 999))
def test_a_cutoff_of_zero_turns_annealing_off(timestep):
    assert schedule().dca_weight(torch.tensor([timestep]), cutoff=0).item() == 1


@pytest.mark.parametrize(
    ("weighting", "values"),
    [
        ("ism", {20: 0.138, 100: 0.344, 300: 0.833, 500: 1.618, 980: 13.04}),
        ("sds", {20: 0.0187, 500: 0.7237, 980: 0.9942}),
        ("uniform", {20: 1.0, 980: 1.0}),
        ("fantasia3d", {300: 0.5905**0.5 * 0.4095, 980: 0.0058**0.5 * 0.9942}),
    ],
)
def test_named_weightings(weighting, values):
    weights = schedule(weighting=weighting).weight(torch.tensor(list(values)))
    assert weights.shape == (len(values), 1, 1, 1)
    assert weights.flatten().tolist() == pytest.approx(list(values.values()), rel=5e-3)


def test_noisy_latents_keep_unit_variance():
    rng = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 8, 4, 64, 64, generator=rng)
    noisy = schedule().add_noise(latents, noise, torch.linspace(0, 999, 8).long())
    assert noisy.var(dim=(1, 2, 3)).tolist() == pytest.approx([1] * 8, abs=0.05)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, (20, 980)), (750, (20, 740)), (1500, (20, 500)), (5000, (20, 500))]
)
def test_the_range_of_t_is_annealed_like_lucid_dreamers(step, expected):
    assert schedule().index_range(step) == expected


def test_timesteps_are_the_index_plus_one():
    rng = torch.Generator().manual_seed(0)
    narrow = schedule(t_range=(0.3, 0.3), max_t_range=0.3)
    assert narrow.index_range(9000) == (300, 301)
    assert narrow.sample_timesteps(4, 9000, rng).tolist() == [301] * 4


def test_timesteps_stay_inside_the_range_and_reach_its_ends():
    rng = torch.Generator().manual_seed(0)
    drawn = schedule(timestep_per_view=True, t_range=(0.02, 0.03)).sample_timesteps(2000, 1500, rng)
    assert (drawn.min().item(), drawn.max().item()) == (21, 30)


def test_the_whole_schedule_can_be_asked_for():
    rng = torch.Generator().manual_seed(0)
    drawn = schedule(timestep_per_view=True, t_range=(0.0, 1.0), max_t_range=1.0).sample_timesteps(
        20_000, 1, rng
    )
    assert (drawn.min().item(), drawn.max().item()) == (1, 999)


def test_a_shorter_schedule_is_spaced_over_the_whole():
    rng = torch.Generator().manual_seed(0)
    drawn = schedule(num_train_timesteps=100, timestep_per_view=True).sample_timesteps(500, 1, rng)
    assert set((drawn % 10).tolist()) == {1}
    assert drawn.max() <= 971


def test_one_timestep_for_all_views_or_one_for_each():
    rng = torch.Generator().manual_seed(0)
    assert len(set(schedule().sample_timesteps(16, 1, rng).tolist())) == 1
    assert len(set(schedule(timestep_per_view=True).sample_timesteps(16, 1, rng).tolist())) > 8


def test_timesteps_are_a_function_of_the_generator():
    first, second = (schedule().sample_timesteps(1, 1, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def falling(kind, steps, **settings):
    params = GuidanceParams(timestep_schedule=kind, **settings)
    plan = NoiseSchedule(alphas_cumprod(), params, warmup_steps=10, total_steps=100)
    return [plan.index_range(step) for step in steps]


def test_two_stages_drop_the_upper_end_at_once():
    assert falling("two_stage", (1, 9, 10, 99)) == [(20, 980), (20, 980), (20, 500), (20, 500)]


@pytest.mark.parametrize(("kind", "middle"), [("linear", 740), ("sqrt", 500)])
def test_one_falling_index_goes_from_one_end_to_the_other(kind, middle):
    first, quarter, last = falling(kind, (1, 26, 101))
    assert (first, quarter, last) == ((980, 981), (middle, middle + 1), (20, 21))


def test_lambda_is_continuous_but_at_the_cutoff():
    weights = schedule().dca_weight(torch.arange(1000)).flatten()
    jumps = (weights[1:] - weights[:-1]).abs()
    assert jumps.argmax() == 300 and jumps[300].item() == pytest.approx(0.5905, abs=1e-3)
    assert jumps[torch.arange(999) != 300].max() < 0.003


@given(start=st.integers(1, 999), end=st.integers(1, 999))
def test_a_ddim_step_on_a_straight_path_is_the_forward_process(start, end):
    """With the true noise, the step lands on the same x_0 and ε at the other level, upwards and downwards."""
    latents, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plan, start, end = schedule(), torch.tensor([start]), torch.tensor([end])
    moved = plan.ddim_step(plan.add_noise(latents, noise, start), noise, start, end)
    assert torch.allclose(moved, plan.add_noise(latents, noise, end), atol=1e-4)


@given(index=st.integers(0, 999), length=st.sampled_from([None, 500, 100]))
def test_indices_and_timesteps_are_each_others_inverse(index, length):
    plan = schedule(num_train_timesteps=length)
    index = torch.tensor([index % ((length or 1000) - 1)])
    assert torch.equal(plan.indices_of(plan.timesteps_of(index)), index)
