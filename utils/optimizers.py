"""A step of an optimiser that does nothing where a gradient is not finite, without waiting for the device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def fused_on_card(device: torch.device) -> dict[str, bool]:
    """What Adam's like is built with, so that a step waits for nothing on a card; on a CPU torch's own choice."""
    return {} if device.type == "cpu" else {"fused": True}


def load_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any], *, partly: bool = False) -> None:
    """Go on from the moments of a saved state; rates and all else of the optimiser's own stay as they are.

    Args:
        partly: a parameter may have no moments, as one has none that no gradient has reached yet.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the state is of other parameters.
    """
    own = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]
        group.update(values)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = [optimizer.state.get(parameter, {}) for parameter in parameters]
    if (
        len(optimizer.state) != sum(map(bool, kept))
        or len({frozenset(each) for each in kept if each or not partly}) > 1
    ):
        raise ValueError("optimizer: expected moments of each parameter, got others")
    for parameter, moments in zip(parameters, kept, strict=True):
        for name, moment in moments.items():
            wanted = () if name == "step" else parameter.shape
            if not isinstance(moment, Tensor) or moment.shape != wanted:
                found = list(moment.shape) if isinstance(moment, Tensor) else type(moment).__name__
                raise ValueError(f"optimizer: expected {name} of shape {list(wanted)}, got {found}")
        if "step" in moments:  # a fused optimiser counts on the device, others on the host
            where = parameter.device if optimizer.defaults.get("fused") else "cpu"
            moments["step"] = moments["step"].to(where)


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
