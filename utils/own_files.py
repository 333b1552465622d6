"""Files of ours in a folder that anybody may use: replaced as this program left them, and never where others made or
changed them."""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import TOGETHER, all_or_none, is_stream, remove_unfinished_of, write_text
from utils.inputs import regular_file
from utils.lock import held

RECORD = ".dreammapping-files"
"""In such a folder: the names of those that this program made, each with the SHA-256 of what it left there, null where
it has not ended yet, or was killed; and with the run that they were made of, where that is known."""

OUTPUT = "choose another --output"
"""What a command can do instead, which has this option."""
LOCK = f"{RECORD}.lock"
"""Held while files are made there, so that those of two commands do not mix."""
WAIT = 60.0
"""Seconds that another command may take to write its own."""


@contextlib.contextmanager
def making(
    folder: Path, names: Collection[str], *, source: Path | None = None, instead: str = OUTPUT
) -> Iterator[None]:
    """Within the block this process alone makes files of ours in a folder: these, which are known as ours from then on.
    What killed processes left of them half written is removed.

    Args:
        source: the run that they are made of; those of another one are not replaced.
        instead: what else can be done, for who is refused.

    Raises:
        UserError: as `refuse_others`, or the folder cannot be written.
        InUse: another command makes files there for longer than `WAIT`; the message says which.
    """
    refuse_others(folder, names, source=source, instead=instead)
    with alone(folder, [*names, RECORD], instead), _noting(folder, names, source, instead):
        yield


@contextlib.contextmanager
def making_all(
    folder: Path, names: Collection[str], *, source: Path | None = None, instead: str = OUTPUT
) -> Iterator[Path]:
    """As `making`, for files that are worth something together: yields a temporary folder for them, and they take
    their places when the block ends, as with `all_or_none`.

    Raises:
        UserError, InUse: as `making`.
    """
    refuse_others(folder, names, source=source, instead=instead)
    with (
        alone(folder, [*names, RECORD, TOGETHER], instead),
        contextlib.ExitStack() as kept,
        all_or_none(folder) as new,
    ):
        yield new
        kept.enter_context(_noting(folder, names, source, instead))  # until all have moved


@contextlib.contextmanager
def _noting(folder: Path, names: Collection[str], source: Path | None, instead: str) -> Iterator[None]:
    note(folder, names, source=source, instead=instead)
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
        _write(folder, dict.fromkeys(names, _Made()))


@contextlib.contextmanager
def alone(
    folder: Path,
    names: Collection[str],
    instead: str = OUTPUT,
    *,
    lock: str = LOCK,
    wait: float | None = None,
) -> Iterator[None]:
    """Within the block this process alone writes these names in a folder, which goes if it was made for it and stays
    empty. What killed processes left of them half written is removed.

    Args:
        names: files and folders, also in folders that are there: `part/name`.
        instead: what else can be done, for who is refused.
        lock: the file that is held meanwhile. wait: seconds for who holds it; default: `WAIT`.

    Raises:
        UserError: the folder cannot be written.
        InUse: another command writes there for longer than `wait`; the message says which.
    """
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        with held(folder / lock, wait=WAIT if wait is None else wait, instead=instead):
            for name in names:
                remove_unfinished_of(folder / name)
            yield
    finally:
        with contextlib.suppress(OSError):  # files are in it
            if not existed:
                folder.rmdir()


def refuse_others(
    folder: Path, names: Collection[str], *, source: Path | None = None, instead: str = OUTPUT
) -> None:
    """Raise UserError where somebody else's file has one of the names, or one of ours was changed since, or was made of
    another run."""
    if is_stream(record := folder / RECORD):
        raise UserError(f"{record}: expected a file, got a pipe or device; move it, or {instead}")
    ours = _read(folder)
    for name in names:
        path = folder / name
        if not os.path.lexists(path):
            continue
        if not _is_as_left(path, ours):
            found = "one that was changed since" if name in ours else "another"
            raise UserError(
                f"{path}: expected no file, or one that this program made there, found {found}; move it, or "
                f"{instead}"
            )
        before = ours[name].source
        if source is not None and before is not None and _leads(folder, before) != source.resolve():
            raise UserError(
                f"{path}: expected no file, or one that was made of {source}, found one that was made of "
                f"{_leads(folder, before)}; move it, or {instead}"
            )


def note(folder: Path, names: Collection[str], *, source: Path | None = None, instead: str = OUTPUT) -> None:
    """Note that this program makes files of these names; to be done before it does, and `seal` after.

    Raises:
        UserError: as `refuse_others`, or the folder cannot be written.
    """
    refuse_others(folder, names, source=source, instead=instead)
    _write(folder, _read(folder) | dict.fromkeys(names, _Made(source=_way(folder, source))))


def seal(folder: Path) -> None:
    """Of the files that were noted keep what is in them: who changes one makes it their own. What was not made is
    nobody's yet.

    Raises:
        UserError: the folder cannot be written.
    """
    ours = _read(folder)
    there = {name: _Made(made.digest or _digest(folder / name), made.source) for name, made in ours.items()
             if os.path.lexists(folder / name)}  # fmt: skip
    if not there:
        (folder / RECORD).unlink(missing_ok=True)
    elif there != ours:
        _write(folder, there)


def recorded(folder: Path) -> dict[str, str | None]:
    """The files that this program made in a folder, with their digests; none where its record is missing or broken."""
    return {name: made.digest for name, made in _read(folder).items()}


def is_unchanged(folder: Path, name: str) -> bool:
    """Whether a file is as this program left it there; so is any where no record is, as earlier versions kept none."""
    return not (folder / RECORD).exists() or _is_as_left(folder / name, _read(folder))


@dataclass(frozen=True)
class _Made:
    """What is known of a file: its digest, None until it is whole, and the way to the run that it was made of."""

    digest: str | None = None
    source: str | None = None


def _read(folder: Path) -> dict[str, _Made]:
    """The record, whose earlier versions were a list of names alone, and names with digests alone."""
    try:
        known = json.loads(regular_file(folder / RECORD).read_text(encoding="utf-8"))
        made = known.items() if isinstance(known, dict) else ((name, None) for name in known)
        return {name: _Made(*value) if isinstance(value, list) else _Made(value) for name, value in made
                if isinstance(name, str)}  # fmt: skip
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _write(folder: Path, ours: dict[str, _Made]) -> None:
    lines = {
        name: [made.digest, made.source] if made.source else made.digest
        for name, made in sorted(ours.items())
    }
    write_text(folder / RECORD, json.dumps(lines, indent=0) + "\n")


def _is_as_left(path: Path, ours: dict[str, _Made]) -> bool:
    return path.name in ours and ours[path.name].digest in (None, _digest(path))


def _way(folder: Path, source: Path | None) -> str | None:
    """How a run is told in the record: from a folder inside it, relative to that, for both move together."""
    if source is None:
        return None
    run, place = source.resolve(), folder.resolve()
    return os.path.relpath(run, place) if place.is_relative_to(run) else str(run)


def _leads(folder: Path, way: str) -> Path:
    """Where a way of the record leads."""
    return (folder.resolve() / str(way)).resolve()


def _digest(path: Path) -> str:
    """SHA-256 of a file; "" of what is none that can be read."""
    try:
        if path.is_symlink() or not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
