"""Text to 3D Gaussians, from Python: `generate("a red car", "configs/quickstart.yaml").gaussians`.

`generate` takes a prompt and settings, `optimize` a resolved `Config`; both leave in the run folder what the command
line leaves, because `train.py` calls them too. `training.Training` is a single optimisation without files.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from arguments import Config, load, to_yaml
from dreammapping.outputs import Outputs
from dreammapping.training import Training, choose_device, fullness, is_out_of_memory
from guidance.models import missing_models, shape_provenance
from guidance.prior.memory import GIB
from scene.gaussian_model import GaussianModel
from utils import checkpoint
from utils.errors import OutOfMemory, UserError
from utils.interruption import Interruption
from utils.readback import Readback
from utils.run import Run, peak_memory

log = logging.getLogger(__name__)

Callback = Callable[[int, Training], None]
"""Called after every iteration with its number, from 1, and the training as it then is."""


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        gaussians: the asset; z up, front +y.
        folder: the run folder, with its .ply, videos and pictures.
        exit_code: 0 when the run is finished, 128 plus a signal's number when one ended it early.
    """

    gaussians: GaussianModel
    folder: Path
    exit_code: int


def generate(
    prompt: str,
    settings: str | Path = "configs/quickstart.yaml",
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    callback: Callback | None = None,
) -> Result:
    """Make an asset of a prompt.

    Args:
        settings: a settings file; what it does not name has its default.
        overrides: settings to change, such as `{"iterations": 300, "GuidanceParams.guidance_scale": 15}`; a key that
            only one group has needs no group.
        resume, force: go on with, or replace, the run that the folder already holds.
        quiet: no progress bar.
        callback: called after every iteration.

    Raises:
        UserError: something that the user can mend, in one line.
    """
    changes = {"GuidanceParams.text": prompt, **(overrides or {})}
    words = [
        f"{name}={value if isinstance(value, str | Path) else json.dumps(value)}"
        for name, value in changes.items()
    ]
    config, _ = load(["--opt", str(settings), *words])
    return optimize(
        config, resume=resume, force=force, offline=config.offline, quiet=quiet, callback=callback
    )


def optimize(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
    callback: Callback | None = None,
) -> Result:
    """Run to the last iteration and write what upstream's users expect to find (see `utils.run`).

    Args:
        resume, force: what to do with a run that the folder already holds.
        callback: called as `callback(step, training)` after every iteration.

    Raises:
        UserError: something that the user can mend.
    """
    check_models(config, offline=offline)
    run = Run(config.ModelParams.run_folder, to_yaml(config), resume=resume, force=force)
    if run.changed_settings:
        log.warning("resuming with other settings than before: %s", ", ".join(run.changed_settings))
    if config.preset:
        log.warning("preset %s: this is not the paper's setting", config.preset)
    training = start(config, offline=offline)
    outputs = Outputs(config, run, training.device)
    if resume:
        training.load_state_dict(checkpoint.load(checkpoint.checkpoints(run.path("checkpoints"))[-1]))
        run.rewind_metrics(training.step)
    else:
        outputs.write_start(training.gaussians)
    run.write_manifest(**_manifest(training, finished=False))
    interruption = _loop(training, run, outputs, quiet, callback)
    if training.step == config.OptimizationParams.iterations:
        outputs.write_end()
        run.write_manifest(**_manifest(training, finished=True))
        return Result(training.gaussians, run.folder, 0)
    log.warning(
        "saved after iteration %d of %d; the same command with --resume goes on",
        training.step,
        config.OptimizationParams.iterations,
    )
    return Result(training.gaussians, run.folder, interruption.exit_code)


def start(config: Config, *, offline: bool = False) -> Training:
    """A `Training` that is ready to iterate: loaded, compiled where it is compiled.

    Raises:
        UserError: as `Training`; or the device is too full for the models.
    """
    try:
        training = Training(config, offline=offline)
        began = time.perf_counter()
        training.warm_up()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"device {config.device}: {fullness(choose_device(config.device))} and does not hold the models; end what "
            "else uses it, or try HardwareParams.memory=8gb, or device=cpu"
        ) from error
    training.warm_up_seconds = round(time.perf_counter() - began, 2)
    return training


def check_models(config: Config, *, offline: bool = False) -> None:
    """Look for everything that the run will load, before anything is loaded.

    Raises:
        UserError: something is missing; all that is missing is named at once.
    """
    problems = missing_models(config, offline)
    if problems:
        raise UserError("; ".join(problems))


