"""The viewer of a run that goes on: another process, which the loop never waits for unless it is asked to.

The run's process imports nothing of the viewer's; it leaves snapshots, at most a twentieth of its time, and looks
whether somebody asked it to save or to pause.
"""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from jaxtyping import UInt8

from dreammapping.optimization import Optimization
from dreammapping.outputs import process_picture
from dreammapping.viewer.exchange import Exchange
from dreammapping.viewer.needs import require_viser
from scene.gaussian_model import GaussianModel
from utils.checkpoint import first_line
from utils.errors import UserError

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "dreammapping", "view")
PERIOD = 1.0
"""Seconds from one snapshot to the next, at least."""
SHARE = 20
"""A snapshot is due when this many times its predecessor's seconds have gone by."""
LARGEST_PICTURE = 900
"""Pixels of the longer side of a snapshot's picture."""


class Beside:
    """Within the block, a viewer process shows the run.

    Args:
        folder: the run's.
        port: where the browser finds it, or at the next free port.

    Raises:
        UserError: the viewer's package is not installed, or its process cannot be started.
    """

    def __init__(self, folder: Path, port: int) -> None:
        require_viser("viewer=true")
        self._run, self._port = folder, port
        self._due = 0.0
        self._broken = False

    def __enter__(self) -> "Beside":
        exchange = None
        try:
            self.exchange = exchange = Exchange(Path(tempfile.mkdtemp(prefix="dreammapping-viewer-")))
            self._process = self._start()
        except OSError as error:
            if exchange is not None:
                exchange.remove()
            raise UserError(
                f"viewer=true: expected a viewer that starts, got: {error}; leave it out, or set TMPDIR to "
                "another folder"
            ) from error
        return self

    def _start(self) -> "subprocess.Popen[bytes]":
        folder, exchange = str(self._run.resolve()), str(self.exchange.folder)
        return subprocess.Popen(
            [*COMMAND, folder, "--port", str(self._port), "--beside", exchange],
            cwd=ROOT,
            stdin=subprocess.PIPE,  # its end tells the viewer that the run is over, however that ended
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run alone
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.exchange.remove()

    def after(
        self, step: int, optimization: Optimization, save: Callable[[], None], stopping: Callable[[], bool]
    ) -> None:
        """What is due after an iteration: a snapshot, a wish to save, a wish to pause.

        Args:
            save: saves the run. stopping: whether it is to stop, which ends a pause.
        """
        if self._process.poll() is not None:
            return
        now = time.monotonic()
        if now >= self._due and not self._broken:
            self._leave(step, optimization)
            self._due = time.monotonic() + max(PERIOD, SHARE * (time.monotonic() - now))
        if self.exchange.takes_save():
            save()
            log.info("%s: saved, as the viewer asked", optimization.subject.save(self._run, step))
        while self.exchange.paused and not stopping() and self._process.poll() is None:
            time.sleep(0.1)

    def _leave(self, step: int, optimization: Optimization) -> None:
        gaussians = getattr(optimization.subject, "gaussians", None)
        try:
            self.exchange.leave(
                step,
                gaussians if isinstance(gaussians, GaussianModel) else None,
                _small(process_picture(optimization.pictures())),
            )
        except (UserError, RuntimeError, MemoryError) as error:  # a full disk, a full card
            self._broken = True
            log.warning("%s; the viewer stays at what it has", first_line(error))


def _small(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
    scale = LARGEST_PICTURE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
