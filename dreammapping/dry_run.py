"""`--dry-run`: all that a run needs is loaded, and a few iterations are taken of which nothing is kept."""

import statistics
import time
from dataclasses import dataclass

from arguments import Config
from dreammapping.optimization import Build, Optimization, start
from utils.device import GIB
from utils.peak_memory import peak_memory

TIMED, PATIENCE = 7, 20.0
"""Iterations that are timed, and the seconds after which no further one begins: at least one always does."""


@dataclass(frozen=True)
class Trial:
    """A few iterations that were tried, and what they took.

    Attributes:
        start: what it begins with, as the subject counts it.
        needed: bytes by part, as estimated. seconds: of an iteration.
    """

    optimization: Optimization
    start: dict[str, int]
    needed: dict[str, int]
    seconds: float

    @property
    def gib(self) -> float:
        """The estimate in GiB."""
        return sum(self.needed.values()) / GIB


def try_out(config: Config, build: Build | None = None) -> Trial:
    """Load all that a run needs and pass through a few iterations of it, keeping nothing.

    Raises:
        UserError: as `Optimization` and its iterations.
    """
    optimization = start(config, build)
    size, needed = optimization.subject.numbers(), optimization.memory()
    return Trial(optimization, size, needed, seconds_per_iteration(optimization))


def dry_run(config: Config, build: Build | None = None) -> str:
    """Try a run out, keeping nothing.

    Returns:
        What was found and measured: the prior, the start, memory, and the time that the run would take.

    Raises:
        UserError: as `Optimization` and its iterations.
    """
    trial = try_out(config, build)
    optimization, seconds = trial.optimization, trial.seconds
    prior, device = optimization.score_model, optimization.device
    size = ", ".join(f"{count} {name.capitalize()}" for name, count in trial.start.items())
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in trial.needed.items())
    return (
        f"prior     {config.GuidanceParams.model_key}, {prior.prediction_type}, "
        f"{' x '.join(map(str, prior.image_size))} px, {str(prior.dtype)[6:]}\n"
        f"start     {size} on {device}\n"
        f"method    {config.GuidanceParams.guidance_method}, {optimization.subject.views} views an iteration\n"
        f"estimate  {trial.gib:.2f} GiB of memory ({parts}), plan {prior.plan.name}\n"
        f"memory    {peak_memory(device) / GIB:.2f} GiB at its peak so far\n"
        f"time      {seconds:.2f} s an iteration, about {seconds * config.iterations / 60:.0f} min "
        f"for {config.iterations} iterations, after {optimization.warm_up_seconds:.0f} s of preparation\n"
        f"folder    {config.ModelParams.run_folder}\n"
    )


def seconds_per_iteration(optimization: Optimization) -> float:
    """The median of several after one that is not counted, so that a moment of other work is not in it."""
    optimization.iteration(1)
    taken: list[float] = []
    most = min(TIMED, max(1, optimization.config.iterations - 1))
    while len(taken) < most and sum(taken) < PATIENCE:
        started = time.perf_counter()
        optimization.iteration(len(taken) + 2)
        optimization.state_dict()  # waits for the device
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
