"""A run's own settings, run again: they begin beside that run, not over it, and go on with that run or none."""

import dataclasses
import itertools
import logging
import shlex
from pathlib import Path

from arguments import Command, Config, ModelParams
from utils.aside import has_results
from utils.errors import UserError
from utils.paths import user_path
from utils.run import is_run

log = logging.getLogger(__name__)


def in_its_place(config: Config, command: Command) -> Config:
    """The same settings with a free folder, where they are those of a run that has results; else as they are.

    Args:
        command: its settings file may lie in a run. A run's `config.yaml` names that run's folder, unless the folder
            was renamed or copied since.

    Raises:
        UserError: `--resume` or `--force` would work on another run than the one in which the file lies, and no word
            of the command names it.
    """
    model, folder = config.ModelParams, config.ModelParams.run_folder
    if command.opt is None:
        return config
    own = command.opt.resolve().parent
    if command.resume or command.force:
        if own != folder.resolve() and is_run(own) and not command.names_folder:
            raise UserError(
                f"{command.opt}: expected settings of the run {folder}, which they name, got those of a run in {own}; "
                f"say which one is meant: {_word(model, own)} or {_word(model, folder)}"
            )
        return config
    if own != folder.resolve() or not has_results(folder):
        return config
    if folder.name in ("", ".."):  # "." has no name to add a number to
        folder = own
    beside = next(path for count in itertools.count(2) if not (path := _numbered(folder, count)).exists())
    model = dataclasses.replace(model, **_settings(model, beside))
    log.info("%s stays as it is: this run goes into %s", folder, model.run_folder)
    return dataclasses.replace(config, ModelParams=model)


def _settings(model: ModelParams, folder: Path) -> dict[str, str]:
    """The setting that makes `folder` the run's."""
    above = user_path(model.output_path, "ModelParams.output_path").resolve()
    if model.model_path or not folder.resolve().is_relative_to(above):
        return {"model_path": str(folder)}
    return {"workspace": str(folder.resolve().relative_to(above))}


def _word(model: ModelParams, folder: Path) -> str:
    """That setting as a word of a command line."""
    return shlex.join(f"{key}={value}" for key, value in _settings(model, folder).items())


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")
