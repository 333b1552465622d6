"""Room for pairs of Gaussian and tile: enough for most calls, not much more, and the same from whatever thread."""

import contextlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from diff_gaussian_rasterization import room
from diff_gaussian_rasterization.room import Kind, Need, Room


def test_room_for_a_new_kind_of_call_is_taken_from_the_last():
    kept = Room()
    other = Kind(tiles=1024, bits=30)
    kept.note(Kind(tiles=4096, bits=21), Need(pairs=8_000_000, splats=2_000_000))
    assert 8_000_000 <= kept.capacity(other, 2_000_000) <= 12.8e6
    assert 16_000_000 <= kept.capacity(other, 40_000_000) <= 25.6e6  # not twenty times as much
    assert 640_000 <= kept.capacity(other, 40_000) <= 1_024_000  # sixteen a splat, if they are larger
    assert kept.capacity(other, 0) == room.FIRST_CAPACITY


def test_room_follows_what_is_needed_upwards_at_once_and_downwards_after_a_while():
    kept, kind = Room(), Kind(tiles=4096, bits=20)

    def room_after(pairs: int, splats: int) -> int:
        kept.note(kind, Need(pairs, splats))
        return kept.capacity(kind, splats)

    much = room_after(5_000_000, 600_000)
    assert {room_after(1_000_000, 600_000) for _ in range(room.RECENT_CALLS - 1)} == {much}
    assert 1_000_000 <= room_after(1_000_000, 600_000) <= 1_600_000
    # The host knows of more Gaussians before the device knows of more pairs.
    assert kept.capacity(kind, 900_000) >= 1_500_000


def test_room_is_that_of_the_call_which_would_need_most_with_these_gaussians():
    kept, kind = Room(), Kind(tiles=4096, bits=20)
    kept.note(kind, Need(pairs=3_000_000, splats=1_000_000))
    kept.note(kind, Need(pairs=2_900_000, splats=600_000))
    assert kept.capacity(kind, 1_000_000) >= 2_900_000 * 10 // 6


def test_there_is_no_more_room_than_tiles_can_take():
    kept, kind = Room(), Kind(tiles=4, bits=20)
    kept.note(Kind(tiles=4096, bits=20), Need(pairs=90_000_000, splats=600_000))
    assert kept.capacity(kind, 600_000) <= 2_400_000 * 9 // 8


def test_calls_that_are_never_listed_ask_for_no_room():
    kept, kind = Room(), Kind(tiles=4096, bits=20)
    kept.note(kind, Need(room.MAX_CAPACITY + 1, 600_000))
    assert kept.capacity(kind, 600_000) == room.FIRST_CAPACITY
    kept.note(kind, Need(1_000_000, 600_000))
    kept.note(kind, Need(10**12, 600_000))
    assert 1_000_000 <= kept.capacity(kind, 600_000) <= 1_600_000
    kept.note(kind, Need(room.MAX_CAPACITY, 600_000))
    assert kept.capacity(kind, 600_000) == room.MAX_CAPACITY


def test_needs_that_vary_by_a_third_seldom_find_too_little_room():
    kept, kind = Room(), Kind(tiles=4096, bits=20)
    noise = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    overflows = 0
    for pairs in (2_000_000 * (0.35 * noise).exp()).long().tolist():
        overflows += pairs > kept.capacity(kind, 600_000)
        kept.note(kind, Need(pairs, 600_000))
    assert overflows < 25


class SlowEvent:
    """Lets other threads run while it is asked, as a kept's does."""

    def __init__(self, meeting: threading.Barrier, arrived: bool) -> None:
        self.meeting, self.arrived = meeting, arrived

    def query(self) -> bool:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.meeting.wait(timeout=0.5)
        return self.arrived


def run_together(*tasks: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(tasks)) as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result(timeout=60)


def test_two_threads_do_not_read_a_report_that_is_still_on_its_way():
    kept, meeting = Room(), threading.Barrier(2)
    kinds = [Kind(tiles=4, bits=bits) for bits in (5, 6)]
    for kind, arrived in zip(kinds, (True, False), strict=True):
        kept.send_report(torch.tensor([7, 0]), kind, 9)
        kept.reports[-1].event = SlowEvent(meeting, arrived)
    run_together(kept.read_reports, kept.read_reports)
    assert list(kept.needs) == kinds[:1]
    assert [report.kind for report in kept.reports] == kinds[1:]


def test_threads_share_what_a_device_remembers():
    """Reports come and go, and needs are added, while others look."""
    kept, kind = Room(), Kind(tiles=4, bits=5)

    def call() -> None:
        for _ in range(300):
            kept.read_reports()
            kept.capacity(kind, 9)
            kept.send_report(torch.tensor([7, 0]), kind, 9)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_together(*[call] * 4)
    finally:
        sys.setswitchinterval(interval)
    kept.read_reports()
    assert not kept.reports
    assert len({id(report) for report in kept.spare}) == len(kept.spare)


def test_only_so_many_kinds_of_calls_are_remembered():
    kept = Room()
    for tiles in range(3 * room.KINDS):
        kept.note(Kind(tiles, 20), Need(10_000_000, 600_000))
    assert list(kept.needs) == [Kind(tiles, 20) for tiles in range(2 * room.KINDS, 3 * room.KINDS)]
