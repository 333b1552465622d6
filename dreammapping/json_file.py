"""`--json FILE` of a verb: where its numbers go, looked at before any work is done for them."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from utils.console import write_out
from utils.errors import UserError
from utils.files import check_writable, is_stream, write_text
from utils.paths import user_path

STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")
"""Links to what a process has open, which may be a file: written to, never replaced."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option itself."""
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - for standard output")


class JsonFile:
    """What `--json` names: a file that is not there, is empty, or has numbers of the verb's; a pipe; or `-`.

    Args:
        word: as it was given; None where it was not.
        keys: what an object of the verb's numbers always has. So a run, or answers of a study, that come after a
            `--json` taken for a switch, are not written over.

    Raises:
        UserError: it is another file, or cannot be written.
    """

    def __init__(self, word: str | None, *keys: str) -> None:
        self._instead = word == "-"
        self._path = None if word in (None, "-") else user_path(word, "--json")
        if self._path is not None and not self._is_open():
            self._path = Path(os.path.realpath(self._path))  # a link stays, and leads to the numbers
            _refuse_others(self._path, keys)
            check_writable(self._path.parent)

    def write(self, numbers: dict[str, Any], text: str) -> None:
        """Write the numbers, and `text` to standard output; to that the numbers alone where `-` was given.

        Raises:
            UserError: one of the two cannot be written; the other is.
        """
        told = json.dumps(numbers, indent=2, allow_nan=False) + "\n"
        try:
            write_out(told if self._instead else text + "\n")
        finally:
            if self._path is not None:
                self._write(told)

    def _write(self, told: str) -> None:
        assert self._path is not None
        if not self._is_open():
            write_text(self._path, told)
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(told)
        except BrokenPipeError:
            pass  # nobody reads on
        except OSError as error:
            raise UserError(
                f"--json: {self._path}: cannot be written ({error.strerror}); name another"
            ) from error

    def _is_open(self) -> bool:
        assert self._path is not None
        return is_stream(self._path) or os.path.abspath(self._path).startswith(STREAMS)


def _refuse_others(path: Path, keys: tuple[str, ...]) -> None:
    if not os.path.lexists(path):
        return
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text.strip() else dict.fromkeys(keys)
        ours = isinstance(found, dict) and found.keys() >= set(keys)
    except IsADirectoryError as error:
        raise UserError(f"--json: {path}: expected a file, found a folder; name a file in it") from error
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise UserError(
            f"--json: {path}: expected no file, or one with numbers of this command, found another; name another FILE"
        )
