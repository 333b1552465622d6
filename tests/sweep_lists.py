"""Lists and workers for tests of sweeps that run nothing."""

import dataclasses

from dreammapping.sweep.grid import Grid, Job
from dreammapping.sweep.status import Worker


def listed(*names: str, settings: str = "seed: 0\n") -> Grid:
    """A list of runs of these names that have the same settings."""
    return Grid([Job(name, "a red car", 0, "one", {}) for name in names], {"one": settings})


def elsewhere() -> Worker:
    """A worker of a host that nothing is known of."""
    return dataclasses.replace(Worker.me(), host="far", place="far", ticks=1)
