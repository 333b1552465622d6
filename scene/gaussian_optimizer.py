"""Adam over the parameters of a `GaussianModel`, and the one place that changes how many there are."""

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from arguments import OptimizationParams
from scene.gaussian_model import GaussianModel
from utils.learning_rate import log_linear


def build_optimizer(model: GaussianModel, params: OptimizationParams, extent: float) -> torch.optim.Adam:
    """One group for each parameter, named after it, with its learning rate at step 0.

    `extent` (world units) multiplies the rates of the means (upstream `default_radius`).
    """
    groups = [{"params": [getattr(model, name)], "name": name} for name in model.parameter_names]
    # 1e-15: gradients of far or faint Gaussians are tiny, and Adam shall still move them at its full rate.
    optimizer = torch.optim.Adam(groups, eps=1e-15, fused=True)
    set_learning_rates(optimizer, params, extent, step=0)
    return optimizer


def set_learning_rates(
    optimizer: torch.optim.Adam, params: OptimizationParams, extent: float, step: int
) -> None:
    """Set the rates of `step`; those with a final value decay log-linearly and reach it at `iterations`."""
    steps = params.iterations
    rates = {
        "means": log_linear(step, params.position_lr_init * extent, params.position_lr_final * extent, steps),
        "log_scales": log_linear(step, params.scaling_lr, params.scaling_lr_final, steps),
        "quats": log_linear(step, params.rotation_lr, params.rotation_lr_final, steps),
        "opacity_logits": params.opacity_lr,
        "sh_dc": log_linear(step, params.feature_lr, params.feature_lr_final, steps),
        "sh_rest": params.feature_lr / 20,
    }
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]


@torch.no_grad()
def edit(
    model: GaussianModel,
    optimizer: torch.optim.Adam,
    source: Int[Tensor, "M"],
    *,
    fresh: Bool[Tensor, "M"] | None = None,
    values: Mapping[str, Tensor] | None = None,
    names: Collection[str] = GaussianModel.parameter_names,
) -> None:
    """Let Gaussian i be a copy of the old Gaussian `source[i]`, with its Adam moments.

    Every edit goes through here. Between an optimiser's step and the next backward it loses neither.

    Args:
        fresh: Rows that start with zero moments.
        values: Name to the values that replace the copied ones in the fresh rows, in their order.
        names: The parameters to touch; fewer than all only if `source` keeps the count.
    """
    fresh = torch.zeros_like(source, dtype=torch.bool) if fresh is None else fresh
    values = {} if values is None else values
    groups = {group["name"]: group for group in optimizer.param_groups}
    for name in names:
        old = getattr(model, name)
        rows = old[source]
        if name in values:
            rows[fresh] = values[name]
        model.replace({name: rows})

        new = getattr(model, name)
        groups[name]["params"] = [new]
        state = optimizer.state.pop(old, None)
        if state is None:  # no step has been taken yet
            continue
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment] = state[moment][source]
            state[moment][fresh] = 0.0
        optimizer.state[new] = state
