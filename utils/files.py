"""Files that are either whole or absent, also after a power cut."""

import contextlib
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from utils.errors import Stopped, UserError
from utils.interruption import Interruption

TOGETHER = "all"
"""The stem of the temporary folder of `all_or_none`."""
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.partial(\.\w+)?")


@contextlib.contextmanager
def atomic(path: Path | str, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends, remove it when it raises.

    The temporary name keeps the suffix, because video and image writers choose their format by it. The block
    may also make a directory of that name; an older directory at `path` is replaced.

    Args:
        durable: what was written is on the disk before it is renamed; False for what can be made again.

    Raises:
        UserError: the disk is full, or the folder cannot be written; or a pipe or device has the name.
    """
    path = Path(path)
    if is_stream(path):
        raise UserError(f"{path}: expected a file or nothing, found a pipe or device; choose another name")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _flush(temporary)
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        if durable:
            _flush_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or never made
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def write_text(path: Path | str, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8, whole or not at all; what the locale could not read of a path, by its bytes.

    Raises:
        UserError: as `atomic`.
    """
    with atomic(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


@contextlib.contextmanager
def all_or_none(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; move the files in it into `folder` when the block ends, and none when it raises.

    A kill, or a file that cannot take its name, between two of the moves leaves some of them.

    Raises:
        UserError: as `atomic`.
    """
    existed = folder.exists()
    temporary = folder / f".{TOGETHER}.{secrets.token_hex(4)}.partial"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _flush(temporary)
        with Interruption() as interruption:  # Ctrl-C comes before the first move or after the last one
            for path in sorted(temporary.iterdir()):
                os.replace(path, folder / path.name)
        _flush_folder(folder)
        if interruption:
            raise Stopped(number=interruption.signal)
    except UserError as error:  # of a file in the temporary folder, whose name tells nobody anything
        raise UserError(str(error).replace(str(temporary), str(folder))) from error
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # files are in it
            if not existed:
                folder.rmdir()


def is_stream(path: Path) -> bool:
    """Whether a pipe, a device or a socket is there, which no file may take the place of."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_writable(folder: Path) -> None:
    """Before a minute's work, that its result can be written into a folder, which need not be there yet.

    Raises:
        UserError: it cannot.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(
            f"{folder}: cannot be written ({there} is no folder that can be); choose another folder"
        )


def unfinished(folder: Path, parts: Collection[str]) -> list[Path]:
    """What killed processes left half written in a folder and in its `parts`, folders in which nobody else writes: in
    another one somebody may be at work. Links are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        found += [Path(place, name) for name in (*folders, *files) if _UNFINISHED.fullmatch(name)]
        entered = folders if Path(place) != folder else [name for name in folders if name in parts]
        folders[:] = [name for name in entered if not _UNFINISHED.fullmatch(name)]
    return found


def remove_unfinished(folder: Path, parts: Collection[str]) -> None:
    """Remove what killed processes left half written; nobody may be writing there."""
    for path in unfinished(folder, parts):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove_unfinished_of(path: Path) -> None:
    """Remove what killed processes left of a file that was half written; nobody may be writing it."""
    for each in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        if _UNFINISHED.fullmatch(each.name):
            with contextlib.suppress(OSError):
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def _flush(path: Path) -> None:
    """Wait until a file, or every file of a folder, is on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            _flush(inside)
        _flush_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Wait until a folder's list of names is on the disk, where the system has such a thing."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and some file systems flush none
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
