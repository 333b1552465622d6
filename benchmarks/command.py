"""The end of a benchmark's command line: measure, keep the numbers, print the table, and the exit code."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic


def finish_measurement(
    measure: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str], path: Path
) -> int:
    """Write what `measure` returns to `path` as JSON and print its table; 0, or 2 for a user's mistake."""
    try:
        result = measure()
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(table(result) + "\n")
    return 0


def finish_cells_and_report(work: Callable[[], tuple[list[str], str]]) -> int:
    """Print the report of many runs; 0, 1 where runs failed, 2 for a user's mistake, 130 for Ctrl-C.

    Args:
        work: trains and judges what is missing; returns the messages of what failed, and the report.
    """
    try:
        failures, text = work()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    sys.stdout.write(text + "\n")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0
