"""Lines of `metrics.jsonl`, written when their numbers have arrived from the device."""

import time
from collections import deque
from collections.abc import Callable, Mapping

from torch import Tensor

from utils.readback import Readback
from utils.run import Run


class Metrics:
    """The numbers of logged iterations, on their way into the file.

    Args:
        step: the iteration after which the first line's time begins.
        written: called with every line once it is in the file.
    """

    def __init__(self, run: Run, step: int, written: Callable[[dict[str, float]], None]) -> None:
        self._run, self._step, self._written = run, step, written
        self._pending: deque[tuple[int, Readback, dict[str, float]]] = deque()
        self._since = time.perf_counter()

    def add(self, step: int, values: Mapping[str, Tensor | float], known: Mapping[str, float]) -> None:
        """The numbers of an iteration, wherever they still are, and those that are known on the host."""
        now = time.perf_counter()
        seconds = round((now - self._since) / (step - self._step), 4)
        self._step, self._since = step, now
        self._pending.append((step, Readback(values), {**known, "seconds_per_iteration": seconds}))

    def write_arrived(self) -> None:
        """Write the lines whose numbers are here, in order, and wait for none."""
        while self._pending and self._pending[0][1].ready:
            step, values, known = self._pending.popleft()
            rounded = {name: round(value, 6) for name, value in values.values().items()}
            line = {"step": step, **rounded, **known}
            self._run.log(line)
            self._written(line)

    def write_all(self) -> None:
        """Write every line, waiting for its numbers."""
        for _, values, _ in self._pending:
            values.values()
        self.write_arrived()
