"""Paths as users write them."""

import errno
import os
from pathlib import Path

from utils.errors import UserError

ABSENT = (errno.ENOENT, errno.ENOTDIR)


def expanded(word: str) -> Path:
    """A path of a command line, `~` expanded where no shell has done so, as in `--json=~/x`."""
    return Path(os.path.expanduser(word))


def user_path(name: str, where: str) -> Path:
    """The path that a user wrote, `~` and `$NAME` expanded as a shell does; nothing needs to be there.

    Args:
        where: the setting or option that it was written into, for the message.

    Raises:
        UserError: it can be no path here, its folder cannot be looked into, or its bytes are no UTF-8, which the
            libraries that read tensors and videos want.
    """
    whole = b""  # if the folder that this process is in has gone
    try:
        path = Path(_in_locale(os.path.expandvars(name))).expanduser()
        whole = os.fsencode(os.path.abspath(path))
        path.stat()
    except OSError as error:
        if error.errno not in ABSENT:
            raise _unusable(name, where, error.strerror or str(error)) from error
    except (ValueError, RuntimeError) as error:  # a null character; a user whose home is not known
        raise _unusable(name, where, str(error)) from error
    try:
        whole.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: expected a path in UTF-8, got {whole!r}; rename the folder, or set LC_ALL=C.UTF-8 if these "
            "letters are right"
        ) from error
    return path


def _in_locale(name: str) -> str:
    """A name whose letters the locale lacks (as `LC_ALL=C`), by its bytes in UTF-8, as Python lists it in a folder."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode())
    return name


def _unusable(name: str, where: str, reason: str) -> UserError:
    shown = repr(name) if len(name) <= 100 else f"{name[:80]!r}... ({len(name)} letters)"
    return UserError(f"{where}: expected a path, got {shown}, which cannot be used ({reason}); correct it")
