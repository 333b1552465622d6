"""Ctrl-C, SIGTERM and a closed terminal as a wish to stop after the present iteration, not as an accident in it."""

import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from utils.errors import Stopped

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""SIGHUP is what a closed terminal sends; Windows has none."""
ONE_WISH = 0.5
"""Seconds within which signals are one wish: what a terminal sends to all, `timeout` and wrappers pass on again."""


@contextmanager
def as_ctrl_c() -> Iterator[threading.Event]:
    """Within the block SIGTERM and a closed terminal raise `Stopped`, as does Ctrl-C: so what is open is closed, and
    what was half done taken back. One that was ignored, as under `nohup`, stays ignored.

    Yields what is to be set when there is nothing more to stop: one Ctrl-C may come twice, as `timeout` passes it on.
    """
    over = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if not over.is_set():
            raise Stopped(number=number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = handler
                signal.signal(number, stop)
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Signal(Stopped):
    """What a signal raises within `told_apart`: sent once more where it is dropped before it has left that block.

    No plain KeyboardInterrupt, for one that passes an `exec`, which dataclasses are made by, has Python end itself by
    the signal, whatever the program's exit code.
    """

    latest: "Callable[[], _Signal | None]" = staticmethod(lambda: None)

    def __init__(self, message: str, number: int, heard: threading.Event) -> None:
        super().__init__(message, number)
        self.since, self.heard = time.monotonic(), heard
        _Signal.latest = weakref.ref(self)
        self.dropped = weakref.finalize(self, _send_again, number, heard)
        self.dropped.atexit = False


AGAIN = 0.1
"""Seconds until a signal that was dropped is sent again: what dropped it is over by then."""


def _send_again(number: int, heard: threading.Event) -> None:
    timer = threading.Timer(AGAIN, _send, (number, heard))  # here it would be dropped in the same place
    timer.daemon = True
    timer.start()


def _is_under_way() -> bool:
    """Whether the wish to stop has just been raised and is neither dropped nor out of its block: what cleans up on its
    way is not to be stopped by the same wish."""
    latest = _Signal.latest()
    return latest is not None and not latest.heard.is_set() and time.monotonic() - latest.since <= ONE_WISH


def _is_loading(name: str) -> bool:
    """Whether a module is just being imported. An exception in the middle of torch may abort the whole process, for
    its code in C++ expects none."""
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


def _send(number: int, heard: threading.Event) -> None:
    if heard.is_set():
        return
    if hasattr(signal, "pthread_kill"):  # which wakes the main thread, too; Windows has none
        signal.pthread_kill(threading.main_thread().ident, number)
    else:
        signal.raise_signal(number)


@contextmanager
def told_apart() -> Iterator[None]:
    """Within the block a signal that a library takes for a fault of its own, or of a file that it reads, is a signal:
    the interruption leaves the block, and not the error that came of it. One that a library drops, as bare `except:`
    and finalizers do, comes again; and while torch is imported, once that is done."""
    raised: list[int] = []
    heard = threading.Event()

    def watched(
        handler: Callable[[int, FrameType | None], object],
    ) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if _is_loading("torch"):
                _send_again(number, heard)
                return
            if _is_under_way():
                return
            try:
                handler(number, frame)
            except KeyboardInterrupt as error:
                if isinstance(error, _Signal):  # an outer block's, which hears of it by this one
                    error.dropped.detach()
                number = getattr(error, "number", signal.SIGINT)
                raised.append(number)
                # nothing here may refer to it, or nobody would see it dropped
                raise _Signal(str(error), number, heard) from None

        return handle

    tell = sys.unraisablehook

    def tell_others(what: "sys.UnraisableHookArgs") -> None:
        if not isinstance(what.exc_value, _Signal):
            tell(what)

    before = {}
    if threading.current_thread() is threading.main_thread():
        sys.unraisablehook = tell_others
        for number in SIGNALS:
            if callable(handler := signal.getsignal(number)):  # SIG_IGN and SIG_DFL are none
                before[number] = handler
                signal.signal(number, watched(handler))
    try:
        yield
    except Exception as error:
        if raised:
            raise Stopped(number=raised[-1]) from error
        raise
    finally:
        heard.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        if sys.unraisablehook is tell_others:
            sys.unraisablehook = tell


class Interruption:
    """Within the block, the first signal is remembered; one that comes later than `ONE_WISH` after it acts at once.

    Only the main thread can be asked so by the system: in any other, such as a worker of a server, the block changes
    nothing. A signal that was ignored before, as `nohup` ignores SIGHUP, stays ignored.

    `exit_code` is 128 plus the signal's number (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP), as shells expect.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since: float | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self.signal, self._since = number, now
        elif now - self._since > ONE_WISH:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # None is a handler that was not set from Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal
