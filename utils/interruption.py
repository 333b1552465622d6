"""Ctrl-C and SIGTERM as a wish to stop after the present iteration, not as an accident in the middle of it."""

import signal
from types import FrameType, TracebackType


class Interruption:
    """Within the block, the first SIGINT or SIGTERM is remembered; a second one acts at once.

    `exit_code` is 128 plus the signal's number (130 for Ctrl-C, 143 for SIGTERM), as shells expect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal
