"""What Gaussians take of a device's memory, and how many a memory plan allows."""

from arguments import Config
from guidance.prior.memory import PLANS, MemoryPlan


def gaussian_bytes(count: int, coefficients: int, views: int, height: int, width: int) -> int:
    """What Gaussians and their rendering take, roughly: parameters, gradients and Adam's moments; lists and pictures.

    Args:
        coefficients: harmonics of a colour channel, 1 at degree 0.
    """
    parameters = 4 * count * (11 + 3 * coefficients)
    per_view = 120 * count + 4 * 40 * height * width
    return 4 * parameters + views * per_view


def most_gaussians(config: Config, plan: MemoryPlan) -> int | None:
    """Where densification stops: as set, else where the memory plan does."""
    own = config.ModelParams.max_gaussians
    return own if own is not None else plan.max_gaussians


def plan_name(plan: MemoryPlan) -> str:
    """The word for a plan in the settings."""
    return next(name for name, each in PLANS.items() if each == plan)
