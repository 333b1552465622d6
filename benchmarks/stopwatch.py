"""Seconds of what a device does."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds by name; waits for the device at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def timed(self, name: str, times: int = 1) -> Iterator[None]:
        """The seconds of one of the `times` that the block does the same."""
        start = self.now()
        yield
        self.seconds.setdefault(name, []).append((self.now() - start) / times)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])
