"""The end of a benchmark's command line: measure, keep the numbers, print the table, and the exit code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.command import exit_code
from utils.console import write_out
from utils.files import write_text
from utils.repository import ROOT

RESULTS = ROOT / "benchmarks" / "results"
"""Where the numbers are kept."""


def finish_measurement(
    measure: Callable[[], dict[str, Any]], table: Callable[[dict[str, Any]], str], path: Path
) -> int:
    """Write what `measure` returns to `path` as JSON and print its table; returns the exit code."""

    def finish() -> int:
        result = measure()
        write_text(path, json.dumps(result, indent=2) + "\n")
        write_out(table(result) + "\n")
        return 0

    return exit_code(finish, stopped="stopped")
