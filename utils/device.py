"""The device of a run: which one, and whether its memory is full."""

import contextlib
import logging
from collections.abc import Iterator

import psutil
import torch

from utils.errors import UserError

log = logging.getLogger(__name__)

GIB = 2**30


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: the device does not exist here.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not cards and torch.version.cuda:
        log.warning("device auto: torch finds no CUDA driver or no card, so the CPU is used")
    device = torch.device(("cuda" if cards else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        here = ", ".join(f"cuda:{index}" for index in range(cards)) or "no CUDA"
        raise UserError(
            f"device: expected one of this machine, got {name}, but there is {here} here; use device=auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: expected one of this machine, got mps, which is not here; use device=auto")
    return device


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Within the block new tensors are float32 and on the CPU unless they say otherwise, nothing is cast by itself, and
    gradients are taken, whatever a caller has set or switched off around it; and what is seeded, drawn and switched on
    in it changes none of the caller's random numbers and kernels."""
    number, searches = torch.get_default_dtype(), torch.backends.cudnn.benchmark
    with contextlib.ExitStack() as kept:
        kept.enter_context(torch.inference_mode(False))
        kept.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                kept.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != torch.device("cpu"):  # such a context costs every operation a little
            kept.enter_context(torch.device("cpu"))
        cards = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        kept.enter_context(torch.random.fork_rng(cards))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(number)
            torch.backends.cudnn.benchmark = searches


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on a card or on the host."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in words or "can't allocate memory" in words or "alloc_failed" in words
    )


def free_bytes(device: torch.device) -> int:
    """What may still be allocated on a device: what nobody has, and what PyTorch has and does not use."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fullness(device: torch.device) -> str:
    """That the memory of a device is full, and how much of it other processes hold."""
    if device.type != "cuda":
        return "this machine's memory is full"
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # too full for CUDA itself
        return "the card's memory is full: other processes hold all of it"
    ours = torch.cuda.memory_reserved(device)
    others = (total - free - ours) / GIB
    also = f", of which other processes hold {others:.1f} GiB" if others > 0.5 else ""
    return f"the card's memory is full ({total / GIB:.1f} GiB{also})"
