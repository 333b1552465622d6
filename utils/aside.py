"""What a run wrote, told from all else; and a run that is being replaced, moved aside until the new one stands."""

import contextlib
import itertools
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError
from utils.inputs import json_object, regular_file
from utils.own_files import LOCK, RECORD, is_unchanged, recorded
from utils.own_pages import is_as_left

log = logging.getLogger(__name__)

WRITTEN = re.compile(
    r"""config\.yaml | cfg_args | cameras\.json | init_points3d\.ply | input\.ply | metrics\.jsonl | run\.json
    | index\.html | judge\.json | judge_views\.png
    | train_process/(iter|step)_\d+\.jpg
    | test_six_views/\d+_iteration/(render_(view|depth)_\d+|all_views)\.png
    | videos/\d+_iteration/video_(rgb|depth)_\d+\.mp4
    | process_videos/(video_rgb\.mp4|frames/\d{7,}\.jpg)
    | point_cloud/iteration_\d+/point_cloud(\.ply|_rgb\.txt)
    | checkpoints/iteration_\d+/(tensors\.safetensors|state\.json)""",
    re.VERBOSE,
)
"""The files of a run, by their path in its folder; nothing else in it is ever removed, but `ASSETS`."""
MADE = ("export", "mesh")
"""Folders of what other commands made of a run because somebody asked for it: it goes aside with the run, and is never
removed."""
KEPT = "replaced"
"""Where it is kept when another run stands in the place of its own: in a numbered folder of this one."""
ASSETS = {
    "image": re.compile(r"picture\.png"),
    "grid": re.compile(r"field\.safetensors|mesh\.ply"),
    "hash": re.compile(r"field\.safetensors|mesh\.ply"),
}
"""What a run of a representation leaves under a name that, beside another run, a user may have given to a file."""
SETTINGS, MANIFEST = "config.yaml", "run.json"
PAGE = "index.html"
SCORES = ("judge.json", "judge_views.png")
FOLDERS = ("train_process", "test_six_views", "videos", "process_videos", "point_cloud", "checkpoints")
"""The folders in which they lie."""
RESULTS = re.compile(rf"({'|'.join(FOLDERS)})/.*|picture\.png|field\.safetensors|mesh\.ply")
"""Those of them that somebody would miss."""
_PARTS = re.compile(r"frames|iteration_\d+|\d+_iteration")
"""The folders in those."""
_ASIDE = re.compile(r"\.replaced-[0-9a-f]{8}")
"""A whole run that was moved aside."""
_MOVING = re.compile(r"\.moving-[0-9a-f]{8}")
"""A part of one, on its way there or back: nothing is lost if it ends in the middle."""


def written(folder: Path) -> list[Path]:
    """The files in a run's folder that a run wrote, relative to it. Links are no such files and are not followed."""
    found, asset = [], _asset(folder)
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        if not below.parts:
            folders[:] = [name for name in folders if name in FOLDERS]
        found += [
            below / name
            for name in files
            if any(kind.fullmatch((below / name).as_posix()) for kind in (WRITTEN, *asset))
            and not Path(place, name).is_symlink()
            and (name != PAGE or _is_page(Path(place, name)))
            and (name not in SCORES or _is_aside(folder) or is_unchanged(folder, name))
        ]
    return sorted(
        found, key=lambda path: (path.name in (MANIFEST, SETTINGS), path)
    )  # they say of what kind the others are


def made(folder: Path) -> list[Path]:
    """The exports and meshes in a run's folder that this program made, relative to it, and at the end its record of
    them. Links are no such files and are not followed."""
    places = [folder / name for name in MADE if not (folder / name).is_symlink()]
    found = [path for place in places for path in place.glob("*") if path.is_file() and not path.is_symlink()]
    if not _is_aside(folder):
        found = [path for path in found if path.name in {*recorded(path.parent), RECORD, LOCK}]
    return sorted((path.relative_to(folder) for path in found), key=lambda path: (path.name == RECORD, path))


def _is_aside(folder: Path) -> bool:
    """Whether only a run's files lie there."""
    return bool(_ASIDE.fullmatch(folder.name) or _MOVING.fullmatch(folder.name))


def _asset(folder: Path) -> list[re.Pattern[str]]:
    """What the asset of the run in a folder is called, by what it says of itself; all of them where only a run's files
    lie."""
    if _is_aside(folder):
        return list(ASSETS.values())
    told = json_object(folder / MANIFEST)
    if "representation" not in told:  # of an earlier version, or not written yet
        with contextlib.suppress(OSError, ValueError):
            told = _model_of(regular_file(folder / SETTINGS).read_text(encoding="utf-8"))
    return [name for kind, name in ASSETS.items() if told.get("representation") == kind]


