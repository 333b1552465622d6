"""Text to 2D, method beside method: the paper's figures 10 and 14 (`python -m dreammapping reproduce pictures`)."""

import logging
from pathlib import Path

import numpy as np

from arguments import load
from dreammapping.finished import FinishedRun
from dreammapping.program import optimize
from utils.contact_sheet import contact_sheet
from utils.errors import UserError
from utils.images import read_picture, write_picture

METHODS = "sds@7.5,sds@100,vsd,csd,nfsd,ism,vdm"

log = logging.getLogger(__name__)


def compare(methods: list[str], words: list[str], *, train: bool = True) -> tuple[Path, list[str]]:
    """One picture for each method, from the same start, t and noise, side by side in one file.

    Finished runs are kept and not repeated, runs that were stopped go on; the file lies beside their folders.

    Args:
        methods: names of losses, each with its guidance scale after an @, or that of the settings.
        words: the settings, as on the command line.
        train: False: only what is finished is shown.

    Returns:
        The file, and a line on each method: seconds and evaluations of the score model.

    Raises:
        UserError: a setting or a model cannot be used; or nothing is finished yet.
    """
    shown, lines = [], []
    for method in methods:
        name, _, scale = method.partition("@")
        chosen = [*words, f"guidance={name}", *([f"guidance_scale={scale}"] if scale else [])]
        base = load(chosen)[0].ModelParams
        if load(chosen)[0].ModelParams.representation != "image":
            raise UserError(
                "pictures: expected settings of a picture, got those of a 3D asset; "
                "add --opt configs/image/toybox.yaml or representation=image"
            )
        config, _ = load([*chosen, f"workspace={base.workspace}_{method.replace('@', '_')}"])
        folder = config.ModelParams.run_folder
        if train and not _is_finished(folder):
            resume = any((folder / "checkpoints").glob("iteration_*"))
            if optimize(config, resume=resume).exit_code:
                raise KeyboardInterrupt
        if _is_finished(folder):
            spent = FinishedRun.open(folder).manifest
            evaluations = spent["score_model_evaluations"]
            shown.append((method, read_picture(folder / "picture.png")))
            lines.append(
                f"{method}: {spent['seconds']:.0f} s, {evaluations['forward']} forward, "
                f"{evaluations['backward']} backward"
            )
    if not shown:
        raise UserError(
            f"pictures: expected finished runs in {folder.parent}, found none; leave out --report"
        )
    path = folder.parent / f"{base.workspace}_comparison.png"
    captions, pictures = zip(*shown, strict=True)
    side = min(picture.shape[0] for picture in pictures)
    write_picture(
        path, contact_sheet([("", np.stack([picture[:, :side] for picture in pictures]))], captions)
    )
    return path, lines


def _is_finished(folder: Path) -> bool:
    try:
        return FinishedRun.open(folder).manifest.get("finished") is True
    except UserError:  # no run yet, or one that a kill cut short
        return False
