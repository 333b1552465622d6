"""Curves as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.images import write_picture

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((len(panels) * WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
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
    canvas.draw()
    write_picture(path, np.asarray(canvas.buffer_rgba())[..., :3].copy())
