"""The end of a command line: what a command's work comes to, as an exit code."""

import atexit
import logging
import signal
import sys
import threading
from collections.abc import Callable

from utils.console import complain, forgiving_errors, show_every_letter
from utils.errors import Stopped, UserError
from utils.interruption import SIGNALS, as_ctrl_c, told_apart

STARTS_AGAIN = "stopped; repeat the command to start again"
"""For `exit_code`: a command that keeps nothing of what it has done."""


_at_work: set[int] = set()
"""The threads that are at a command."""


def exit_code(
    work: Callable[[], int],
    *,
    stopped: str = "stopped; repeat the command to continue",
    debug: bool = False,
) -> int:
    """Do a command's work: its own code, 2 for a user's mistake (one line on standard error), 128 plus the number
    of a signal that ended it (130 for Ctrl-C). What the file system refuses, and memory that is full, are a line too.

    Args:
        stopped: what a signal comes to, unless the interruption itself says it.
        debug: let a user's mistake be a traceback.
    """
    thread = threading.get_ident()
    if thread in _at_work:  # that of `python -m dreammapping` around a verb's, say, which answers for both
        try:
            return work()
        except KeyboardInterrupt as error:
            raise Stopped(str(error) or stopped, getattr(error, "number", signal.SIGINT)) from error
    show_every_letter()
    atexit.unregister(_nothing_more)
    with as_ctrl_c() as over, forgiving_errors():
        try:
            try:
                _at_work.add(thread)
                with told_apart():
                    return work()
            finally:
                over.set()
                _at_work.discard(thread)
        except UserError as error:
            if debug:
                raise
            complain(f"error: {error}")
            return 2
        except OSError as error:
            if debug:
                raise
            where = error.filename if error.filename is not None else "this machine"
            complain(
                f"error: {where}: cannot be used ({error.strerror or error}); correct the path, its permissions, or "
                "what the disk lacks"
            )
            return 2
        except (MemoryError, RuntimeError) as error:
            if debug or not _is_out_of_memory(error):
                raise
            complain("error: memory is full; end what else uses it, or ask for less at once")
            return 2
        except KeyboardInterrupt as error:
            complain(str(error) or stopped)
            return 128 + getattr(error, "number", signal.SIGINT)
        finally:
            atexit.register(_nothing_more)  # the last to be registered is the first to be called


def _nothing_more() -> None:
    """While Python ends, which takes a second where torch is loaded: the work has come to what its exit code says, and
    no signal changes that, nor has a library's log a word to add."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.disable()


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # which no verb loads for its help
        return isinstance(error, MemoryError)
    from utils.device import is_out_of_memory

    return is_out_of_memory(error)
