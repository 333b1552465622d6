"""From a run to a textured mesh on disk, and how much it looks like the run's result."""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from dreammapping.finished import FinishedRun
from dreammapping.mesh import files
from dreammapping.mesh.compare import Likeness, compare
from dreammapping.mesh.fusion import fuse
from dreammapping.mesh.source import size_of, source_of
from dreammapping.mesh.surface import Surface, tidy
from dreammapping.mesh.texture import Textured, paint
from dreammapping.mesh.views import Source, around
from utils.files import check_writable, write_text
from utils.own_files import making_all, refuse_others

UNSEEN = 12
"""Views that a mesh is compared in, none of which made it."""
UNSEEN_START = 77.0
"""Azimuth of the first of them; those that make the mesh start at 0."""
WRITERS = {
    "mesh.glb": files.write_glb,
    "mesh.obj": files.write_obj,
    "mesh.ply": files.write_ply,
}
NAMES = (*WRITERS, "mesh.mtl", "mesh.png", "mesh.json")
"""What is written; the material and texture are the .obj's."""


@dataclass(frozen=True)
class MeshSettings:
    """How fine a mesh is made."""

    views: int = 64
    """Cameras all around."""
    resolution: int = 96
    """Voxels along the longest side."""
    target_faces: int = 20_000
    texture: int = 1024
    """Pixels of a side of the texture."""
    scale: float = 1.0
    """Metres of a world unit."""


@dataclass(frozen=True)
class Made:
    """What became of a run's mesh."""

    files: list[Path]
    faces: int
    watertight: bool
    likeness: Likeness
    seconds: float


def mesh_run(
    folder: Path,
    out: Path,
    settings: MeshSettings,
    iteration: int | None = None,
    *,
    say: Callable[[str], None] = lambda _text: None,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> Made:
    """Make mesh.glb, mesh.obj (with .mtl and .png), mesh.ply and mesh.json of a run's asset in `out`.

    Args:
        iteration: which saved iteration; the last one if None.
        say: told what there is to do, before it is done.
        progress: told of each view: the step, its number from 1, and how many there are.

    Raises:
        UserError: the folder is no run or holds no such asset, it shows nothing solid, a library is missing,
            somebody else's file, or another run's, is in the place of one, or a file cannot be written.
    """
    start = time.monotonic()
    check_writable(out)
    refuse_others(out, NAMES, source=folder)
    run = FinishedRun.open(folder)
    iteration = run.iteration(iteration)
    on_card = torch.cuda.is_available() and run.config.device != "cpu"
    device = torch.device("cuda" if on_card else "cpu")
    size = view_size(run.config.GenerateCamParams.image_w)
    what, bytes_ = size_of(run, iteration)
    need = 4 * 5 * settings.views * size**2 + bytes_ + 80 * settings.resolution**3
    say(
        f"{folder}, iteration {iteration}: {what}; {settings.views} views of {size} x {size} "
        f"pixels; about {need / 1e9:.1f} GB of memory on {device}"
    )
    mesh, likeness = make(source_of(run, iteration, device), run, settings, size, progress)
    numbers = {
        "run": str(folder),
        "iteration": iteration,
        **dataclasses.asdict(settings),
        "faces": len(mesh.faces),
        "watertight": mesh.surface.watertight,
        **dataclasses.asdict(likeness),
    }
    with making_all(out, NAMES, source=folder) as new:
        for name, write in WRITERS.items():
            write(new / name, mesh, settings.scale)
        seconds = time.monotonic() - start
        write_text(new / "mesh.json", json.dumps(numbers | {"seconds": round(seconds, 1)}, indent=2) + "\n")
    return Made([out / name for name in WRITERS], len(mesh.faces), mesh.surface.watertight, likeness, seconds)


def make(
    source: Source,
    run: FinishedRun,
    settings: MeshSettings,
    size: int,
    progress: Callable[[str, int, int], None],
) -> tuple[Textured, Likeness]:
    """The mesh of whatever can be looked at, by cameras with the run's field of view, and how much it is like it."""
    params, count = run.config.GenerateCamParams, settings.views

    def counter(what: str) -> Callable[[], None]:
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            progress(what, done, count)

        return one_more

    reach = source.reach
    seen = source.look(around(count, params, size, reach), counter("views"))
    surface = tidy(Surface(*fuse(seen, settings.resolution, counter("surface"))), settings.target_faces)
    mesh = paint(seen, surface, settings.texture, counter("texture"))
    unseen = source.look(around(UNSEEN, params, size, reach, start=UNSEEN_START), depths=False)
    background = torch.full((3,), float(run.config.ModelParams.white_background))
    return mesh, compare(unseen, mesh, background)


def view_size(image_size: int) -> int:
    """Pixels of a side of the views: half as many again as the run's, since Gaussians have more than their pixels."""
    return min(max(image_size * 3 // 2, 192), 768)
