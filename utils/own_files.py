"""Files of ours in a folder that anybody may use: replaced where this program made them, and never where others did."""

import json
import os
from collections.abc import Collection
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text

RECORD = ".dreammapping-files"
"""In such a folder: the names of those that this program made."""


def refuse_others(folder: Path, names: Collection[str]) -> None:
    """Raise UserError where somebody else's file has one of the names."""
    ours = recorded(folder)
    for name in names:
        if name not in ours and os.path.lexists(folder / name):
            raise UserError(
                f"{folder / name}: expected no file, or one that this program made there, found another; move it, or "
                "choose another --output"
            )


def note(folder: Path, names: Collection[str]) -> None:
    """Note that this program makes files of these names; to be done before it does.

    Raises:
        UserError: as `refuse_others`, or the folder cannot be written.
    """
    refuse_others(folder, names)
    ours = recorded(folder)
    if not ours.issuperset(names):
        write_text(folder / RECORD, json.dumps(sorted({*ours, *names}), indent=0) + "\n")


def forget_absent(folder: Path) -> None:
    """Of the names that were noted keep those of files that are there: what was not made is nobody's yet.

    Raises:
        UserError: the folder cannot be written.
    """
    there = [name for name in recorded(folder) if os.path.lexists(folder / name)]
    if there:
        write_text(folder / RECORD, json.dumps(sorted(there), indent=0) + "\n")
    else:
        (folder / RECORD).unlink(missing_ok=True)


def recorded(folder: Path) -> set[str]:
    """The names of the files that this program made in a folder; none where it has no record, or a broken one."""
    try:
        names = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, TypeError, RecursionError):
        return set()
