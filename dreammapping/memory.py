"""What Gaussians take of the memory, and how many of them a memory plan allows."""

from arguments import Config
from guidance.prior.memory import MemoryPlan

MAX_GAUSSIANS = {"8gb": 400_000, "12gb": 1_000_000, "24gb": 3_000_000}
"""Where densification stops under a memory plan, unless the settings say so; under the others nowhere."""


def gaussian_bytes(count: int, coefficients: int, views: int, height: int, width: int) -> int:
    """What Gaussians and their rendering take, roughly: parameters, gradients and Adam's moments; lists and pictures.

    Of a view, the lists of Gaussians by tile are most: on a card some 300 bytes a Gaussian. A CPU makes fewer tensors.

    Args:
        coefficients: harmonics of a colour channel, 1 at degree 0.
    """
    parameters = 4 * count * (11 + 3 * coefficients)
    activated = 120 * count
    per_view = 300 * count + 4 * 40 * height * width
    return 4 * parameters + activated + views * per_view


def most_gaussians(config: Config, plan: MemoryPlan) -> int | None:
    """Where densification stops: as set, else where the memory plan does."""
    own = config.ModelParams.max_gaussians
    return own if own is not None else MAX_GAUSSIANS.get(plan.name)
