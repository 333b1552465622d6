"""One process at a time in a folder: a lock of the operating system's, which ends with its process, come what may."""

import contextlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InUse, UserError

log = logging.getLogger(__name__)


class Lock:
    """The lock on a file, held from `acquire` to `release`, or in a block; the file stays, and says who holds it.

    Where the file system knows no locks, it is not held, with a warning.

    Args:
        wait: seconds for whoever holds it to let go; infinity: however long that takes.
        instead: what else can be done, for who is told that another holds it.
    """

    def __init__(self, path: Path, *, wait: float = 0.0, instead: str = "choose another workspace") -> None:
        self.path, self._instead = path, instead
        self._lock = FileLock(path, timeout=wait if math.isfinite(wait) else -1.0, thread_local=False)

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InUse: another process, or another run of this one, holds it; the message says which.
            UserError: the file cannot be written.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise InUse(
                f"{self.path.parent}: is in use by {self._holder()}; wait until that ends, or {self._instead}"
            ) from error
        except (NotImplementedError, OSError) as error:
            if isinstance(error, PermissionError):
                raise UserError(
                    f"{self.path}: cannot be written ({error.strerror}); choose another folder"
                ) from error
            log.warning("%s: is not locked (%s); let no second process work there", self.path.parent, error)
            return
        holder = {
            "process": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # Windows lets nobody write into a locked file
            self.path.write_text(json.dumps(holder) + "\n", encoding="utf-8")

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text(encoding="utf-8"))
            return f"process {holder['process']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


@contextlib.contextmanager
def held(path: Path, *, wait: float = 0.0, instead: str) -> Iterator[None]:
    """A lock in a folder where nothing is to be left: its file goes before it is let go, and who waits for that file
    then makes another.

    Raises:
        InUse, UserError: as `Lock.acquire`.
    """
    with Lock(path, wait=wait, instead=instead):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes it itself
                path.unlink()
