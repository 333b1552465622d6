"""Fitting into a card: plans by its size, and how much an iteration takes, counted without a card."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arguments import GuidanceParams, HardwareParams

GIB = 2**30


@dataclass(frozen=True)
class MemoryPlan:
    """What is done in parts to save memory. None: all at once. The gradient is the same, but for rounding.

    Attributes:
        name: the word for `HardwareParams.memory`.
        views: views that the image encoder and decoder take at a time; above one part, encoding is computed twice.
        latents: latents in one call of the U-Net.
    """

    name: str
    views: int | None = None
    latents: int | None = None


PLANS = {
    plan.name: plan
    for plan in (
        MemoryPlan("8gb", views=1, latents=4),
        MemoryPlan("12gb", views=2, latents=8),
        MemoryPlan("24gb"),
        MemoryPlan("max"),
    )
}
"""From the smallest to the roomiest."""
SMALLEST_CARD = {"max": 30 * GIB, "24gb": 15 * GIB, "12gb": 10 * GIB, "8gb": 0}
"""Bytes of a card from which a plan is taken by itself."""


def memory_plan(
    params: GuidanceParams,
    hardware: HardwareParams,
    device: torch.device,
    estimate: Callable[[MemoryPlan], int],
) -> MemoryPlan:
    """What is done in parts: as set, else by LucidDreamer's `vram_O`, else by the memory that there is.

    Without a card it is the machine's own, half of which is left to all else.

    Args:
        estimate: bytes that an iteration takes under a plan; asked only where there is no card.
    """
    if hardware.memory != "auto":
        return PLANS[hardware.memory]
    if params.vram_O:
        return PLANS["8gb"]
    if device.type == "cuda":
        return plan_of_card(torch.cuda.get_device_properties(device).total_memory)
    return plan_that_fits(psutil.virtual_memory().total // 2, estimate)


def plan_of_card(card: int) -> MemoryPlan:
    """The plan for a card of so many bytes."""
    return PLANS[next(name for name, least in SMALLEST_CARD.items() if card >= least)]


def plan_that_fits(room: int, estimate: Callable[[MemoryPlan], int]) -> MemoryPlan:
    """The plan that does most at once among those that fit into `room` bytes by `estimate`, else the smallest."""
    roomiest_first = reversed(PLANS.values())
    return next((plan for plan in roomiest_first if estimate(plan) <= room), PLANS["8gb"])


class PeakMeter(TorchDispatchMode):
    """Bytes of the tensors that are alive at once within the block, at most: those made within it.

    Counts storages when operators return them and until they are freed; works on `meta` tensors, which take no memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention that keeps no matrix of scores, as the fused kernels of a card: the shapes alone, for counting."""
    kept = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: _AttentionShape.apply(
        query, key, value
    )
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


class _AttentionShape(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak bytes of the tensors that `run` makes."""
    with PeakMeter() as meter, fused_attention():
        run()
    return meter.peak


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