def dry_run(config: Config, *, offline: bool = False) -> str:
    """Load all that a run needs and pass through one iteration of it, keeping nothing.

    Returns:
        What was found and measured: the prior, the start, memory, and the time that the run would take.

    Raises:
        UserError: as `Training` and its iterations.
    """
    check_models(config, offline=offline)
    training = start(config, offline=offline)
    needed = training.memory()
    training.iteration(1)
    started = time.perf_counter()
    training.iteration(2)
    training.state_dict()  # waits for the device
    seconds = time.perf_counter() - started
    on_device = (
        torch.cuda.max_memory_allocated(training.device) if training.device.type == "cuda" else peak_memory()
    )
    params, images = config.OptimizationParams, config.GenerateCamParams
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in needed.items())
    return (
        f"prior     {config.GuidanceParams.model_key}, {training.score_model.prediction_type}, "
        f"{' x '.join(map(str, training.score_model.image_size))} px, {str(training.score_model.dtype)[6:]}\n"
        f"start     {len(training.gaussians)} Gaussians, rendered at {images.image_w} x {images.image_h} px "
        f"on {training.device}\n"
        f"method    {config.GuidanceParams.guidance_method}, {config.GuidanceParams.C_batch_size} views an iteration\n"
        f"estimate  {sum(needed.values()) / GIB:.2f} GiB of memory ({parts}), plan {training.plan_name}\n"
        f"memory    {on_device / GIB:.2f} GiB at its peak so far\n"
        f"time      {seconds:.2f} s an iteration, about {seconds * params.iterations / 60:.0f} min "
        f"for {params.iterations} iterations, after {training.warm_up_seconds:.0f} s of compiling\n"
        f"folder    {config.ModelParams.run_folder}\n"
    )


def _loop(
    training: Training, run: Run, outputs: Outputs, quiet: bool, callback: Callback | None
) -> Interruption:
    """Iterate, log, draw and save until the last iteration or a signal."""
    config, last = training.config, training.config.OptimizationParams.iterations
    progress = tqdm(
        range(training.step + 1, last + 1),
        initial=training.step,
        total=last,
        disable=quiet,
        dynamic_ncols=True,
        mininterval=0.5,
        desc=run.folder.name,
    )
    metrics = Metrics(
        run, config.log_interval, lambda line: progress.set_postfix(_shown(line, training.guidance.name))
    )
    with Interruption() as interruption, outputs:
        for step in progress:
            with _saved_when_full(training, run):
                values = training.iteration(step)
            if step % config.log_interval == 0 or step == last:
                metrics.add(step, values, len(training.gaussians))
            metrics.write_arrived()
            outputs.write_due(step, training.gaussians)
            outputs.write_pictures_due(step, training.pictures)
            if callback is not None:
                callback(step, training)
            if step % config.checkpoint_interval == 0 or step == last or interruption:
                metrics.write_all()
                outputs.flush()
                checkpoint.save(run.path("checkpoints"), step, training.state_dict())
                run.write_manifest(**_manifest(training, finished=False))
            if interruption:
                break
    progress.close()
    return interruption


@contextmanager
def _saved_when_full(training: Training, run: Run) -> Iterator[None]:
    """Where memory runs out within the block, save the last whole iteration and say what to try."""
    try:
        yield
    except OutOfMemory as error:
        if error.whole and training.step > 0:
            if training.device.type == "cuda":
                torch.cuda.empty_cache()
            checkpoint.save(run.path("checkpoints"), training.step, training.state_dict())
            run.write_manifest(**_manifest(training, finished=False))
            raise UserError(f"{error} (saved after iteration {training.step})") from error
        raise


class Metrics:
    """Lines of `metrics.jsonl`, written when their numbers have arrived from the device."""

    def __init__(self, run: Run, interval: int, written: Callable[[dict[str, float]], None]) -> None:
        self._run, self._interval, self._written = run, interval, written
        self._pending: deque[tuple[int, Readback, dict[str, float]]] = deque()
        self._since = time.perf_counter()

    def add(self, step: int, values: Mapping[str, Tensor | float], gaussians: int) -> None:
        """The numbers of an iteration, wherever they still are."""
        now = time.perf_counter()
        seconds = round((now - self._since) / self._interval, 4)
        self._since = now
        known = {"gaussians": gaussians, "seconds_per_iteration": seconds}
        self._pending.append((step, Readback(values), known))

    def write_arrived(self) -> None:
        """Write the lines whose numbers are here, in order, and wait for none."""
        while self._pending and self._pending[0][1].ready:
            step, values, known = self._pending.popleft()
            rounded = {name: round(value, 6) for name, value in values.values().items()}
            line = {"step": step, **rounded, **known}
            self._run.log(line)
            self._written(line)

    def write_all(self) -> None:
        """Write every line, waiting for its numbers."""
        for _, values, _ in self._pending:
            values.values()
        self.write_arrived()


def _manifest(training: Training, *, finished: bool) -> dict[str, Any]:
    config, shape_model = training.config, training.config.GenerateCamParams.shape_model
    return {
        "prompt": config.GuidanceParams.text,
        "method": config.GuidanceParams.guidance_method,
        "preset": config.preset or None,
        "seed": config.seed,
        "prior": training.score_model.provenance,
        "shape_model": shape_provenance(shape_model) if config.starts_from_text else None,
        "device": str(training.device),
        "precision": str(training.score_model.dtype)[6:],
        "memory_plan": training.plan_name,
        "warm_up_seconds": training.warm_up_seconds,
        "iterations": training.step,
        "finished": finished,
        "gaussians": len(training.gaussians),
        "score_model_evaluations": training.score_model.evaluations.state_dict(),
    }


def _shown(line: dict[str, float], method: str) -> dict[str, str]:
    """The numbers of the progress bar: distillation and operator loss, timestep, Gaussians."""
    names = {f"loss/{method}": method, "loss/degradation": "op", "timestep": "t", "gaussians": "n"}
    return {short: f"{line[name]:.4g}" for name, short in names.items() if name in line}
