"""What a run wrote, told from all else; and a run that is being replaced, moved aside until the new one stands.

It lies in `.replaced-*` once all of it is there, and in `.moving-*` on its way there or back, so that after a kill at
any moment it is known which files are whose.
"""

import contextlib
import os
import re
import secrets
from pathlib import Path

from utils.errors import UserError

WRITTEN = re.compile(
    r"""config\.yaml | cfg_args | cameras\.json | init_points3d\.ply | input\.ply | metrics\.jsonl | run\.json
    | picture\.png | field\.safetensors | mesh\.ply
    | train_process/(iter|step)_\d+\.jpg
    | test_six_views/\d+_iteration/render_(view|depth)_\d+\.png
    | videos/\d+_iteration/video_(rgb|depth)_\d+\.mp4
    | process_videos/(video_rgb\.mp4|frames/\d+\.jpg)
    | point_cloud/iteration_\d+/point_cloud(\.ply|_rgb\.txt)
    | checkpoints/iteration_\d+/(tensors\.safetensors|state\.json)""",
    re.VERBOSE,
)
"""The files of a run, by their path in its folder; nothing else in it is ever moved or removed."""
FOLDERS = ("train_process", "test_six_views", "videos", "process_videos", "point_cloud", "checkpoints")
"""The folders in which they lie."""
_BELOW = re.compile(
    r"""train_process | process_videos(/frames)? | (test_six_views|videos)(/\d+_iteration)?
    | (point_cloud|checkpoints)(/iteration_\d+)?""",
    re.VERBOSE,
)
"""Those folders, and the ones below them."""
RESULTS = re.compile(r"(point_cloud|checkpoints)/.*|picture\.png|field\.safetensors")
"""Those of them that somebody would miss."""
_ASIDE = re.compile(r"\.replaced-[0-9a-f]{8}")
_MOVING = re.compile(r"\.moving-[0-9a-f]{8}")


def written(folder: Path) -> list[Path]:
    """The files in a run's folder that a run wrote, relative to it. Links are no such files and are not followed."""
    found = []
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        if not below.parts:
            folders[:] = [name for name in folders if name in FOLDERS]
        found += [
            below / name
            for name in files
            if WRITTEN.fullmatch((below / name).as_posix()) and not Path(place, name).is_symlink()
        ]
    return sorted(found)


def has_results(folder: Path) -> bool:
    """Whether a run's folder holds what somebody would miss: a checkpoint, or an asset."""
    return any(RESULTS.fullmatch(path.as_posix()) for path in written(folder))


def move_aside(folder: Path) -> Path:
    """Move a run's files into a folder of their own inside it; returns that.

    Raises:
        UserError: a part of the run is a link, whose target is not ours to empty; or the files cannot be moved.
    """
    for name in FOLDERS:
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name}: expected a folder of the run that is replaced, found a link, and what it leads "
                "to is left alone; remove the link, or choose another workspace"
            )
    token = secrets.token_hex(4)
    moving, aside = folder / f".moving-{token}", folder / f".replaced-{token}"
    _move(folder, moving)
    if moving.is_dir():
        os.replace(moving, aside)
    return aside


def put_back(folder: Path) -> None:
    """Undo `move_aside`: remove what the new run has written so far, and move the old one back in its place."""
    move_on(folder)
    for aside in _named(folder, _ASIDE):
        _remove(folder)
        os.replace(aside, aside.with_name(aside.name.replace("replaced", "moving")))
    move_on(folder)


def move_on(folder: Path) -> None:
    """Bring back an old run on its way; no file of a new one is there before it is wholly aside."""
    for moving in _named(folder, _MOVING):
        _move(moving, folder)
        _remove_folder(moving)


def drop(folder: Path) -> None:
    """Remove what `move_aside` moved: the new run stands."""
    for aside in _named(folder, _ASIDE):
        _remove(aside)
        _remove_folder(aside)


def _named(folder: Path, names: re.Pattern[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if names.fullmatch(path.name) and path.is_dir()]


def _move(source: Path, target: Path) -> None:
    try:
        for path in written(source):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / path, target / path)
    except OSError as error:
        raise UserError(
            f"{source / path}: expected a file that can be moved, got: {error.strerror}; choose another workspace"
        ) from error
    _remove_empty_folders(source)


def _remove(folder: Path) -> None:
    for path in written(folder):
        with contextlib.suppress(OSError):
            (folder / path).unlink()
    _remove_empty_folders(folder)


def _remove_folder(folder: Path) -> None:
    """Remove a folder of ours in which no more than empty folders is left."""
    _remove_empty_folders(folder)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_empty_folders(folder: Path) -> None:
    """Remove a run's folders in which nothing is left, the deepest first; a mounted volume stays by itself."""
    for name in FOLDERS:
        for place, _, _ in os.walk(folder / name, topdown=False):
            if _BELOW.fullmatch(Path(place).relative_to(folder).as_posix()):
                with contextlib.suppress(OSError):
                    os.rmdir(place)
