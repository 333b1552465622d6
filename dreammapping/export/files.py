"""The files of an export, one after another."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch.nn.functional as F

from dreammapping.export import sog, usd
from dreammapping.finished import FinishedRun
from scene.cameras import cameras_json
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from scene.splat_formats import compressed_ply, glb, splat, spz
from utils.files import write_text
from utils.inputs import regular_file
from utils.own_files import making, refuse_others
from utils.spherical_harmonics import coefficient_count

CAMERAS = "cameras.json"
Write = Callable[[Path, GaussianModel], None]

PER_GAUSSIAN = {
    "ply": lambda bands: 68 + 12 * bands,
    "splat": lambda _bands: 32,
    "spz": lambda bands: 20 + 3 * bands,
    "glb": lambda bands: 64 + 12 * bands,
    "compressed.ply": lambda bands: 17 + 3 * bands,
    "sog": lambda bands: 20 + 3 * bands,
    "usd": lambda bands: 68 + 12 * bands,
}
"""Bytes of a format, at most, by the coefficients above band 0 of a colour channel."""


def export_run(
    folder: Path,
    formats: list[str],
    out: Path,
    iteration: int | None = None,
    sh_degree: int | None = None,
    spz_version: int = 3,
) -> Iterator[str]:
    """Write a run's Gaussians into `out`, as RUN.FORMAT each, and cameras.json; yields a line for each file.

    Args:
        formats: of `dreammapping.export.command.FORMATS`.
        iteration: which saved iteration; the last one if None.
        sh_degree: harmonics that are written, 0 to 3, cut or padded with zeros; the run's own if None.

    Raises:
        UserError: the folder is no run or holds no such Gaussians, a format needs what is not installed, somebody
            else's file, or another run's, is in the place of one, or a file cannot be written. Files of formats before
            that one stay.
    """
    run = FinishedRun.open(folder)
    iteration = run.iteration(iteration)
    for name in formats:
        if name in CHECKS:
            CHECKS[name]()
    names = [f"{folder.resolve().name}.{name}" for name in formats]
    cameras = json.dumps(cameras_json(run.cameras()))
    made = names if _has(out / CAMERAS, cameras) else [*names, CAMERAS]  # runs of the same cameras share them
    refuse_others(out, made, source=folder)
    stored = run.size(iteration)
    degree = stored.sh_degree if sh_degree is None else sh_degree
    sizes = [PER_GAUSSIAN[name](coefficient_count(degree) - 1) * stored.count for name in formats]
    yield (
        f"{folder}, iteration {iteration}: {stored.count:,} Gaussians, harmonics of degree {degree}; about "
        f"{_megabytes(sum(sizes))} at most, and {_megabytes(stored.memory + 2 * max(sizes))} of memory"
    )
    model = run.gaussians(iteration)
    if sh_degree is not None:
        model = with_degree(model, sh_degree)
    with making(out, made, source=folder):
        for name, path in zip(formats, (out / name for name in names), strict=True):
            _writer(name, run.prompt, spz_version)(path, model)
            lost = "; without harmonics" if name == "splat" and degree else ""
            yield f"{path}: {_megabytes(path.stat().st_size)}{lost}"
        path = out / CAMERAS
        if CAMERAS in made:
            write_text(path, cameras)
        yield f"{path}: the cameras of the test views, in the frame of the .ply"


def _has(path: Path, text: str) -> bool:
    try:
        return regular_file(path).read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


CHECKS: dict[str, Callable[[], object]] = {"sog": sog.splat_transform, "usd": usd.library}
"""What says that a format cannot be written here, before anything is."""


def _writer(name: str, prompt: str, spz_version: int) -> Write:
    writers: dict[str, Write] = {
        "ply": partial(write_gaussians, comments=(f"prompt {prompt}",)),
        "splat": splat.write,
        "spz": partial(spz.write, version=spz_version),
        "glb": glb.write,
        "compressed.ply": compressed_ply.write,
        "sog": sog.write,
        "usd": usd.write,
    }
    return writers[name]


def with_degree(model: GaussianModel, degree: int) -> GaussianModel:
    """The same Gaussians with bands up to `degree`: those above are cut, those that are missing are zero."""
    rest = model.sh_rest.detach()[:, : coefficient_count(degree) - 1]
    missing = coefficient_count(degree) - 1 - rest.shape[1]
    changed = GaussianModel(**{name: getattr(model, name) for name in model.parameter_names})
    changed.replace({"sh_rest": F.pad(rest, (0, 0, 0, missing))})
    changed.active_sh_degree = degree
    return changed


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
