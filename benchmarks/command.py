"""The end of a benchmark's command line: measure, keep the numbers, print the table, and the exit code."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import atomic
from utils.repository import ROOT

RESULTS = ROOT / "benchmarks" / "results"
"""Where the numbers are kept."""


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
