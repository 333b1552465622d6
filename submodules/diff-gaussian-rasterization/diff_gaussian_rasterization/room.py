"""How many pairs of Gaussian and tile the CUDA kernels make room for: what earlier calls needed, as they reported it.

The host never waits for a report. One that has arrived by the time of another call is read then.
"""

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

FIRST_CAPACITY = 1 << 16
"""Pairs of Gaussian and tile that there is always room for."""
MAX_CAPACITY = 1 << 28
"""Pairs that are ever listed, about 3 GB, or 4.3 with long keys; beyond, the slower path draws."""
RECENT_CALLS, KINDS = 32, 16
"""Calls of a kind after which room that none of them needed is given back; kinds that are remembered."""
BROKEN = {
    1: "means3D",
    2: "opacities",
    4: "shs or colors_precomp",
    8: "scales, rotations or cov3D_precomp",
    16: "viewmatrix, projmatrix, campos, bg, tanfovx or tanfovy",
}
"""Inputs that were not finite, by their bit in a report."""


class Kind(NamedTuple):
    """Calls that are taken to need about the same room: their tiles, and how many bits their number of splats has."""

    tiles: int
    bits: int


class Need(NamedTuple):
    """Pairs of Gaussian and tile that a call had, and its Gaussians times views."""

    pairs: int
    splats: int

    def of(self, splats: int) -> int:
        """Pairs to expect of another number of splats: of more, at most twice as many; of fewer, four times a share."""
        then = max(self.splats, 1)
        return self.pairs * max(min(4 * splats, then), min(splats, 2 * then)) // then


class Report:
    """What the device found in one call, on its way to the host. Used again: page-locked memory takes long to get."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind, self.splats = Kind(0, 0), 0
        self.values = torch.empty(2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self.event = torch.cuda.Event() if device.type == "cuda" else None

    def send(self, found: Tensor, kind: Kind, splats: int) -> None:
        """`found`: two int64 of the device, which the current stream has written by then."""
        self.kind, self.splats = kind, splats
        self.values.copy_(found, non_blocking=True)
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(self.device))

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()


@dataclass
class Room:
    """What one device remembers of its calls, of whatever thread, and the room that this gives the next one."""

    needs: dict[Kind, deque[Need]] = field(default_factory=dict)
    last: Need = field(default_factory=lambda: Need(0, 0))
    reports: deque[Report] = field(default_factory=deque)
    spare: list[Report] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send_report(self, found: Tensor, kind: Kind, splats: int) -> None:
        with self.lock:
            report = self.spare.pop() if self.spare else Report(found.device)
            report.send(found, kind, splats)
            self.reports.append(report)

    def wait(self) -> None:
        """Until all reports that have been sent arrive."""
        with self.lock:
            sent = list(self.reports)
        for report in sent:
            report.wait()

    def read_reports(self) -> None:
        """Takes in what has arrived.

        Raises:
            ValueError: an earlier call was given a NaN or an infinity.
        """
        with self.lock:  # to ask whether one has arrived lets other threads run
            while self.reports and self.reports[0].arrived():
                report = self.reports.popleft()
                pairs, broken = report.values.tolist()
                self.spare.append(report)
                self.note(report.kind, Need(pairs, report.splats))
                names = [name for bit, name in BROKEN.items() if broken & bit]
                if names:
                    raise ValueError(
                        f"{'; '.join(names)}: expected finite numbers and positive fields of view, got others "
                        f"(in this call or an earlier one on {report.device}; debug=True finds it at once)"
                    )

    def note(self, kind: Kind, need: Need) -> None:
        needs = self.needs.pop(kind, None) or deque(maxlen=RECENT_CALLS)
        needs.append(need)
        self.needs[kind] = needs  # as the latest of them
        while len(self.needs) > KINDS:
            del self.needs[next(iter(self.needs))]
        self.last = need

    def capacity(self, kind: Kind, splats: int) -> int:
        """Pairs to make room for: half as many again as recent calls of the kind needed, or the last call of another.

        So much more, because the slower path costs a call far more than memory does: of needs that vary by a third
        from call to call, an eighth more would be too little for one in a hundred, and half as many again for one in
        five hundred. Calls that go beyond what is ever listed ask for no room. A whole number of sixteenths of a
        power of two, so that the allocator meets the same sizes again.
        """
        with self.lock:
            expected = [need.of(splats) for need in self.needs.get(kind, [self.last])]
        most = max((pairs for pairs in expected if pairs <= MAX_CAPACITY), default=0)
        most = min(most + most // 2, splats * kind.tiles)  # each Gaussian in every tile
        step = 1 << max(most.bit_length() - 4, 0)
        return min(max(-(-most // step) * step, FIRST_CAPACITY), MAX_CAPACITY)
