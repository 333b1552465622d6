"""Files that a user gives to be read."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from utils.errors import UserError


def regular_file(path: Path | str) -> Path:
    """The path, of a file that can be read to its end: a pipe or a device would be waited for without one.

    Raises:
        UserError: there is no file, or none that may be looked at.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); check the path") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise UserError(f"{path}: expected a file, got {kind}; check the path")
    return Path(path)


def json_object(path: Path) -> dict[str, Any]:
    """What a file of ours says; nothing where there is none, or a damaged one."""
    try:
        found = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class WithHeader:
    """An open file with another header in the place of what was read of it."""

    def __init__(self, header: bytes, file: BinaryIO | io.BytesIO) -> None:
        self._header, self._file = header, file
        start = file.tell()
        self._whole = file.seek(0, os.SEEK_END)
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; those of the header come alone.

        A broken file may tell its parser to read more than memory holds, which a file would reserve.
        """
        if not self._header:
            return self._file.read(min(size, self._whole))
        end = len(self._header) if size < 0 else size
        start, self._header = self._header[:end], self._header[end:]
        return start

    def readline(self) -> bytes:
        """The next line; the header must end with one."""
        return self.read(self._header.index(b"\n") + 1) if self._header else self._file.readline()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a text wrapper would have the file warn that nobody closes it
            raise AttributeError(name)
        return getattr(self._file, name)
