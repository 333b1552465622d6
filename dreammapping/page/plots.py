"""Curves and maps of a run's metrics as geometry for inline SVG; `templates/plots.html` draws them."""

import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 24
"""Of the drawing, and the margins around its field, in SVG units."""
MOST_POINTS = 600
"""Of a curve; more are averaged, some at a time."""
LOG_FROM = 30.0
"""The ratio of a curve's large values to its small ones from which its axis is logarithmic."""

Tick = tuple[float, str]
"""Where on its axis, in SVG units, and what is written there."""


@dataclass(frozen=True)
class Curve:
    """One number of a run over its iterations.

    Attributes:
        raw, smooth: SVG paths: every value, and their running mean over a twentieth of the run.
        about: the curve in words, for who does not see it.
    """

    title: str
    raw: str
    smooth: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    about: str


@dataclass(frozen=True)
class HeatMap:
    """One number for each range of something, over the iterations.

    Attributes:
        picture: a PNG as a data URI, a pixel for each cell, the first row above.
        rows: middle, name and last value of each row.
        scale: a PNG of the colours, from `low` to `high`.
    """

    title: str
    picture: str
    rows: list[tuple[float, str, str]]
    x_ticks: list[Tick]
    scale: str
    low: str
    high: str
    about: str


def curve(
    title: str, steps: Sequence[float], values: Sequence[float | None], *, noisy: bool = True
) -> Curve | None:
    """A curve of values, of which None and what is not finite are left out as gaps; None where nothing is left.

    Args:
        noisy: a running mean is drawn over it.
    """
    x, y = np.asarray(steps, float), np.array([np.nan if v is None else v for v in values], float)
    y[~np.isfinite(y)] = np.nan
    if np.isnan(y).all():
        return None
    x, y = _fewer(x, y)
    known = y[~np.isnan(y)]
    logarithmic = bool(known.min() > 0 and np.quantile(known, 0.95) > LOG_FROM * np.quantile(known, 0.05))
    shown = np.log10(y) if logarithmic else y
    low, high = np.nanmin(shown), np.nanmax(shown)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - (0.5 * abs(low) or 0.5), high + (0.5 * abs(high) or 0.5)
    y_ticks = _log_ticks(low, high) if logarithmic else [(t, number(t)) for t in nice(low, high)]
    across, down = _across(x), _down(low, high)
    smooth = _running_mean(shown, max(len(shown) // 20, 1) if noisy else 0)
    about = (
        f"{title}: from {number(known[0])} at iteration {int(x[0])} to {number(known[-1])} at iteration "
        f"{int(x[-1])}, between {number(known.min())} and {number(known.max())}"
    )
    return Curve(
        title,
        _path(across(x), down(shown)),
        _path(across(x), down(smooth)),
        _x_ticks(x),
        [(float(down(np.float64(t))), text) for t, text in y_ticks],
        about,
    )


def heat_map(title: str, steps: Sequence[float], rows: dict[str, Sequence[float | None]]) -> HeatMap | None:
    """A map with a row for each name, the last one above; None where no value is known."""
    x = np.asarray(steps, float)
    table = np.array([[np.nan if v is None else v for v in values] for values in rows.values()], float)[::-1]
    table[~np.isfinite(table)] = np.nan
    if table.size == 0 or np.isnan(table).all():
        return None
    low, high = float(min(np.nanmin(table), 0.0)), float(np.nanmax(table))
    span = (high - low) or 1.0
    columns = np.stack([_fewer(x, row, most=120)[1] for row in table])
    last = [next((v for v in row[::-1] if not np.isnan(v)), math.nan) for row in table]
    names, height = list(rows)[::-1], (HEIGHT - TOP - BOTTOM) / len(rows)
    marks = [
        (TOP + (index + 0.5) * height, name, "" if math.isnan(value) else number(value))
        for index, (name, value) in enumerate(zip(names, last, strict=True))
    ]
    about = f"{title}, at the end: " + ", ".join(f"{name} {text or 'not known'}" for _, name, text in marks)
    return HeatMap(
        title,
        _picture((columns - low) / span),
        marks,
        _x_ticks(x),
        _picture(np.linspace(0, 1, 64)[None]),
        number(low),
        number(high),
        about,
    )


def number(value: float) -> str:
    """Three digits, as a person writes them: 1,250 and 0.00312."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e7:
        digits = max(2 - math.floor(math.log10(abs(value))), 0)
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"


def nice(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, roughly `about` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[Tick]:
    """Powers of ten, and where these are few their doubles and fives, at their logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1,) if high - low > 3 else (1, 3) if high - low > 1.2 else (1, 2, 5)
    found = [(power + math.log10(factor), factor * 10.0**power) for power in powers for factor in factors]
    return [(place, number(value)) for place, value in found if low <= place <= high]


def _across(x: np.ndarray) -> Callable[[Any], Any]:
    first, span = x[0], (x[-1] - x[0]) or 1.0
    return lambda value: LEFT + (value - first) / span * (WIDTH - LEFT - RIGHT)


def _down(low: float, high: float) -> Callable[[Any], Any]:
    return lambda value: TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _x_ticks(x: np.ndarray) -> list[Tick]:
    return [(float(_across(x)(t)), number(t)) for t in nice(float(x[0]), float(x[-1]))]


def _fewer(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means of neighbours, so that no more than `most` are left; unknown ones do not count."""
    group = -(-len(x) // most)
    if group == 1:
        return x, y
    starts = np.arange(0, len(x), group)
    known = ~np.isnan(y)
    counts = np.add.reduceat(known.astype(float), starts)
    sums = np.add.reduceat(np.where(known, y, 0.0), starts)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return x[np.minimum(starts + group - 1, len(x) - 1)], means


def _running_mean(y: np.ndarray, half: int) -> np.ndarray:
    """Of as many neighbours on both sides, `half` at most, so that the ends stay where they are."""
    known = ~np.isnan(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(y))
    reach = np.minimum(np.minimum(index, len(y) - 1 - index), half)
    low, high = index - reach, index + reach + 1
    total = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.maximum(total, 1)
    return np.where(known, means, np.nan)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """An SVG path, interrupted where `y` is not known."""
    words, drawing = [], False
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(b):
            drawing = False
            continue
        words.append(f"{'L' if drawing else 'M'}{a:.1f} {b:.1f}")
        drawing = True
    return "".join(words) + ("h0" if len(words) == 1 else "")  # a single point shows by its round end


def _picture(levels: Float[np.ndarray, "H W"]) -> str:
    """Levels from 0 to 1 in colour, dark blue to yellow; grey where there is none."""
    known = ~np.isnan(levels)
    bytes_ = np.round(np.where(known, levels, 0.0) * 255).clip(0, 255).astype(np.uint8)
    colored = cv2.applyColorMap(np.ascontiguousarray(bytes_), cv2.COLORMAP_VIRIDIS).reshape(*levels.shape, 3)
    colored[~known] = 128
    done, encoded = cv2.imencode(".png", colored)
    assert done, "a PNG of bytes can be written"
    return "data:image/png;base64," + b64encode(encoded.tobytes()).decode()
