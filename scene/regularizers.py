"""What renders are asked to be beside what the prior asks: smooth."""

from jaxtyping import Float
from torch import Tensor


def total_variation(images: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean squared difference of neighbouring pixels, vertical plus horizontal, times two (upstream `lambda_tv`)."""
    vertical = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    horizontal = (images[:, :, :, 1:] - images[:, :, :, :-1]).square().mean()
    return 2.0 * (vertical + horizontal)
