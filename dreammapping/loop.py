"""The loop: iterate, log, draw and save until the last iteration or a signal; one for everything that is optimised."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from dreammapping.manifest import manifest
from dreammapping.metrics import Metrics
from dreammapping.optimization import Optimization
from dreammapping.outputs import Outputs
from dreammapping.viewer.beside import Beside
from utils import checkpoint
from utils.console import Forgiving
from utils.device import is_out_of_memory
from utils.distributed import highest
from utils.errors import OutOfMemory, UserError
from utils.interruption import Interruption
from utils.run import Run

log = logging.getLogger(__name__)

Callback = Callable[[int, Optimization], None]
"""Called after every iteration with its number, from 1, and the optimisation as it then is."""


def loop(
    optimization: Optimization,
    run: Run,
    outputs: Outputs,
    interruption: Interruption,
    quiet: bool = False,
    callback: Callback | None = None,
    viewer: Beside | None = None,
) -> None:
    """Go on until the last iteration, or until `interruption`; what was done is then saved.

    Args:
        viewer: shows the run as it grows.

    Raises:
        UserError: as `Optimization.iteration`; what can be saved is.
    """
    config, last = optimization.config, optimization.config.iterations
    progress = tqdm(
        range(optimization.step + 1, last + 1),
        initial=optimization.step,
        total=last,
        file=Forgiving(sys.stderr),
        disable=quiet,
        dynamic_ncols=True,
        mininterval=0.5,
        desc=run.folder.name,
    )
    metrics = Metrics(
        run, optimization.step, lambda line: progress.set_postfix(_shown(line, optimization.guidance.name))
    )

    def save() -> None:
        metrics.write_all()
        outputs.flush()
        checkpoint.save(run.path("checkpoints"), optimization.step, optimization.state_dict())
        run.stands()
        run.write_manifest(**manifest(optimization, finished=False))

    with outputs:
        for step in progress:
            with _saved_when_full(optimization, save):
                values = optimization.iteration(step)
                if step % config.log_interval == 0 or step == last:
                    metrics.add(step, values, optimization.subject.numbers())
                outputs.write_due(step, optimization.pictures)
            metrics.write_arrived()
            if viewer is not None:
                viewer.after(step, optimization, save, lambda: bool(interruption))
            if callback is not None:
                with _saved_when_it_fails(save):
                    callback(step, optimization)
            interruption.signal = highest(interruption.signal or 0) or None
            if step % config.checkpoint_interval == 0 or step == last or interruption:
                save()
            if interruption:
                break
    progress.close()


def follow(optimization: Optimization, interruption: Interruption) -> None:
    """As `loop`, in a process that shares the work of another one and writes nothing.

    Raises:
        UserError: as `Optimization.iteration`.
    """
    for step in range(optimization.step + 1, optimization.config.iterations + 1):
        optimization.iteration(step)
        interruption.signal = highest(interruption.signal or 0) or None
        if interruption:
            break


@contextmanager
def _saved_when_full(optimization: Optimization, save: Callable[[], None]) -> Iterator[None]:
    """Where memory runs out within the block, save the last whole iteration and say what to try."""
    try:
        yield
    except (OutOfMemory, RuntimeError, MemoryError) as error:
        if not isinstance(error, OutOfMemory):  # while something was drawn
            if not is_out_of_memory(error):
                raise
            error = OutOfMemory(f"iteration {optimization.step}: {optimization.advice()}", whole=True)
        if error.whole and optimization.step > 0:
            if optimization.device.type == "cuda":
                torch.cuda.empty_cache()
            save()
            raise UserError(f"{error} (saved after iteration {optimization.step})") from error
        raise error


@contextmanager
def _saved_when_it_fails(save: Callable[[], None]) -> Iterator[None]:
    """Where a caller's function raises, or ends the program, the iteration before it is not lost."""
    try:
        yield
    except (Exception, SystemExit):
        save()
        raise


def _shown(line: dict[str, float], method: str) -> dict[str, str]:
    """The numbers of the progress bar: distillation and operator loss, timestep, Gaussians."""
    names = {f"loss/{method}": method, "loss/degradation": "op", "timestep": "t", "gaussians": "n"}
    return {short: f"{line[name]:.4g}" for name, short in names.items() if name in line}
