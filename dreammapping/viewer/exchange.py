"""What a running optimisation and a viewer in another process leave for each other: files in a folder of their own.

The loop leaves `snapshot.npz`, replaced as a whole; the viewer leaves `save`, which the loop takes away, and keeps
`pause` young as long as it wants the loop to wait. Neither ever waits for the other to read.
"""

import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scene.gaussian_model import GaussianModel
from utils.files import atomic, remove_unfinished

PAUSE_LASTS = 5.0
"""Seconds after which a pause that nobody renews is over: its viewer is gone."""


@dataclass(frozen=True)
class Snapshot:
    """An optimisation after an iteration.

    Attributes:
        gaussians: on the CPU; None where something else is optimised.
        picture: what was last shown, and what the prior made of it.
    """

    step: int
    gaussians: GaussianModel | None
    picture: UInt8[np.ndarray, "H W 3"]


class Exchange:
    """The folder, as both sides see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._snapshot, self._save, self._pause = (
            folder / name for name in ("snapshot.npz", "save", "pause")
        )

    def leave(self, step: int, gaussians: GaussianModel | None, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        """Leave a snapshot in the place of the last one.

        Raises:
            UserError: it cannot be written.
        """
        arrays: dict[str, np.ndarray] = {"step": np.array(step), "picture": picture}
        if gaussians is not None:
            arrays["active_sh_degree"] = np.array(gaussians.active_sh_degree)
            arrays |= {name: _on_host(getattr(gaussians, name)) for name in gaussians.parameter_names}
        with atomic(self._snapshot, durable=False) as temporary:
            np.savez(temporary, **arrays)  # pyright: ignore[reportArgumentType]

    def newest(self, after: float) -> tuple[float, Snapshot] | None:
        """When the newest snapshot was left, and that snapshot; None where there is none later than `after`."""
        try:
            left = self._snapshot.stat().st_mtime
            if left <= after:
                return None
            with self._snapshot.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return left, _snapshot(dict(arrays))
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
        ):  # between two of them, or the run has ended
            return None

    def ask_to_save(self) -> None:
        """Ask the loop to save after its present iteration."""
        with suppress(OSError):  # the run has ended
            self._save.touch()

    def takes_save(self) -> bool:
        """Whether the viewer has asked to save since this was last asked."""
        try:
            self._save.unlink()
        except OSError:
            return False
        return True

    def renew_pause(self, wanted: bool) -> None:
        """Let the loop wait for a few seconds more, or no longer."""
        with suppress(OSError):
            self._pause.touch() if wanted else self._pause.unlink()

    @property
    def paused(self) -> bool:
        """Whether the loop shall wait now."""
        try:
            return 0 <= time.time() - os.stat(self._pause).st_mtime < PAUSE_LASTS
        except OSError:
            return False

    def remove(self) -> None:
        """Remove what was left, and the folder where nothing else is in it."""
        remove_unfinished(self.folder, ())
        for path in (self._snapshot, self._save, self._pause):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):  # gone, or somebody's file lies there
            self.folder.rmdir()


def _on_host(tensor: Tensor) -> Float[np.ndarray, "N *_"]:
    return tensor.detach().float().cpu().numpy()


def _snapshot(arrays: Mapping[str, np.ndarray]) -> Snapshot:
    gaussians = None
    if "means" in arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in GaussianModel.parameter_names}
        gaussians = GaussianModel(**tensors)
        gaussians.active_sh_degree = int(arrays["active_sh_degree"])
    return Snapshot(int(arrays["step"]), gaussians, arrays["picture"])
