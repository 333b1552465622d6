"""Files of ours in a folder that anybody may use: replaced as this program left them, and never where others made or
changed them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text
from utils.lock import Lock

RECORD = ".dreammapping-files"
"""In such a folder: the names of those that this program made, each with the SHA-256 of what it left there; null where
it has not ended yet, or was killed."""

OUTPUT = "choose another --output"
"""What a command can do instead, which has this option."""
LOCK = f"{RECORD}.lock"
"""Held while files are made there, so that those of two commands do not mix."""
WAIT = 60.0
"""Seconds that another command may take to write its own."""


@contextlib.contextmanager
def making(folder: Path, names: Collection[str], *, instead: str = OUTPUT) -> Iterator[None]:
    """Within the block this process alone makes files of ours in a folder: these, which are known as ours from then on.

    Args:
        instead: what else can be done, for who is refused.

    Raises:
        UserError: as `refuse_others`, or the folder cannot be written.
        InUse: another command makes files there for longer than `WAIT`; the message says which.
    """
    refuse_others(folder, names, instead=instead)
    with _held(folder, instead):
        note(folder, names, instead=instead)
        try:
            yield
        except BaseException:
            with contextlib.suppress(UserError):  # a full disk, of which is told already
                seal(folder)
            raise
        seal(folder)


def adopt(folder: Path, names: Collection[str]) -> None:
    """Take these files for ours where all are there and no record is: an earlier version kept none in its folders."""
    if not (folder / RECORD).exists() and all((folder / name).is_file() for name in names):
        _write(folder, dict.fromkeys(names))


@contextlib.contextmanager
def _held(folder: Path, instead: str) -> Iterator[None]:
    """Hold the lock; its file goes before it is let go, and who waits for that file then makes another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with Lock(folder / LOCK, wait=WAIT, instead=instead):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes it itself
                (folder / LOCK).unlink()


def refuse_others(folder: Path, names: Collection[str], *, instead: str = OUTPUT) -> None:
    """Raise UserError where somebody else's file has one of the names, or one of ours was changed since."""
    ours = recorded(folder)
    for name in names:
        path = folder / name
        if os.path.lexists(path) and not (name in ours and ours[name] in (None, _digest(path))):
            found = "one that was changed since" if name in ours else "another"
            raise UserError(
                f"{path}: expected no file, or one that this program made there, found {found}; move it, or "
                f"{instead}"
            )


def note(folder: Path, names: Collection[str], *, instead: str = OUTPUT) -> None:
    """Note that this program makes files of these names; to be done before it does, and `seal` after.

    Raises:
        UserError: as `refuse_others`, or the folder cannot be written.
    """
    refuse_others(folder, names, instead=instead)
    _write(folder, recorded(folder) | dict.fromkeys(names))


def seal(folder: Path) -> None:
    """Of the files that were noted keep what is in them: who changes one makes it their own. What was not made is
    nobody's yet.

    Raises:
        UserError: the folder cannot be written.
    """
    ours = recorded(folder)
    there = {name: digest or _digest(folder / name) for name, digest in ours.items()
             if os.path.lexists(folder / name)}  # fmt: skip
    if not there:
        (folder / RECORD).unlink(missing_ok=True)
    elif there != ours:
        _write(folder, there)


def recorded(folder: Path) -> dict[str, str | None]:
    """The files that this program made in a folder, as `RECORD` has them; none where it has no record, or a broken one.

    An earlier version kept a list of names alone.
    """
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = known.items() if isinstance(known, dict) else ((name, None) for name in known)
        return {name: digest for name, digest in names if isinstance(name, str)}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write(folder: Path, ours: dict[str, str | None]) -> None:
    write_text(folder / RECORD, json.dumps(dict(sorted(ours.items())), indent=0) + "\n")


def _digest(path: Path) -> str:
    """SHA-256 of a file; "" of what is none that can be read."""
    try:
        if path.is_symlink() or not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
