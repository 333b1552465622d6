"""Pages of ours, told from those of others, and from ours that somebody has edited: each holds a digest of itself."""

import errno
import hashlib
import re
from pathlib import Path

GENERATOR = "DreamMapping"
"""What a page of ours names itself in its head; a file that does not is never replaced."""
HEAD = 2000
"""Bytes in which it does."""
_MARK = f'name="generator" content="{GENERATOR}"'.encode()
_DIGEST = re.compile(_MARK + rb' data-sha256="([^"]*)"')


def signed(html: str) -> str:
    """A page whose mark has an empty digest, with that of all its other bytes."""
    page = html.encode()
    found = _DIGEST.search(page, 0, HEAD)
    assert found is not None, "a page of ours has its mark"
    start, end = found.span(1)
    return (page[:start] + _digest(page, start, end) + page[end:]).decode()


def is_ours(path: Path) -> bool:
    """Whether a file is a page of ours, be it edited or not.

    Raises:
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")  # a pipe would be waited for
    with path.open("rb") as file:
        return _MARK in file.read(HEAD)


def is_as_left(path: Path) -> bool:
    """Whether a file is a page as this program left it. Of pages of an earlier version, without a digest, all are.

    Raises:
        OSError: it cannot be read.
    """
    if not is_ours(path):
        return False
    page = path.read_bytes()
    found = _DIGEST.search(page, 0, HEAD)
    return found is None or _digest(page, *found.span(1)) == found[1]


def _digest(page: bytes, start: int, end: int) -> bytes:
    """SHA-256 of a page without the digest that it holds."""
    return hashlib.sha256(page[:start] + page[end:]).hexdigest().encode()
