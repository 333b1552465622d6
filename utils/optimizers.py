"""A step of an optimiser that does nothing where a gradient is not finite, without waiting for the device."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def not_finite(loss: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """1.0 where the loss or a gradient of the parameters holds a NaN or an infinity, else 0.0; on their device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return (~nn.utils.get_total_norm([loss.detach(), *gradients]).isfinite()).float()


def step_unless(optimizer: torch.optim.Optimizer, broken: Tensor) -> None:
    """Step, but where `broken` is 1 leave parameters and moments as they are; a fused optimiser asks on the device."""
    if optimizer.defaults.get("fused"):
        optimizer.grad_scale, optimizer.found_inf = None, broken
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif not broken:
        optimizer.step()
