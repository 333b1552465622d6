"""One optimisation in several processes: each has some views of a batch, and all have the same of everything else.

`torchrun` starts the processes, `joined` makes them one group, and without it every function here is that of a process
alone: what is drawn, summed or gathered then stays as it is, to the bit. Random numbers are drawn for the views of all
processes, by each of them, and each keeps its own rows: so what a view gets does not depend on how many share the work.
"""

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch import distributed as dist

from utils.errors import UserError

PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for another one: a checkpoint and its pictures come between two iterations of the first."""


@contextmanager
def joined() -> Iterator[None]:
    """Within the block, the processes that `torchrun` has started together are one group; alone, nothing happens.

    Raises:
        UserError: the processes do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or dist.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"torchrun: expected {count} processes that find each other, got: {str(error).splitlines()[0]}; start them "
            "with torchrun --nproc-per-node N train.py"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many share the views."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0. The first one writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(views: int, name: str) -> int:
    """The views of one process.

    Args:
        name: the setting that says how many views there are, for the message.

    Raises:
        UserError: they cannot be shared out evenly.
    """
    if views % processes():
        raise UserError(
            f"{name}: expected a multiple of the {processes()} processes, got {views}; set it to "
            f"{-(-views // processes()) * processes()}, or start another number of processes"
        )
    return views // processes()


def own(rows: Any) -> Any:
    """This process's rows of what is there for the views of all: of a tensor, a list or cameras."""
    if processes() == 1:
        return rows
    count = len(rows) // processes()
    return rows[rank() * count : (rank() + 1) * count]


def drawn(draw: Callable[[int], Tensor], views: int) -> Tensor:
    """Random rows for this process's `views`, of those that are drawn for the views of all."""
    return own(draw(views * processes()))


def gathered(rows: Shaped[Tensor, "B *rest"]) -> Shaped[Tensor, "C *rest"]:
    """The rows of all processes, in the order of their views; without gradient."""
    if processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, with gradient to each one's part."""
    return value if processes() == 1 else _Sum.apply(value)


class _Sum(torch.autograd.Function):
    """PyTorch's own is deprecated, and what it names in its place is private."""

    @staticmethod
    def forward(_ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(None, gradient)


def part_of_mean(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What a mean over this process's views adds to the mean over all views."""
    return loss if processes() == 1 else loss / processes()


def norm_of_all(rows: Tensor) -> Float[Tensor, ""]:
    """The Euclidean norm of the rows of all processes, without gradient to others'."""
    return rows.norm() if processes() == 1 else summed(rows.norm().square()).sqrt()


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], *scalars: Tensor) -> list[Tensor]:
    """Let every process have the sum of all gradients, in one message for each kind of number.

    A parameter that has a gradient in one process has one in all of them afterwards.

    Returns:
        The sums of the `scalars`.
    """
    if processes() == 1:
        return list(scalars)
    listed = list(parameters)
    if not listed:
        return [summed(scalar) for scalar in scalars]
    device = listed[0].device
    has = [torch.tensor(float(each.grad is not None)) for each in listed]
    parts = [
        *(scalar.detach().float().reshape(1).to(device) for scalar in scalars),
        torch.stack(has).to(device),
        *(
            (each.grad if each.grad is not None else torch.zeros_like(each)).float().flatten()
            for each in listed
        ),
    ]
    total = torch.cat(parts)
    dist.all_reduce(total)
    sums, counts, *gradients = total.split([len(scalars), len(listed), *(each.numel() for each in listed)])
    for parameter, count, gradient in zip(listed, counts.tolist(), gradients, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
    return list(sums)


def averaged(values: Mapping[str, Tensor | float]) -> dict[str, Tensor | float]:
    """Numbers for the log: the means of all processes'."""
    if processes() == 1:
        return dict(values)
    device = next(
        (value.device for value in values.values() if isinstance(value, Tensor)), torch.device("cpu")
    )
    stacked = torch.stack(
        [torch.as_tensor(value, dtype=torch.float64).to(device) for value in values.values()]
    )
    dist.all_reduce(stacked)
    return dict(zip(values, (stacked / processes()).float(), strict=True))


def total_of(number: int) -> int:
    """The sum of whole numbers over all processes."""
    return _reduced(number, dist.ReduceOp.SUM)


def highest(number: int) -> int:
    """The highest of whole numbers over all processes."""
    return _reduced(number, dist.ReduceOp.MAX)


def _reduced(number: int, how: Any) -> int:
    if processes() == 1:
        return number
    there = torch.tensor(number, dtype=torch.int64)
    dist.all_reduce(there, how)
    return int(there)


def from_first(value: Any) -> Any:
    """What the first process has: a tree of tensors and plain values, tensors on the host."""
    if processes() == 1:
        return value
    box = [value if rank() == 0 else None]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@torch.no_grad()
def parted(tensors: Iterable[Tensor]) -> bool:
    """Whether the processes have not the same bits in these tensors."""
    if processes() == 1:
        return False
    words = [
        each.detach().contiguous().flatten().view(torch.uint8).to(torch.int64)
        for each in tensors
        if each.numel()
    ]
    # weights by place, so that an exchange is seen as well
    checksum = sum(
        int((word * (torch.arange(len(word), device=word.device) % 251 + 1)).sum()) for word in words
    )
    ends = torch.tensor([checksum, -checksum], dtype=torch.int64)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return int(ends[0]) != -int(ends[1])


def is_broken_off(error: BaseException) -> bool:
    """Whether an error says that another process of the group has ended."""
    words = str(error).lower()
    return (
        dist.is_initialized()
        and isinstance(error, RuntimeError)
        and any(
            word in words
            for word in ("connection closed by peer", "connection reset", "gloo", "nccl", "timed out")
        )
    )
