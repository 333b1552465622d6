"""Gradients through a half-precision network without underflow: its backward pass is linear, so any scale will do."""

from typing import Any

import torch
from torch import Tensor


class GradientScale:
    """Scales a gradient to about 1 where it enters the network, and back, in float32, where it leaves.

    The factor is a power of two, chosen by the gradient itself at each backward pass: nothing is rounded by it, and no
    number is read back to the host.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.factor: Tensor | None = None

    def grow(self, output: Tensor) -> Tensor:
        """The network's output, float32."""
        return _Grow.apply(output, self) if self.enabled else output

    def shrink(self, value: Tensor) -> Tensor:
        """The network's input, float32."""
        return _Shrink.apply(value, self) if self.enabled else value

    def restore(self, gradient: Tensor) -> Tensor:
        """The gradient that left the network, for parameters within it."""
        return gradient if self.factor is None else gradient / self.factor


class _Grow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, scale: GradientScale) -> Tensor:
        ctx.scale = scale
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        largest = gradient.abs().amax()
        _, exponent = torch.frexp(torch.where(largest > 0, largest, 1.0))
        ctx.scale.factor = torch.ldexp(torch.ones_like(largest), -exponent)
        return gradient * ctx.scale.factor, None


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: GradientScale) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.scale.restore(gradients[0]), None
