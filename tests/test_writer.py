"""Work beside the loop: files written in order by a thread, numbers read when they have arrived."""

import threading

import pytest
import torch

from utils.readback import Readback
from utils.writer import Writer


def test_tasks_are_done_in_order_while_the_caller_goes_on():
    gate, done = threading.Event(), []
    background = Writer()
    background.submit(gate.wait)
    for index in range(5):
        background.submit(done.append, index)
    assert done == []
    gate.set()
    background.flush()
    assert done == [0, 1, 2, 3, 4]


def test_a_failure_is_raised_at_the_next_call():
    background = Writer()

    def fail():
        raise OSError("disk full")

    background.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        background.flush()
    background.submit(fail)
    with pytest.raises(OSError, match="disk full"):
        while True:
            background.submit(int)


def test_no_more_than_the_given_number_waits():
    gate, background, entered = threading.Event(), Writer(most=2), []
    background.submit(gate.wait)
    background.submit(int)

    def third():
        background.submit(int)
        entered.append(True)

    thread = threading.Thread(target=third)
    thread.start()
    thread.join(0.2)
    assert entered == []
    gate.set()
    thread.join(10)
    assert entered == [True]
    background.flush()


def test_numbers_come_back_in_order_whatever_they_were():
    read = Readback({"b": torch.tensor(2), "a": 0.5, "c": torch.tensor(True), "d": torch.tensor(1.25)})
    assert read.ready
    assert list(read.values().items()) == [("b", 2.0), ("a", 0.5), ("c", 1.0), ("d", 1.25)]
    assert Readback({}).values() == {}
    assert Readback({"x": 3.0}).values() == {"x": 3.0}


def test_numbers_are_those_of_their_time():
    value = torch.tensor(1.0)
    read = Readback({"a": value})
    value += 1
    assert read.values() == {"a": 1.0}


def test_numbers_leave_a_gpu_without_stopping_it(gpu):
    torch.cuda.set_sync_debug_mode("error")
    try:
        read = Readback({"a": torch.ones((), device=gpu) * 3})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert read.values() == {"a": 3.0}
