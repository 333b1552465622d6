"""What Gaussians take of the memory, and how many of them a memory plan allows."""

MAX_GAUSSIANS = {"8gb": 400_000, "12gb": 1_000_000, "24gb": 3_000_000}
"""Where densification stops under a memory plan, unless the settings say so; under the others nowhere."""


def gaussian_bytes(count: int, coefficients: int, views: int, height: int, width: int) -> int:
    """What Gaussians and their rendering take, roughly: parameters, gradients and Adam's moments; lists and pictures.

    Args:
        coefficients: harmonics of a colour channel, 1 at degree 0.
    """
    parameters = 4 * count * (11 + 3 * coefficients)
    per_view = 120 * count + 4 * 40 * height * width
    return 4 * parameters + views * per_view
