"""Progress on a console: a line for each worker and one for all; where there is no terminal, a line for each end."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from dreammapping.sweep.overview import Overview
from utils.console import Forgiving

PLAIN = 60.0
"""Seconds between plain lines while nothing ends."""


class Progress:
    """Shows an overview; as a context, leaves the console in order.

    Args:
        workers: lines to keep free.
    """

    def __init__(self, overview: Overview, total: int, workers: int, *, quiet: bool = False) -> None:
        self._overview, self._quiet = overview, quiet
        self._terminal = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._bars: list[tqdm] = []
        if self._terminal:
            bar = {"file": Forgiving(sys.stderr), "dynamic_ncols": True, "leave": False}
            self._bars = [
                tqdm(position=index, bar_format="{desc} {percentage:3.0f}% |{bar}|", total=1, **bar)
                for index in range(workers)
            ]
            self._bars.append(tqdm(position=workers, total=total, bar_format="{desc} |{bar}|", **bar))
        self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in reversed(self._bars):
            bar.close()

    def show(self) -> None:
        """Look again, and show it."""
        for name in self._overview.look():
            status = self._overview.finals[name]
            reason = f": {status.reason}" if status.reason else ""
            self._say(f"{status.state} {name}{reason}")
        if self._terminal:
            self._draw()
        elif time.monotonic() - self._said > PLAIN:
            self._say("")

    def _draw(self) -> None:
        *lines, last = self._bars
        for index, bar in enumerate(lines):
            working = self._overview.working[index] if index < len(self._overview.working) else None
            beat = working.beat if working is not None else None
            bar.total, bar.n = (beat.iterations or 1, beat.step) if beat is not None else (1, 0)
            bar.set_description_str(working.name if working is not None else "waiting")
        last.n = self._overview.work
        last.set_description_str(self._overview.line)

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        if self._quiet:
            return
        if self._terminal:
            tqdm.write(text, file=Forgiving(sys.stderr))
        else:
            Forgiving(sys.stderr).write(f"{text}{' | ' if text else ''}{self._overview.line}\n")
