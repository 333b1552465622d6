"""The viewer as a user starts it."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONG = 300
"""Seconds after which a process is given up."""


def started(folder: Path, *words: str, **how) -> subprocess.Popen:
    """`python -m dreammapping view FOLDER ...`, whose output is read as text."""
    return subprocess.Popen(
        [sys.executable, "-m", "dreammapping", "view", str(folder), *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def address_said(lines: Iterable[str]) -> str:
    """The address that a viewer prints once it listens."""
    for line in lines:
        if line.startswith("viewer: "):
            return line.split()[1]
    raise AssertionError("the viewer ended")
