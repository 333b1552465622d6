"""Curves and bars as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.images import write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 640, 480, 120
"""Pixels of a panel, and of an inch: the size of letters follows from it."""


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
    """Panels side by side, all with the same axes; each is `WIDTH` by `HEIGHT` pixels.

    Raises:
        UserError: the file cannot be written.
    """
    figure = _figure(len(panels) * WIDTH)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for panel, each in zip(panels, axes, strict=True):
        for line in panel.lines:
            if line.places:
                each.plot(*zip(*line.places, strict=True), label=line.label)
        if panel.mark is not None:
            each.axvline(panel.mark[0], color="black", linestyle=":", label=panel.mark[1])
        each.set(title=panel.title, xlabel=x_title)
        each.grid(alpha=0.3)
        each.legend(fontsize="small")
    _write(figure, path)


def write_bars(path: Path, labels: Sequence[str], parts: Mapping[str, Sequence[float]], x_title: str) -> None:
    """A horizontal bar for each label, from above, made of `parts` one after the other; `WIDTH` by `HEIGHT` pixels.

    Args:
        parts: by name, a number for each label; at least one.

    Raises:
        UserError: the file cannot be written.
    """
    figure = _figure(WIDTH)
    axes = figure.subplots()
    ends = np.zeros(len(labels))
    for name, lengths in parts.items():
        bars = axes.barh(labels, lengths, left=ends, label=name)
        ends = ends + np.asarray(lengths)
    axes.bar_label(bars, [f"{end:.2f}" for end in ends], padding=3)
    axes.set(xlabel=x_title, xlim=(0, 1.15 * ends.max()))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
    _write(figure, path)


def _figure(width: int) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")


def _write(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    write_picture(path, np.asarray(canvas.buffer_rgba())[..., :3].copy())
