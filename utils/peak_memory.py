"""The most memory in use at once."""

import sys
from pathlib import Path

import psutil
import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: a CUDA device's tensors, for every other device the resident memory of this process.

    The peak is the one since `forget_peak`, where the machine can forget (CUDA, and processes on Linux); elsewhere,
    and where it was never called, since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    if (highest := _high_water_mark()) is not None:
        return highest
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def present_memory(device: torch.device) -> int:
    """Bytes in use now, of what `peak_memory` is the most of."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def forget_peak(device: torch.device) -> bool:
    """Let the peak begin anew at what is in use now; returns whether the machine could."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if not _CLEAR.exists():
        return False
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:  # a container may forbid it
        return False
    return True


def _high_water_mark() -> int | None:
    """Bytes by Linux's own count, the only one that can be forgotten; some containers do not show it."""
    lines = _STATUS.read_text(encoding="utf-8").splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
