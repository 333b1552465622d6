"""A run that goes on: its newest snapshot, losses, what the prior predicts; a pause, and a wish to save."""

import contextlib
import os
import sys
import threading
import time
from typing import Any

import numpy as np

from dreammapping.finished import FinishedRun
from dreammapping.viewer.exchange import Exchange
from dreammapping.viewer.saved import quoted
from dreammapping.viewer.stage import Stage
from utils.errors import UserError

LOOK = 0.5
"""Seconds between looks for a new snapshot."""


class Running:
    """The controls of a run that goes on, and the thread that keeps them up to date."""

    def __init__(self, stage: Stage, run: FinishedRun, exchange: Exchange) -> None:
        self._stage, self._run, self._exchange = stage, run, exchange
        self._losses: dict[str, Any] = {}
        gui = stage.server.gui
        self._about = gui.add_markdown(f"{quoted(run.prompt)}\n\nwaiting for the first iteration")
        with gui.add_folder("Run"):
            self._pause = gui.add_checkbox("Pause", False)
            save = gui.add_button("Save now")
        save.on_click(lambda _: self._exchange.ask_to_save())
        self._pause.on_update(lambda _: self._exchange.renew_pause(self._pause.value))
        self._picture: Any = None
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        seen = 0.0
        while True:
            if self._pause.value:
                self._exchange.renew_pause(True)
            newest = self._exchange.newest(seen)
            if newest is not None:
                seen, snapshot = newest
                count = "" if snapshot.gaussians is None else f", {len(snapshot.gaussians):,} Gaussians"
                last = self._run.config.iterations
                self._about.content = (
                    f"{quoted(self._run.prompt)}\n\niteration {snapshot.step:,} of {last:,}{count}"
                )
                if snapshot.gaussians is not None:
                    self._stage.show(snapshot.gaussians)
                self._show_picture(snapshot.picture)
                self._show_losses()
            time.sleep(LOOK)

    def _show_picture(self, picture: np.ndarray) -> None:
        if self._picture is None:
            self._picture = self._stage.server.gui.add_image(
                picture, label="What the prior sees and predicts"
            )
        self._picture.image = picture

    def _show_losses(self) -> None:
        """Curves of all losses, once two lines of metrics are there."""
        lines = self._metrics()
        if len(lines) < 2:
            return
        steps = np.array([line["step"] for line in lines], float)
        for name in [name for name in lines[-1] if name.startswith("loss/")]:
            values = np.array([np.nan if line.get(name) is None else line[name] for line in lines], float)
            if name in self._losses:
                self._losses[name].data = (steps, values)
            else:
                self._losses[name] = self._stage.server.gui.add_uplot(
                    (steps, values),
                    ({}, {"stroke": "#1f5fbf", "width": 2, "label": name}),
                    scales={"x": {"time": False}},
                    aspect=2.0,
                )

    def _metrics(self) -> list[dict[str, Any]]:
        with contextlib.suppress(UserError):
            return FinishedRun(self._run.folder, self._run.config).metrics  # read anew
        return []


def wait_for_the_end() -> None:
    """Return when the run's process is over: it held the other end of standard input."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
