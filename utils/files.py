"""Files that are either whole or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends, remove it when it raises.

    The temporary name keeps the suffix, because video and image writers choose their format by it. The block
    may also make a directory of that name; an older directory at `path` is replaced.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # gone already, or never made
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
