"""Curves as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.images import write_picture

WIDTH, HEIGHT = 520, 360
"""Pixels of a panel."""
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 36
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189))
INK, FAINT = (40, 40, 40), (200, 200, 200)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Line:
    """Places in order of x."""

    label: str
    places: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Lines on the same axes; `mark` is an x with a name, shown as an upright line."""

    title: str
    lines: Sequence[Line]
    mark: tuple[float, str] | None = None


def write_chart(path: Path, panels: Sequence[Panel], x_title: str = "") -> None:
    """Panels side by side, all with the same axes, from 0 or below to the largest value."""
    places = [place for panel in panels for line in panel.lines for place in line.places]
    xs, ys = ([place[axis] for place in places] for axis in (0, 1))
    low, high = min(0.0, *ys), max(1.0, *ys)
    spans = (min(xs), max(max(xs), min(xs) + 1e-9), low, high)
    write_picture(path, np.concatenate([_drawn(panel, spans, x_title) for panel in panels], axis=1))


def _drawn(panel: Panel, spans: tuple[float, float, float, float], x_title: str) -> np.ndarray:
    picture = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    x_low, x_high, y_low, y_high = spans

    def at(x: float, y: float) -> tuple[int, int]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across), round(up)

    def write(text: str, place: tuple[int, int], colour: tuple[int, int, int] = INK) -> None:
        cv2.putText(picture, text, place, _FONT, 0.4, colour, 1, cv2.LINE_AA)

    write(panel.title, (LEFT, 18))
    for share in np.linspace(0.0, 1.0, 5):
        y = y_low + share * (y_high - y_low)
        cv2.line(picture, at(x_low, y), at(x_high, y), FAINT, 1)
        write(f"{y:.2f}", (4, at(x_low, y)[1] + 4))
        x = x_low + share * (x_high - x_low)
        write(f"{x:.0f}", (at(x, y_low)[0] - 10, HEIGHT - BOTTOM + 16))
    write(x_title, (WIDTH // 2, HEIGHT - 6))
    if panel.mark is not None:
        where, name = panel.mark
        cv2.line(picture, at(where, y_low), at(where, y_high), INK, 1)
        write(name, (at(where, y_high)[0] + 4, TOP + 12))
    shown = [line for line in panel.lines if line.places]
    for index, (line, colour) in enumerate(zip(shown, COLOURS, strict=False)):
        found = np.array([at(*place) for place in line.places], np.int32).reshape(-1, 1, 2)
        cv2.polylines(picture, [found], False, colour, 2, cv2.LINE_AA)
        write(line.label, (WIDTH // 2 - 20, HEIGHT - BOTTOM - 70 + 16 * index), colour)
    return picture
