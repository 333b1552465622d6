"""Group normalisation that compiles well: by sums over each channel, which lie side by side in channels-last memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """PyTorch's own, but where it is compiled: there, `normalize`.

    What PyTorch makes of its own when it compiles it walks through a group's few channels, which are fragments of a
    few bytes in channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return normalize(x, self.num_groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def normalize(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`F.group_norm` in float32, or float64 for such, as one scale and one shift of each channel.

    Both passes read x twice: once for a sum and a sum of squares, or their gradients, and once for the result. The
    variance is E[x²] - E[x]², which loses digits where a group's mean is far larger than its deviation: four of
    float32's seven where it is a hundred times as large.

    Args:
        x: B C, and any number of dimensions behind them.
        weight, bias: C each.
    """
    batch, channels = x.shape[:2]
    rows = x.movedim(1, -1)  # no copy in channels-last memory
    numbers = rows.to(torch.promote_types(x.dtype, torch.float32)).reshape(batch, -1, channels)

    def mean_of_groups(values: Tensor) -> Tensor:  # B groups 1
        return values.mean(1).view(batch, groups, -1).mean(-1, keepdim=True)

    mean, mean_square = kept(torch.stack([mean_of_groups(numbers), mean_of_groups(numbers.square())]))
    variance = (mean_square - mean.square()).clamp_min(0)
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)
    shift = bias.view(groups, -1) - mean * scale
    scale, shift = kept(torch.stack([scale, shift])).view(2, batch, 1, channels)
    return (numbers * scale + shift).to(x.dtype).view(rows.shape).movedim(-1, 1)


@torch.library.custom_op("dreammapping::kept", mutates_args=())
def kept(x: Tensor) -> Tensor:
    """The same numbers, in memory: what is compiled reads them, and their gradient, there.

    Without it each of a picture's values would be scaled by a root that is taken anew for it, which takes longer than
    to read the value.
    """
    return x.clone()


@kept.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


kept.register_autograd(lambda _context, gradient: kept(gradient))


def adopt(network: nn.Module) -> None:
    """Let every group normalisation of a network be this one, with its own weights."""
    for module in network.modules():
        if type(module) is nn.GroupNorm and module.affine:
            module.__class__ = GroupNorm
