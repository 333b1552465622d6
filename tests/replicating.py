"""What a process of a group is told, and made to do, by the tests."""

import os
import signal

import torch
from torch import nn

from guidance.degradation import BatchNorm
from utils import distributed


def join_group(rank: int, count: int, port: int) -> None:
    """What torchrun tells a process."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip


def end_the_last(rank: int, count: int) -> None:
    """Let the last process of the group be told to end in the middle of the run."""
    if rank < count - 1:
        return
    from dreammapping.optimization import Optimization

    kept = Optimization.iteration

    def iteration(self, step):
        if step == 5 and self.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return kept(self, step)

    Optimization.iteration = iteration


def part(rank: int, count: int) -> None:
    """Let a process of the group see other numbers than the others, once."""
    import dreammapping.optimization as program

    del count
    kept = program.sum_gradients

    def spoiled(parameters, *scalars):
        sums = kept(parameters, *scalars)
        next(each.grad for each in parameters if each.grad is not None).mul_(1 + 1e-3 * rank)
        return sums

    program.sum_gradients = spoiled


def laws(words: list[str]) -> int:
    """The functions of `utils.distributed` in a group of two; returns 0 if they do what they say."""
    del words
    with distributed.joined():
        rank, rng = distributed.rank(), torch.Generator().manual_seed(0)
        whole = torch.randn(4, 8, 2, 2, generator=torch.Generator().manual_seed(0))
        mine = distributed.drawn(lambda views: torch.randn(views, 8, 2, 2, generator=rng), 2)
        assert torch.equal(mine, whole[2 * rank : 2 * rank + 2])
        assert torch.equal(distributed.gathered(mine), whole)
        assert distributed.own([1, 2, 3, 4]) == [[1, 2], [3, 4]][rank]
        assert (distributed.total_of(rank + 1), distributed.highest(rank)) == (3, 1)
        assert distributed.from_first({"a": torch.tensor(rank), "b": [rank]}) == {"a": 0, "b": [0]}
        assert distributed.averaged({"a": float(rank), "b": torch.tensor(2.0)}) == {"a": 0.5, "b": 2.0}
        assert not distributed.parted([torch.ones(3)])
        assert distributed.parted([torch.tensor([1.0, 1.0 + rank * 2**-23])])
        assert distributed.parted([torch.tensor([[1.0, 2.0], [2.0, 1.0]][rank])])
        torch.testing.assert_close(distributed.norm_of_all(mine), whole.norm())
        _sums_gradients(rank)
        _normalises_the_whole_batch(rank, whole)
    return 0


def _sums_gradients(rank: int) -> None:
    first, second, third = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad = torch.tensor([1.0, 10.0]) * (rank + 1)
    second.grad = torch.ones(2) if rank == 0 else None
    (sum_,) = distributed.sum_gradients([first, second, third], torch.tensor(5.0))
    assert first.grad.tolist() == [3.0, 30.0] and second.grad.tolist() == [1.0, 1.0] and third.grad is None
    assert float(sum_) == 10.0
    first.grad = torch.tensor([float("nan"), 0.0]) if rank == 1 else torch.zeros(2)
    distributed.sum_gradients([first])
    assert first.grad.isnan().any(), "what is not finite for one is not finite for all"


def _normalises_the_whole_batch(rank: int, whole: torch.Tensor) -> None:
    """Output, and gradients to input and parameters, are those of torch's own over the whole batch."""
    ours, theirs = BatchNorm(8).double(), nn.BatchNorm2d(8, track_running_stats=False).double()
    for each in (ours, theirs):
        nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(1))
    every = whole.double().requires_grad_()
    mine = whole.double()[2 * rank : 2 * rank + 2].requires_grad_()
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2)).double()
    expected, found = theirs(every), ours(mine)
    (expected * weights).sum().backward()
    (found * weights[2 * rank : 2 * rank + 2]).sum().backward()
    distributed.sum_gradients(ours.parameters())
    rows = slice(2 * rank, 2 * rank + 2)
    torch.testing.assert_close(found, expected[rows])
    torch.testing.assert_close(mine.grad, every.grad[rows])
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad.to(one.grad), atol=1e-5, rtol=1e-5)
