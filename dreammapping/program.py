"""From settings to a finished run folder: the door that the command line and Python share."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arguments import Config, load, to_yaml
from dreammapping.loop import Callback, loop
from dreammapping.manifest import manifest
from dreammapping.optimization import Build, start
from dreammapping.subject import Subject
from scene.gaussian_model import GaussianModel
from utils import checkpoint
from utils.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run made.

    Attributes:
        subject: what was optimised, as it ended.
        folder: the run folder, with its asset, videos and pictures.
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
    return optimize(config, resume=resume, force=force, quiet=quiet, callback=callback)


def optimize(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    callback: Callback | None = None,
    build: Build | None = None,
) -> Result:
    """Run to the last iteration and write what upstream's users expect to find (see `utils.run`).

    Args:
        resume, force: what to do with a run that the folder already holds.
        callback: called as `callback(step, optimization)` after every iteration.
        build: makes the subject; default: the one that `ModelParams.representation` names.

    Raises:
        UserError: something that the user can mend.
    """
    run = Run(config.ModelParams.run_folder, to_yaml(config), resume=resume, force=force)
    if run.changed_settings:
        log.warning("resuming with other settings than before: %s", ", ".join(run.changed_settings))
    if config.preset:
        log.warning("preset %s: this is not the paper's setting", config.preset)
    optimization = start(config, build)
    outputs = optimization.subject.outputs(config, run)
    if resume:
        optimization.load_state_dict(checkpoint.load(checkpoint.checkpoints(run.path("checkpoints"))[-1]))
        run.rewind_metrics(optimization.step)
    else:
        outputs.write_start()
    run.write_manifest(**manifest(optimization, finished=False))
    interruption = loop(optimization, run, outputs, quiet, callback)
    if optimization.step == config.iterations:
        outputs.write_end()
        run.write_manifest(**manifest(optimization, finished=True))
        return Result(optimization.subject, run.folder, 0)
    log.warning(
        "saved after iteration %d of %d; the same command with --resume goes on",
        optimization.step,
        config.iterations,
    )
    return Result(optimization.subject, run.folder, interruption.exit_code)
