"""Files written while the work goes on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Writer:
    """One thread that does what it is given, in order. What fails there is raised here, at the next call.

    Args:
        most: tasks that may wait; the next one waits for the oldest, so that memory stays bounded.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Do `function(*arguments)` soon."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= self._most):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(function, *arguments))

    def flush(self) -> None:
        """Wait until everything is done."""
        while self._waiting:
            self._waiting.popleft().result()
