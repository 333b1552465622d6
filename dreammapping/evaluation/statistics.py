"""What a difference between two systems is worth: paired scores, intervals, and how many runs would tell.

A score belongs to a prompt, a seed and a view. Runs are what varies by chance: views of one run share its fate, so
they are averaged first, and never count as so many observations. Two systems are compared where both have the same
prompt, seed and view; everything else of either is left out and counted.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from utils.errors import UserError

Place = tuple[str, int, int]
"""Prompt, seed and view of a score."""
Scores = Mapping[Place, float]
Verdict = Literal["higher", "lower", "not told apart"]

CONFIDENCE, POWER = 0.95, 0.80
RESAMPLES = 10_000
BOOTSTRAP_FROM = 8
"""Prompts, or seeds of one prompt, that are resampled; of fewer an interval would end at the lowest and the highest."""


@dataclass(frozen=True)
class Interval:
    """A mean over prompts, and where it lies in 95 of 100 repetitions; `low` and `high` are None for a single run.

    Attributes:
        prompts, runs: what it stands on.
        spread: standard deviation between runs, None for a single one.
    """

    mean: float
    low: float | None
    high: float | None
    prompts: int
    runs: int
    spread: float | None


@dataclass(frozen=True)
class Comparison:
    """The first system's scores less the second's.

    Attributes:
        difference: of the places that both have.
        unpaired: places that only one of them has.
        needed: runs, a prompt and a seed each, that would tell a difference of this size from none in 80 of 100
            repetitions; None where nothing is known of it.
    """

    difference: Interval
    unpaired: int
    needed: int | None

    @property
    def verdict(self) -> Verdict:
        """What can be said of the first system."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0.0 <= high:
            return "not told apart"
        return "higher" if low > 0.0 else "lower"


def interval(scores: Scores, *, seed: int = 0) -> Interval:
    """Mean of one system's scores, over prompts, and its interval.

    What varies is the mean of a prompt, or the seed where there is one prompt: Student's t of few, a bootstrap of more.

    Raises:
        UserError: there are none, or one is not finite.
    """
    by_prompt = _runs(scores)
    values = [value for runs in by_prompt for value in runs]
    mean = float(np.mean([runs.mean() for runs in by_prompt]))
    if len(values) == 1:
        return Interval(mean, None, None, 1, 1, None)
    units = np.array([runs.mean() for runs in by_prompt]) if len(by_prompt) > 1 else by_prompt[0]
    if len(units) < BOOTSTRAP_FROM:
        low, high = student(units)
    else:
        low, high = _bootstrap(by_prompt, np.random.default_rng(seed))
    return Interval(mean, low, high, len(by_prompt), len(values), float(np.std(values, ddof=1)))


def compare(first: Scores, second: Scores, *, seed: int = 0) -> Comparison:
    """Two systems on the places that both have.

    Raises:
        UserError: they share none, or a score is not finite.
    """
    shared = first.keys() & second.keys()
    if not shared:
        raise UserError(
            "comparison: expected scores of the same prompts, seeds and views, got none in common; run both alike"
        )
    # In the order of the first, so that equal scores give the same numbers every time.
    differences = {place: first[place] - second[place] for place in first if place in shared}
    values = [value for runs in _runs(differences) for value in runs]
    unpaired = len(first.keys() ^ second.keys())
    return Comparison(interval(differences, seed=seed), unpaired, runs_needed(np.array(values)))


def runs_needed(differences: Float[np.ndarray, " R"]) -> int | None:
    """Runs that tell a mean like theirs from zero at 95 % with a power of 80 %, by Student's t.

    None for fewer than two runs, or a mean of less than a millionth of their deviation.
    """
    if len(differences) < 2:
        return None
    mean, deviation = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    if mean <= 1e-6 * deviation:
        return None
    effect = mean / deviation if deviation > 0.0 else math.inf
    runs = 2
    # The quantiles shrink as the runs grow: the first number that suffices for itself, from a doubling and a halving.
    while not _suffices(runs, effect):
        runs *= 2
    fewer = runs // 2
    while runs - fewer > 1:
        middle = (runs + fewer) // 2
        runs, fewer = (middle, fewer) if _suffices(middle, effect) else (runs, middle)
    return runs


def _suffices(runs: int, effect: float) -> bool:
    quantiles = stats.t.ppf((0.5 + CONFIDENCE / 2.0, POWER), runs - 1).sum()
    return math.sqrt(runs) * effect >= quantiles


def _runs(scores: Scores) -> list[Float[np.ndarray, " S"]]:
    """For each prompt its runs' means over their views."""
    if not scores:
        raise UserError("scores: expected some, got none; finish a run first")
    views: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (prompt, seed, view), value in scores.items():
        if not math.isfinite(value):
            raise UserError(
                f"scores: expected numbers, got {value} for {prompt!r}, seed {seed}, view {view}; leave that run out"
            )
        views[prompt, seed].append(value)
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (prompt, _), values in views.items():
        by_prompt[prompt].append(math.fsum(values) / len(values))
    return [np.array(runs) for runs in by_prompt.values()]


def student(units: Float[np.ndarray, " U"]) -> tuple[float, float]:
    """Student's interval of the mean of at least two numbers."""
    half = stats.t.ppf(0.5 + CONFIDENCE / 2.0, len(units) - 1) * np.std(units, ddof=1) / math.sqrt(len(units))
    return float(units.mean() - half), float(units.mean() + half)


def expanded_tail(units: int) -> float:
    """The share of resamples beyond each end of an interval, for a bootstrap of `units` things, at least two.

    Resampling few things makes intervals too narrow: by √((n - 1) / n), and by the normal's tails in the place of
    Student's. The percentiles are moved outwards for both (Hesterberg 2015: expanded percentiles).
    """
    wide = math.sqrt(units / (units - 1)) * stats.t.ppf(0.5 + CONFIDENCE / 2.0, units - 1)
    return float(stats.norm.cdf(-wide))


def _bootstrap(by_prompt: list[Float[np.ndarray, " S"]], rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the mean over prompts drawn with replacement, and over seeds of each.

    They are expanded by the number of prompts, or of seeds where there is one prompt: at least `BOOTSTRAP_FROM`.
    """
    counts = np.array([len(runs) for runs in by_prompt])
    padded = np.zeros((len(by_prompt), counts.max()))
    for row, runs in zip(padded, by_prompt, strict=True):
        row[: len(runs)] = runs
    prompts = rng.integers(len(by_prompt), size=(RESAMPLES, len(by_prompt)))
    drawn = np.zeros((RESAMPLES, len(by_prompt)))
    for place in range(counts.max()):
        seeds = (rng.random(prompts.shape) * counts[prompts]).astype(int)
        drawn += np.where(place < counts[prompts], padded[prompts, seeds], 0.0)
    means = (drawn / counts[prompts]).mean(axis=1)
    tail = expanded_tail(len(by_prompt) if len(by_prompt) > 1 else int(counts[0]))
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return float(low), float(high)
