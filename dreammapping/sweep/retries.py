"""What is done with a run after an attempt: the next smaller plan, another seed, once more as it was, or nothing."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from dreammapping.sweep.status import DONE, FAILED, Status

PLANS = ("8gb", "12gb", "24gb", "max")
"""Words for `HardwareParams.memory`, from the smallest; a test holds them to those of the prior."""
MEMORY = "HardwareParams.memory"
DONE_SO, STOPPED, LOST, FULL, NOT_FINITE, BUSY, ERROR = (
    "done", "stopped", "lost", "memory", "not finite", "busy", "error",
)  # fmt: skip
"""Ends of an attempt."""


@dataclass(frozen=True)
class Patience:
    """How often is tried again.

    Attributes:
        losses: attempts in a row that may be lost, with their worker, from one and the same iteration.
        seeds: other seeds that a run gets whose numbers were not finite.
    """

    losses: int = 5
    seeds: int = 2


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        kind: done, stopped, lost (with its device), memory, not finite, busy (somebody else works in the folder) or
            error.
        plan: the memory plan that was used, where it is known.
        seeds: the run's `seed` and `noise_seed`, as the attempt had them.
    """

    kind: str
    message: str = ""
    plan: str = ""
    seeds: tuple[int, int] = (0, 0)


def settled(status: Status, outcome: Outcome, patience: Patience) -> Status:
    """The status after an attempt: done, failed for good, or queued with what changes."""
    after = status.ended(outcome.kind, outcome.message)
    if outcome.kind == DONE_SO:
        return after.final(DONE)
    if outcome.kind == BUSY:
        return _merged(after)
    if outcome.kind in (STOPPED, LOST):
        return after
    changes = _changes(status, outcome, patience)
    if changes is None:
        return after.final(FAILED, outcome.message)
    return Status(after.state, after.attempts, None, {**status.changes, **changes}, outcome.message)


def _merged(status: Status) -> Status:
    """Attempts in a row that found somebody else in the folder, as one: hours of waiting make no long record."""
    *before, last = status.attempts
    if not before or before[-1].outcome != BUSY:
        return status
    last = dataclasses.replace(last, began=before[-1].began)
    return dataclasses.replace(status, attempts=(*before[:-1], last))


def given_up(status: Status, patience: Patience) -> bool:
    """Whether a run, claimed once more, has cost too many workers from the iteration where it is."""
    *before, last = status.attempts
    lost = [attempt for attempt in before if attempt.outcome not in (STOPPED, BUSY)][-patience.losses :]
    return len(lost) == patience.losses and all(
        attempt.outcome == LOST and attempt.start == last.start for attempt in lost
    )


def _changes(status: Status, outcome: Outcome, patience: Patience) -> dict[str, Any] | None:
    """What the next attempt has otherwise; None where there is to be none."""
    if outcome.kind == FULL:
        used = PLANS.index(outcome.plan or status.changes.get(MEMORY, PLANS[-1]))
        return {MEMORY: PLANS[used - 1]} if used > 0 else None
    if outcome.kind == NOT_FINITE:
        tried = sum(attempt.outcome == NOT_FINITE for attempt in status.attempts)
        seed, noise_seed = (number + 1_000_003 for number in outcome.seeds)
        more = {"seed": seed % 2**32, "GuidanceParams.noise_seed": noise_seed}
        return more if tried < patience.seeds else None
    return None
