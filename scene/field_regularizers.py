"""What renders of a radiance field are asked to be beside what the prior asks: clear, solid, and turned this way.

The first four are threestudio's forms (`systems/dreamfusion.py`, `systems/prolificdreamer.py`).
"""

from jaxtyping import Float
from torch import Tensor

CLEAR = 1e-3
"""How far from 0 and 1 an opacity is held where its entropy is taken."""
SOLID = 0.5
"""Opacity from which a ray has a surface."""


def ramped(weights: tuple[float, float], steps: tuple[float, float], step: int) -> float:
    """The first weight up to the first of `steps`, the second from the second on, linear between."""
    first, last = steps
    if step >= last:
        return weights[1]
    if step <= first:
        return weights[0]
    done = (step - first) / (last - first)
    return weights[0] + done * (weights[1] - weights[0])


def sparsity(alphas: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean of √(α² + 0.01): pictures shall be empty where they can."""
    return (alphas.square() + 0.01).sqrt().mean()


def entropy(alphas: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean of -α log α - (1 - α) log(1 - α): pixels shall be full or empty."""
    clear = alphas.clamp(CLEAR, 1 - CLEAR)
    return -(clear * clear.log() + (1 - clear) * (1 - clear).log()).mean()


def facing_away(seen: Float[Tensor, "B 1 H W"], alphas: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean over rays that meet anything of Σ sg(w) max(0, n·d)² (Ref-NeRF): what is seen shall face the camera."""
    return seen.sum() / (alphas > 0).sum().clamp_min(1)


def z_variance(variances: Float[Tensor, "B 1 H W"], alphas: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean over rays with a surface of the variance of the distance (HiFA): surfaces shall be thin."""
    solid = (alphas.detach() > SOLID).to(variances)
    return (variances * solid).sum() / solid.sum().clamp_min(1)


def emptiness(logs: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """Mean of log(1 + 10 w) over all samples of all rays (SJC): space shall be empty where it can."""
    return logs.mean()
