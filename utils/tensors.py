"""Safetensors files of users: opened, or refused in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.errors import UserError

REAL = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
"""Types of weights that can be computed with once they are float32."""


def is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds real numbers: no integers, no complex numbers, no packed ones."""
    return tensor.dtype in REAL


@contextmanager
def open_tensors(path: Path, where: str) -> Iterator[Any]:
    """A file's header, and its tensors one by one, as `safetensors.safe_open` gives them.

    Args:
        where: the setting that named it, for the message.

    Raises:
        UserError: it cannot be opened, or is damaged; also for tensors that are read within the block.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: expected a .safetensors file, got {path}, a damaged or half-copied one ({reason}); copy it again"
        ) from error
