"""Standard output and error of a console that cannot show every letter."""

import io
import sys


def show_every_letter() -> None:
    """Let what is printed show a letter that the console's encoding lacks as its number (`\\u732b`), not stop for it.

    To be called once, where a program starts; streams that are closed or replaced stay as they are.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed:
            stream.reconfigure(errors="backslashreplace")
