"""What makes training fast on a card: half precision, and compilation that falls back to what is there without it."""

import logging
from collections.abc import Callable
from typing import TypeVar, cast

import torch

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable)


def use_fast_arithmetic() -> None:
    """Let float32 products round as TF32 does, and let cuDNN choose its algorithms by trial."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def half(device: torch.device, wanted: bool) -> torch.autocast:
    """A context in which products are made in bfloat16 where `wanted`; it has float32's range, so nothing is scaled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def fastest(function: Function, trial: Callable[[Function], object], wanted: bool, title: str) -> Function:
    """`function` compiled, where that is `wanted` and `trial` of it succeeds; else `function`, after a warning.

    The trial has the shapes of the training that follows, so nothing is compiled after it.
    """
    if not wanted:
        return function
    try:
        # A compiled module is a module, and a compiled function is called as it was: the type stays.
        compiled = cast(Function, torch.compile(function, dynamic=False))
        trial(compiled)
    except Exception as error:  # noqa: BLE001 whatever a compiler raises, it should end no training
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("toybox %s: continues without compilation, which failed (%s)", title, reason)
        torch._dynamo.reset()
        return function
    return compiled
