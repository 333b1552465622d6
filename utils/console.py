"""Standard output and error as they may be: closed, full, left by their reader, without a letter."""

import codecs
import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from utils.errors import UserError

READABLE = "dreammapping.readable"
"""How a console encodes what it has no letter for."""


def show_every_letter() -> None:
    """Let what is printed show a letter that the console's encoding lacks as its number (`\\u732b`), not stop for it,
    and bytes of a path that the locale could not read as these bytes.

    To be called once, where a program starts; streams that are closed, replaced or left by their reader stay as they
    are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            with contextlib.suppress(OSError):  # it is flushed first
                stream.reconfigure(errors=READABLE)


def _readable(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    shown = [
        letter.encode("ascii", "surrogateescape" if "\udc80" <= letter <= "\udcff" else "backslashreplace")
        for letter in letters
    ]
    return b"".join(shown), error.end


codecs.register_error(READABLE, _readable)


def warning_once() -> logging.Handler:
    """A handler that writes to standard error, each warning once: what is remarked of one combination of settings is
    true of many."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return record.levelno < logging.WARNING or not (text in said or said.add(text))

    handler = logging.StreamHandler()
    handler.addFilter(is_new)
    return handler


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


class Forgiving:
    """A text stream whose reader may leave: what cannot be written is lost, and the work goes on."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream or _Nowhere()  # None: a program without a console

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def forgiving_errors() -> Iterator[None]:
    """Within the block standard error, with all logs and progress, takes what it can and stops nothing.

    At its end nothing is left in either stream that Python would fail to write when it exits.
    """
    before = sys.stderr
    sys.stderr = Forgiving(before)
    try:
        yield
    finally:
        sys.stderr = before
        for stream in (sys.stdout, before):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                _lead_nowhere(stream)


def write_out(text: str) -> None:
    """Write what a command was asked for to standard output; that nobody reads on, as in `| head`, is no error.

    Raises:
        UserError: it cannot be written, and so the command is not done.
    """
    try:
        if sys.stdout is None:
            raise ValueError("it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _lead_nowhere(sys.stdout)
    except UnicodeEncodeError as error:
        raise UserError(
            f"standard output: expected an encoding that has every letter, got {error.encoding}; set PYTHONUTF8=1"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"standard output: cannot be written ({getattr(error, 'strerror', None) or error}); write to another "
            "file or a console"
        ) from error


def complain(text: str) -> None:
    """One line on standard error, as far as there is one."""
    line = " ".join(part for part in text.splitlines() if part)
    Forgiving(sys.stderr).write(f"{line}\n")


def _lead_nowhere(stream: Any) -> None:
    """Let what a stream still holds, and all that follows, be lost."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