def refuse_others(folder: Path, settings: str) -> None:
    """Raise UserError where somebody else's file has a name that the asset of a run of these settings would take."""
    kind = _model_of(settings).get("representation")
    ours = {path.as_posix() for path in written(folder)}
    for path in sorted(folder.iterdir()) if kind in ASSETS else ():
        if ASSETS[kind].fullmatch(path.name) and path.name not in ours:
            raise UserError(
                f"{path}: expected no file, or one of the run that is replaced, found another; move it, or choose "
                "another workspace"
            )


def _model_of(settings: str) -> dict[str, Any]:
    """The group `ModelParams` of settings, every value as text; nothing where they are damaged."""
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        tree = yaml.load(settings, yaml.BaseLoader)  # text alone: nothing is built, nothing merged
        group = tree.get("ModelParams") if isinstance(tree, dict) else None
        return group if isinstance(group, dict) else {}
    return {}


def _is_page(path: Path) -> bool:
    try:
        return is_as_left(path)
    except OSError:
        return False


def has_results(folder: Path) -> bool:
    """Whether a run's folder holds what somebody would miss: whatever is left of a run that was saved, and not what one
    left that ended before its first checkpoint."""
    told = json_object(folder / MANIFEST)
    if told.get("finished") or told.get("iterations"):
        return True
    return told.get("iterations") != 0 and any(RESULTS.fullmatch(path.as_posix()) for path in written(folder))


def move_aside(folder: Path) -> None:
    """Move a run's files into a folder of their own inside it.

    Raises:
        UserError: a part of the run is a link, whose target is not ours to empty; or the files cannot be moved. Then
            `settle` moves back what was moved.
    """
    for name in FOLDERS:
        for path in (folder / name, *(folder / name).glob("*")):
            if path.is_symlink() and (path.name == name or _PARTS.fullmatch(path.name)):
                raise UserError(
                    f"{path}: expected a folder of the run that is replaced, found a link, and what it leads to is "
                    "left alone; remove the link, or choose another workspace"
                )
    word = secrets.token_hex(4)
    moving = folder / f".moving-{word}"
    _move(folder, moving)
    if moving.is_dir():
        moving.rename(folder / f".replaced-{word}")


def settle(folder: Path, *, stands: bool) -> None:
    """Bring to an end what a process left half done.

    Args:
        stands: a new run has a checkpoint, so what it replaced is removed; else that comes back, in the place of what
            the new run has written so far.
    """
    for moving in _inside(folder, _MOVING):
        _move_back(moving, folder)
    whole = [] if stands else [aside for aside in _inside(folder, _ASIDE) if written(aside)]
    if whole:
        remove_written(folder)  # once: what comes back is never removed
    for aside in whole:
        moving = folder / aside.name.replace("replaced", "moving")
        aside.rename(moving)
        _move_back(moving, folder)
    drop(folder)  # what is left holds exports alone


def drop(folder: Path) -> None:
    """Remove what `move_aside` moved, but for what somebody had asked to be made of it: the new run stands."""
    for aside in _inside(folder, _ASIDE):
        remove_written(aside)
        if made(aside):
            _keep(aside, folder / KEPT)
        _remove_empty_tree(aside)


def _keep(aside: Path, kept: Path) -> None:
    try:
        place = next(path for number in itertools.count(1) if not (path := kept / str(number)).exists())
        _move(aside, place)
    except (OSError, UserError) as error:  # the rest stays where it is, until the next start tries again
        log.warning("%s: what was exported of the run that was replaced stays there (%s)", aside, error)
    else:
        log.warning("%s: keeps what was exported of the run that was replaced", place)


def half_done(folder: Path) -> bool:
    """Whether `settle` has anything to do."""
    return bool(_inside(folder, _MOVING) or _inside(folder, _ASIDE))


def _inside(folder: Path, name: re.Pattern[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def _move_back(moving: Path, folder: Path) -> None:
    _move(moving, folder)
    _remove_empty_tree(moving)


def _move(source: Path, target: Path) -> None:
    files = [*made(source), *written(source)]  # settings last: they say of what kind the others are
    try:
        for path in files:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / path, target / path)
    except OSError as error:
        raise UserError(
            f"{source / path}: expected a file that can be moved, got: {error.strerror}; choose another workspace"
        ) from error
    _remove_empty(*{source / parent for path in files for parent in path.parents if parent.parts})


def remove_written(folder: Path) -> None:
    """Remove the files that a run wrote, and the folders that are empty then."""
    files = written(folder)
    for path in files:
        with contextlib.suppress(OSError):
            (folder / path).unlink()
    _remove_empty(*{folder / parent for path in files for parent in path.parents if parent.parts})


def _remove_empty_tree(folder: Path) -> None:
    """Remove a folder of ours, in which a killed process may have left folders without files."""
    _remove_empty(folder, *(path for path in folder.rglob("*") if path.is_dir()))


def _remove_empty(*folders: Path) -> None:
    """Remove folders in which nothing is left, the deepest first; a mounted volume stays by itself."""
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
