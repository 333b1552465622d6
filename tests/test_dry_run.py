"""What a dry run says of the time: the usual iteration, not the one that something else slowed."""

import time
from types import SimpleNamespace

import pytest

from dreammapping import dry_run
from dreammapping.dry_run import seconds_per_iteration


class Timed:
    """An optimisation whose iterations take given seconds, on a clock of its own; the last goes on for ever."""

    def __init__(self, monkeypatch, seconds: list[float], iterations: int = 100) -> None:
        self.config = SimpleNamespace(iterations=iterations)
        self.seconds, self.now, self.steps = seconds, 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def iteration(self, step: int) -> None:
        self.now += self.seconds[min(len(self.steps), len(self.seconds) - 1)]
        self.steps.append(step)

    def state_dict(self) -> None:
        pass


def test_one_slow_iteration_and_the_first_do_not_change_what_is_said(monkeypatch):
    trial = Timed(monkeypatch, [9.0, 0.2, 0.2, 9.4, 0.2])
    assert seconds_per_iteration(trial) == pytest.approx(0.2)
    assert trial.steps == list(range(1, dry_run.TIMED + 2))


@pytest.mark.parametrize(("seconds", "timed"), [(235.0, 1), (dry_run.PATIENCE / 2 + 1, 2)])
def test_slow_iterations_are_few(monkeypatch, seconds, timed):
    trial = Timed(monkeypatch, [seconds])
    assert seconds_per_iteration(trial) == pytest.approx(seconds)
    assert len(trial.steps) == timed + 1


def test_a_short_run_is_not_overrun(monkeypatch):
    trial = Timed(monkeypatch, [0.1], iterations=3)
    seconds_per_iteration(trial)
    assert trial.steps == [1, 2, 3]
