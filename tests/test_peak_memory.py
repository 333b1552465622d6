"""The peak of memory: it rises with what is taken, stays when that is given back, and can be forgotten."""

import mmap

import pytest
import torch

from utils.peak_memory import forget_peak, peak_memory, present_memory

CPU, SIZE = torch.device("cpu"), 2**27


def take() -> None:
    """Touch `SIZE` bytes, so that they are resident, and give them back.

    Of the system, not of the allocator: that may hand out what an earlier test gave back, which is resident already.
    """
    with mmap.mmap(-1, SIZE) as memory:
        for page in range(0, SIZE, mmap.PAGESIZE):
            memory[page] = 1


def test_the_peak_stays_until_it_is_forgotten():
    if not forget_peak(CPU):
        pytest.skip("this machine cannot forget a peak")
    before = present_memory(CPU)
    take()
    peak = peak_memory(CPU)
    assert peak >= before + SIZE // 2
    assert peak_memory(CPU) >= peak
    forget_peak(CPU)
    assert peak_memory(CPU) < peak - SIZE // 4


def test_the_peak_of_a_gpu_is_that_of_its_tensors(gpu):
    forget_peak(gpu)
    before = present_memory(gpu)
    torch.ones(SIZE, dtype=torch.uint8, device=gpu)
    assert peak_memory(gpu) >= before + SIZE
    forget_peak(gpu)
    assert peak_memory(gpu) < before + SIZE
