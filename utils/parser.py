"""The words of a command line, and what is said where they are wrong."""

import argparse
from typing import Any, NoReturn

from utils.console import complain


class Parser(argparse.ArgumentParser):
    """argparse's, but a mistake is one line, as every other of this program's, and not the usage before it."""

    def add_argument(self, *names: Any, **how: Any) -> argparse.Action:
        """argparse's, but words of which there may be none are not called required where others are missing."""
        if how.get("nargs") == "*":
            how.setdefault("default", [])
        return super().add_argument(*names, **how)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to see what is right.

        Raises:
            SystemExit: always, with 2.
        """
        complain(f"error: {self.prog}: {message}; {self.prog} --help lists all")
        raise SystemExit(2)
