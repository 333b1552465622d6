"""From settings to a finished run folder: the door that the command line and Python share."""

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import PLACE, Config, differences, load, to_yaml
from dreammapping.beside import in_its_place
from dreammapping.finished import FinishedRun
from dreammapping.loop import Callback, follow, loop
from dreammapping.manifest import manifest
from dreammapping.optimization import Build, Load, Optimization, start
from dreammapping.outputs import Outputs, outputs_of
from dreammapping.subject import Subject
from dreammapping.viewer.beside import Beside
from dreammapping.viewer.needs import require_viser
from guidance.models import kept_as_they_were
from scene.gaussian_model import GaussianModel
from utils import checkpoint
from utils.device import choose_device, fullness, is_out_of_memory, plain_torch
from utils.distributed import joined, rank
from utils.errors import InUse, Stopped, UserError
from utils.interruption import Interruption, told_apart
from utils.repository import QUICKSTART
from utils.run import Run

log = logging.getLogger(__name__)

BESIDE_THE_ASSET = {
    "device", "offline", "viewer", "port", "test_ratio", "checkpoint_interval", "log_interval", "save_video", "page",
    "video_frames", "OptimizationParams.iterations", "OptimizationParams.save_process",
    "OptimizationParams.pro_frames_num", "OptimizationParams.pro_render_45", "PipelineParams.backend",
    "PipelineParams.debug", "GenerateCamParams.render_45", "GuidanceParams.vram_O", "GuidanceParams.vis_interval",
    "FieldParams.mesh_density", "FieldParams.ray_chunk", "ImageParams.steps", "ImageParams.picture_interval",
}  # fmt: skip
"""Settings of what lies beside the asset, of the hardware, and of the length, which is compared by itself."""
_one = threading.RLock()
"""Held by the thread that has a run; a callback in it may make another."""


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        subject: what was optimised, as it ended.
        folder: the run folder, with its asset, videos and pictures; absolute.
        exit_code: 0 when the run is finished, 128 plus a signal's number when one ended it early.
    """

    subject: Subject
    folder: Path
    exit_code: int

    @property
    def gaussians(self) -> GaussianModel:
        """The asset, where it is made of Gaussians; z up, front +y."""
        return self.subject.gaussians  # type: ignore[attr-defined]


def generate(
    prompt: str,
    settings: str | Path = QUICKSTART,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    callback: Callback | None = None,
) -> Result:
    """Make an asset of a prompt.

    Args:
        settings: a settings file; what it does not name has its default. The quick start's, wherever the program lies.
        overrides: settings to change, such as `{"iterations": 300, "GuidanceParams.guidance_scale": 15}`; a key that
            only one group has needs no group.
        resume, force: go on with, or replace, the run that the folder already holds.
        quiet: no progress bar.
        callback: called after every iteration.

    Raises:
        UserError: something that the user can fix, in one line.
    """
    changes = {"GuidanceParams.text": prompt, **(overrides or {})}
    config, command = load(["--opt", str(settings)], changes)
    config = in_its_place(config, replace(command, resume=resume, force=force))
    return optimize(config, resume=resume, force=force, quiet=quiet, callback=callback)


def optimize(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    callback: Callback | None = None,
    build: Build | None = None,
    load: Load | None = None,
) -> Result:
    """Run to the last iteration and write what upstream's users expect to find (see `utils.run`).

    Args:
        resume, force: what to do with a run that the folder already holds.
        callback: called as `callback(step, optimization)` after every iteration.
        build: makes the subject; default: the one that `ModelParams.representation` names.
        load: gives the prior; default: it is loaded.

    Raises:
        UserError: something that the user can fix.
    """
    if config.viewer:
        require_viser("viewer=true")
    with joined():
        if rank() > 0:
            return _follow(config, build, load)
        return _lead(config, resume, force, quiet, callback, build, load)


def _lead(
    config: Config,
    resume: bool,
    force: bool,
    quiet: bool,
    callback: Callback | None,
    build: Build | None,
    load: Load | None,
) -> Result:
    """The run in the process that writes it."""
    run = Run(config.ModelParams.run_folder, resume=resume, force=force)
    try:
        with told_apart(), _at_work(config), run:
            optimization = start(config, build, load)
            if resume:
                _go_on(optimization, run)
            optimization.align()
            if config.preset:
                log.warning("preset %s: this is not the paper's setting", config.preset)
            outputs = outputs_of(config, run, optimization.subject)
            with Interruption() as interruption:
                run.claim(to_yaml(config))  # here the folder is first changed
                return _carry_out(optimization, run, outputs, interruption, quiet, callback)
    except KeyboardInterrupt as error:
        raise Stopped(_what_is_left(run), getattr(error, "number", signal.SIGINT)) from error


def _follow(config: Config, build: Build | None, load: Load | None) -> Result:
    """The run in a process that shares the work and writes nothing."""
    logging.getLogger().setLevel(logging.ERROR)  # the first process says it
    with _at_work(config):
        optimization = start(config, build, load)
        optimization.align()
        with Interruption() as interruption:
            follow(optimization, interruption)
        done = optimization.step == config.iterations
        folder = config.ModelParams.run_folder.absolute()
        return Result(optimization.subject, folder, 0 if done else interruption.exit_code)


@contextmanager
def _at_work(config: Config) -> Iterator[None]:
    """Within the block, full memory is told, and torch and the libraries of models are as the program needs them.

    Raises:
        InUse: another thread has such a block: defaults of types, and random numbers, are those of a whole process.
    """
    if not _one.acquire(blocking=False):
        raise InUse(
            f"{config.ModelParams.run_folder}: expected no other run in this process, got one in another thread; wait "
            "until that ends, or start this one in a process of its own"
        )
    try:
        with _told_when_full(config), kept_as_they_were(), plain_torch():
            yield
    finally:
        _one.release()


def _carry_out(
    optimization: Optimization,
    run: Run,
    outputs: Outputs,
    interruption: Interruption,
    quiet: bool,
    callback: Callback | None,
) -> Result:
    """Everything between a claimed folder and a result."""
    last = optimization.config.iterations
    run.rewind_metrics(optimization.step)
    if optimization.step == 0:
        outputs.write_start()
    told = manifest(optimization, finished=False)
    _warn_of_other_weights(run.manifest.get("prior"), told["prior"])
    run.write_manifest(**told)
    config = optimization.config
    with Beside(run.folder, config.port) if config.viewer else nullcontext() as viewer:
        loop(optimization, run, outputs, interruption, quiet, callback, viewer)
    if optimization.step == last:
        optimization.subject.check(run.folder, last)
        outputs.write_end()
        run.write_manifest(**manifest(optimization, finished=True))
        if optimization.config.page:
            _write_page(FinishedRun(run.folder, optimization.config))
        return Result(optimization.subject, run.folder, 0)
    log.warning(
        "saved after iteration %d of %d; to continue, repeat the command with --resume",
        optimization.step,
        last,
    )
    return Result(optimization.subject, run.folder, interruption.exit_code)


def _write_page(run: FinishedRun) -> None:
    """The page of a finished run; whatever goes wrong with it costs one warning and nothing of the run."""
    try:
        from dreammapping.page.page import write_page

        write_page(run)
    except Exception as error:  # noqa: BLE001 - the run is finished
        log.warning("%s: the page cannot be written (%s)", run.folder, str(error) or type(error).__name__)


def _go_on(optimization: Optimization, run: Run) -> None:
    """Load the newest checkpoint.

    Raises:
        UserError: it is damaged, of other settings, or of a later iteration than the settings ask for; or it is of the
            last one, and what it was made with differs.
    """
    newest = checkpoint.checkpoints(run.path("checkpoints"))[-1]
    done, wanted = checkpoint.step_of(newest), optimization.config.iterations
    if done > wanted:
        raise UserError(
            f"{run.folder}: expected a run of at most {wanted} iterations, got one that has done {done}; "
            f"set iterations={done} or more, or leave out --resume and choose another workspace"
        )
    changed = _changes(optimization.config, run)
    state = checkpoint.load(newest)
    try:
        optimization.load_state_dict(state)
    except UserError as error:
        advice = (
            f": {', '.join(changed)} differ"
            if changed
            else f", or delete {newest}, which may be damaged, to go on from the one before it"
        )
        raise UserError(f"{error}{advice}") from error
    if optimization.step != done:
        raise UserError(
            f"{newest}: expected the checkpoint of iteration {done}, got that of {optimization.step}; give the folder "
            "its name back, or delete it to go on from the one before it"
        )
    if done == wanted:
        other = [name for name in changed if not _is_beside_the_asset(name)]
        if other:
            raise UserError(
                f"{run.folder}: expected the settings it was made with, as all {done} iterations are done, got other "
                f"{', '.join(other)}; set more iterations, or leave out --resume and choose another workspace"
            )
        log.info("all %d iterations were done before; what is missing after the last is written", done)
    if changed:
        log.warning("resuming with other settings than before: %s", ", ".join(changed))
    # config.yaml may have the new seeds since a resume that was killed before its first checkpoint: its draws are lost
    other = optimization.other_seeds
    if other or (other is None and {"seed", "GuidanceParams.noise_seed"} & set(changed)):
        optimization.reseed()


def _is_beside_the_asset(name: str) -> bool:
    """Whether a setting can change after the last iteration, and what the settings say of the asset is still true."""
    return name in BESIDE_THE_ASSET or name.startswith("HardwareParams.")


def _warn_of_other_weights(before: Any, now: dict[str, Any]) -> None:
    """Say which files of the models are others than when the run began: its settings may name the same ones."""
    known, here = _weights(before), _weights(now)
    if not known:  # a new run, or a manifest that is damaged
        return
    # by what is in them: a file may have been moved
    others = {name for name, digest in known.items() if digest not in here.values()}
    others |= {name for name, digest in here.items() if digest not in known.values()}
    if others:
        log.warning(
            "resuming with other weights than before: %s; what is done was made with the others, so give the folder "
            "those back or start anew",
            ", ".join(sorted(others)),
        )


def _weights(told: Any) -> dict[str, Any]:
    """The hashes that a manifest tells of a model and of what was added to it, by file."""
    if not isinstance(told, dict):
        return {}
    own = told.get("sha256")
    found = dict(own) if isinstance(own, dict) else {}
    for setting, each in told.items():
        if setting != "sha256":
            found |= {f"{setting}: {name}": digest for name, digest in _weights(each).items()}
    return found


def _changes(config: Config, run: Run) -> list[str]:
    """The settings that a resumed run had otherwise; none, with a warning, where it cannot be told."""
    try:
        return [name for name in differences(run.path("config.yaml"), config) if name not in PLACE]
    except UserError as error:
        log.warning("%s; it is written anew", run.as_given(error))
        return []


@contextmanager
def _told_when_full(config: Config) -> Iterator[None]:
    """Where memory runs out beside an iteration: while something is read, saved or drawn."""
    folder = config.ModelParams.run_folder
    place = folder.absolute()  # a callback may change the working directory
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        saved = checkpoint.checkpoints(place / "checkpoints")
        left = (
            f"what was done up to iteration {checkpoint.step_of(saved[-1])} is saved; to continue from it, repeat the "
            "command with --resume"
            if saved
            else "no checkpoint was made"
        )
        raise UserError(
            f"{folder}: {fullness(choose_device(config.device))}; end what else uses it, or try a smaller "
            f"HardwareParams.memory or max_gaussians; {left}"
        ) from error


def _what_is_left(run: Run) -> str:
    if not run.claimed:
        return "stopped before the run began; nothing was changed"
    saved = checkpoint.checkpoints(run.path("checkpoints")) if run.standing else []
    if not saved:
        return "stopped at once, before the first checkpoint; repeat the command to start again"
    if run.manifest.get("finished"):
        return f"stopped at once, but the run was finished: {run.given}"
    return (
        f"stopped at once; the last checkpoint is that of iteration {checkpoint.step_of(saved[-1])}, "
        "from which the command with --resume continues"
    )
