"""A run's own settings, run again: they begin beside that run, not over it."""

import dataclasses
import itertools
import logging
from pathlib import Path

from arguments import Config
from utils.aside import has_results

log = logging.getLogger(__name__)


def beside_its_run(config: Config, settings: Path | None) -> Config:
    """The same settings with a free folder, where they are those of a run that has results; else as they are.

    Args:
        settings: the file that they come from. A run's `config.yaml` names the folder that it lies in.
    """
    model, folder = config.ModelParams, config.ModelParams.run_folder
    if settings is None or settings.resolve().parent != folder.resolve() or not has_results(folder):
        return config
    number = next(count for count in itertools.count(2) if not _numbered(folder, count).exists())
    if model.model_path:
        model = dataclasses.replace(model, model_path=str(_numbered(folder, number)))
    else:
        model = dataclasses.replace(model, workspace=str(_numbered(Path(model.workspace), number)))
    log.info("%s stays as it is: this run goes into %s", folder, model.run_folder)
    return dataclasses.replace(config, ModelParams=model)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number}")
