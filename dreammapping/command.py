"""The end of a command line: what a verb's work comes to, as an exit code."""

import os
import sys
from collections.abc import Callable

from utils.errors import UserError


def exit_code(work: Callable[[], int]) -> int:
    """Do a verb's work: its own code, 2 for a user's mistake (one line on standard error), 130 for Ctrl-C."""
    try:
        return work()
    except BrokenPipeError:  # `--help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
