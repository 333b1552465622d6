"""Statistics of runs: what is paired, what an interval holds, and how many runs tell a difference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dreammapping.evaluation.statistics import compare, interval, runs_needed
from utils.errors import UserError


def scores(values, views=3, spread=0.0):
    """Scores of (prompt, seed) -> value, with views around it."""
    shifts = np.linspace(-spread, spread, views)
    return {
        (prompt, seed, view): value + shift
        for (prompt, seed), value in values.items()
        for view, shift in enumerate(shifts)
    }


def of_runs(values, prompts=None):
    """One seed of each of many prompts, or all seeds of one prompt."""
    return scores({(f"p{i}", 0) if prompts is None else ("p", i): value for i, value in enumerate(values)})


def test_the_mean_is_over_prompts_and_views_count_once():
    found = interval(scores({("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 8.0}, spread=5.0))
    assert found.mean == pytest.approx((2.0 + 8.0) / 2)
    assert (found.prompts, found.runs) == (2, 3)
    assert found.spread == pytest.approx(np.std([1.0, 3.0, 8.0], ddof=1))


def test_more_views_of_the_same_runs_tell_no_more():
    values = dict(zip([("a", 0), ("b", 0), ("c", 0), ("d", 0)], [0.1, 0.5, 0.3, 0.9], strict=True))
    few, many = (interval(scores(values, views=views, spread=0.2)) for views in (3, 300))
    assert few.low == pytest.approx(many.low) and few.high == pytest.approx(many.high)


def test_a_single_run_has_no_interval_and_tells_nothing():
    one = {("a", 0, view): 1.0 for view in range(24)}
    found = compare(one, dict.fromkeys(one, 0.0))
    assert (found.difference.low, found.difference.high, found.difference.runs) == (None, None, 1)
    assert (found.verdict, found.needed) == ("not told apart", None)


def test_pairs_share_prompt_seed_and_view():
    first = scores({("a", 0): 5.0, ("a", 1): 7.0, ("b", 0): 1.0})
    second = scores({("a", 0): 4.0, ("a", 1): 4.0, ("c", 0): 9.0})
    found = compare(first, second)
    assert found.difference.mean == pytest.approx(2.0)
    assert (found.difference.runs, found.unpaired) == (2, 6)


def test_a_hard_prompt_does_not_hide_what_pairs_show():
    """Prompts differ by tens, the systems by one: unpaired the intervals overlap, paired they do not touch zero."""
    rng = np.random.default_rng(0)
    hard, noise = 10.0 * rng.standard_normal(8), 0.1 * rng.standard_normal((2, 8))
    better, worse = of_runs(hard + 1.0 + noise[0]), of_runs(hard + noise[1])
    assert compare(better, worse).verdict == "higher"
    assert compare(worse, better).verdict == "lower"
    assert interval(worse).high > interval(better).low


def test_equal_systems_are_not_told_apart():
    same = of_runs([1.0, 2.0, 3.0])
    found = compare(same, same)
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)
    assert (found.verdict, found.needed) == ("not told apart", None)


def test_two_runs_of_different_signs_tell_nothing():
    found = compare(of_runs([3.0, -1.0]), of_runs([0.0, 0.0]))
    assert found.difference.mean == pytest.approx(1.0)
    # their mean is 1 and the deviation of it 2, which Student's t for one degree of freedom takes 12.7 times
    assert found.difference.high == pytest.approx(1.0 + 2.0 * stats.t.ppf(0.975, 1))
    assert found.verdict == "not told apart"


@pytest.mark.parametrize(
    ("count", "seeds_of_one_prompt"),
    [(2, None), (4, None), (6, None), (8, None), (20, None), (2, 1), (6, 1), (8, 1)],
)
def test_intervals_hold_the_true_mean_about_as_often_as_they_say(count, seeds_of_one_prompt):
    rng, trials = np.random.default_rng(1), 200
    held = 0
    for _ in range(trials):
        found = interval(of_runs(3.0 + rng.standard_normal(count), seeds_of_one_prompt))
        held += found.low <= 3.0 <= found.high
    # 95 % less four deviations of a count of 200, and less what few runs cost at most (Hesterberg 2015, figure 20)
    assert held / trials > 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials) - 0.02


def test_an_interval_of_many_runs_is_student_s():
    values = np.random.default_rng(2).standard_normal(200)
    found = interval(of_runs(values))
    low, high = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    # a percentile of 10,000 resamples is off by about 2 % of the deviation of the mean
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * stats.sem(values))


def test_the_variation_between_prompts_counts_however_many_seeds_there_are():
    """Prompts at ±1 with ten equal seeds: 40 runs, but four things that vary."""
    values = {(f"p{prompt}", seed): (-1.0) ** prompt for prompt in range(4) for seed in range(10)}
    found = interval(scores(values))
    half = stats.t.ppf(0.975, 3) * np.std([1.0, -1.0, 1.0, -1.0], ddof=1) / 2.0
    assert (found.low, found.high) == pytest.approx((-half, half))


def test_the_same_scores_give_the_same_interval():
    values = of_runs([0.3, 0.8, 0.1, 0.9, 0.4, 0.6, 0.2, 0.7])
    assert interval(values) == interval(dict(values))
    assert interval(values, seed=1) != interval(values, seed=2)


def power(runs, effect):
    """Chance that Student's two-sided test of `runs` normal differences finds an effect, exactly."""
    limit, shift = stats.t.ppf(0.975, runs - 1), math.sqrt(runs) * effect
    return stats.nct.sf(limit, runs - 1, shift) + stats.nct.cdf(-limit, runs - 1, shift)


@pytest.mark.parametrize("effect", [0.2, 0.5, 1.0, 2.0])
def test_the_runs_that_are_needed_have_the_power_that_is_asked_for(effect):
    values = np.array([-1.0, 1.0]) / math.sqrt(2.0) + effect  # deviation 1
    found = runs_needed(values)
    assert found is not None
    assert power(found, effect) > 0.78
    assert power(max(2, math.floor(0.85 * found) - 1), effect) < 0.80


def test_no_runs_are_enough_for_no_difference_and_two_for_a_sure_one():
    assert runs_needed(np.array([1.0, -1.0])) is None
    assert runs_needed(np.array([1.0])) is None
    assert runs_needed(np.array([0.5, 0.5, 0.5])) == 2


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=12),
    st.floats(-5, 5),
)
def test_an_interval_is_around_the_mean_and_moves_with_the_runs(values, shift):
    found, moved = interval(of_runs(values)), interval(of_runs([value + shift for value in values]))
    slack = 1e-9
    assert found.low - slack <= found.mean <= found.high + slack
    if len(values) >= 8:
        assert min(values) - slack <= found.low and found.high <= max(values) + slack
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)


def test_nothing_in_common_and_broken_scores_are_refused():
    with pytest.raises(UserError, match="got none in common; run both alike"):
        compare(scores({("a", 0): 1.0}), scores({("a", 1): 1.0}))
    with pytest.raises(UserError, match="got nan for 'a', seed 0, view 2"):
        interval({("a", 0, 2): math.nan})
    with pytest.raises(UserError, match="expected some, got none"):
        interval({})
