"""Progress on a console: a line for each worker and one for all; where there is no terminal, a line for each end."""

import sys
import time
from types import TracebackType
from typing import Protocol

from tqdm import tqdm

from dreammapping.sweep.overview import Overview
from utils.console import Forgiving

PLAIN = 60.0
"""Seconds between plain lines while nothing ends."""
RARELY = 20
"""Times the length of a look that pass until the next."""
LINES = 16
"""Workers that are shown, at most."""


class Shows(Protocol):
    """Whoever looks, twice a second while workers are at work, at what has become of the runs."""

    def show(self, *, last: bool = False) -> None: ...


class Progress:
    """Shows an overview; as a context, leaves the console in order."""

    def __init__(self, overview: Overview, *, quiet: bool = False) -> None:
        self._overview, self._quiet = overview, quiet
        self._terminal = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bars: list[tqdm] = []
        self._total = self._bar(0, "{desc}", overview.size) if self._terminal else None
        self._said = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in reversed([*filter(None, [self._total]), *self._bars]):
            bar.close()

    def show(self, *, last: bool = False) -> None:
        """Look again, and show it; of thousands of runs not at every call, but always at the `last`."""
        began = time.monotonic()
        if began < self._next and not last:
            return
        self._look()
        self._next = began + RARELY * (time.monotonic() - began)

    def _look(self) -> None:
        for name in self._overview.look():
            status = self._overview.finals[name]
            reason = f": {status.reason}" if status.reason else ""
            self._say(f"{status.state} {name}{reason}")
        if self._total is not None:
            self._draw(self._total)
        elif time.monotonic() - self._said > PLAIN:
            self._say("")

    def _bar(self, position: int, form: str, total: float) -> tqdm:
        return tqdm(
            position=position,
            bar_format=form,
            total=total,
            file=Forgiving(sys.stderr),
            dynamic_ncols=True,
            leave=False,
        )

    def _draw(self, total: tqdm) -> None:
        """All runs on the first line, and a line for each that somebody works at."""
        total.set_description_str(self._overview.line)
        working = self._overview.working[:LINES]
        while len(self._bars) < len(working):
            self._bars.append(self._bar(len(self._bars) + 1, "{desc} {percentage:3.0f}% |{bar}|", 1))
        for index, bar in enumerate(self._bars):
            beat = working[index].beat if index < len(working) else None
            bar.total, bar.n = (beat.iterations or 1, beat.step) if beat is not None else (1, 0)
            bar.set_description_str(working[index].name if index < len(working) else "")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if self._quiet:
            return
        if self._terminal:
            tqdm.write(text, file=Forgiving(sys.stderr))
        else:
            Forgiving(sys.stderr).write(f"{text}{' | ' if text else ''}{self._overview.line}\n")
