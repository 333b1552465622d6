"""What compiling leaves behind: machine code on the disk for later runs, and cuDNN's choice of algorithms."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch's own name for the folder of compiled code."""


def keep_compiled() -> None:
    """Keep compiled code in the user's cache folder, so that a second run finds it there, unless a folder is set.

    PyTorch's own default is the folder for temporary files, which a restart or a cleaner empties. Where the user's
    cannot be written, it stays at that.
    """
    if CACHE_VARIABLE in os.environ and not _is_pytorchs_own(Path(os.environ[CACHE_VARIABLE])):
        return
    try:
        folder = compiled_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a disk that is full or read only; a user without a home
        return
    if os.access(folder, os.W_OK):
        os.environ[CACHE_VARIABLE] = str(folder)


def _is_pytorchs_own(folder: Path) -> bool:
    """Whether nobody has set this folder: PyTorch names its default there as soon as its compiler is imported."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return folder == Path(default_cache_dir())


def compiled_folder() -> Path:
    """`dreammapping/compiled` in the user's cache folder (XDG_CACHE_HOME, LOCALAPPDATA, else `~/.cache`)."""
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "dreammapping" / "compiled"
