"""Curves and maps of a page: where they run, what is written beside them, and gaps where nothing is known."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreammapping.page.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curve, heat_map, nice, number


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low, span):
    high = low + span
    ticks = nice(low, high)
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in ticks)
    assert len(ticks) <= 12
    steps = np.diff(ticks)
    assert len(steps) == 0 or np.allclose(steps, steps[0], atol=1e-9 * max(abs(low), span))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1250, "1,250"),
        (0.00312, "0.00312"),
        (-4.5, "-4.5"),
        (0.5, "0.5"),
        (3e-7, "3e-07"),
        (100, "100"),
    ],
)
def test_numbers_are_written_as_persons_write_them(value, text):
    assert number(value) == text


def path_points(path: str) -> list[tuple[str, float, float]]:
    return [(kind, float(x), float(y)) for kind, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path)]


def test_a_curve_has_gaps_where_values_are_not_known_and_stays_in_its_field():
    drawn = curve("loss", range(6), [1.0, 2.0, None, 3.0, float("inf"), 2.5])
    points = path_points(drawn.raw)
    assert [kind for kind, *_ in points] == ["M", "L", "M", "M"]
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for _, x, y in points)
    heights = [y for *_, y in points]
    assert heights[0] == max(heights) and heights[2] == min(heights), "1 is lowest, 3 highest, on the screen"
    assert "from 1 at iteration 0 to 2.5 at iteration 5, between 1 and 3" in drawn.about
    assert curve("loss", [1, 2], [None, float("nan")]) is None


def test_a_curve_over_decades_is_logarithmic():
    drawn = curve("loss", range(5), [1.0, 10.0, 100.0, 1000.0, 10000.0])
    heights = [y for *_, y in path_points(drawn.raw)]
    assert np.allclose(np.diff(heights), np.diff(heights)[0], atol=0.11)
    assert [text for _, text in drawn.y_ticks] == ["1", "10", "100", "1,000", "10,000"]


def test_a_running_mean_of_a_line_is_the_line_and_a_long_curve_is_short():
    drawn = curve("line", range(50_000), [2.0 * step + 5 for step in range(50_000)])
    raw, smooth = (np.array([point[1:] for point in path_points(path)]) for path in (drawn.raw, drawn.smooth))
    assert len(raw) <= 600 and np.allclose(raw, smooth, atol=0.11), "a digit is written after the point"


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [5.0, 5.0], [-1e-30, 1e30]])
def test_curves_of_every_kind_are_drawn(values):
    drawn = curve("x", range(len(values)), values)
    assert "nan" not in drawn.raw + drawn.smooth and drawn.y_ticks is not None


def test_a_map_has_a_row_for_each_range_the_last_one_above():
    drawn = heat_map("error", [1, 2, 3], {"0–99": [1.0, 0.5, None], "100–199": [0.8, None, 0.2]})
    assert [(name, last) for _, name, last in drawn.rows] == [("100–199", "0.2"), ("0–99", "0.5")]
    assert heat_map("error", [1], {"0–99": [None]}) is None and heat_map("error", [], {}) is None
