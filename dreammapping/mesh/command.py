"""Make a textured mesh of a run's result: `python -m dreammapping mesh output/quickstart`.

Depths of views from all around are fused into one closed surface, which is simplified, unwrapped and painted from the
same views. It is written as mesh.glb, mesh.obj (with .mtl and .png) and mesh.ply, and compared with the result in views
that it was not made from.
"""

import argparse
import logging
import sys

from utils.command import exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

LIMITS = {
    "views": (8, 1000, "cameras all around"),
    "resolution": (16, 512, "voxels along the longest side"),
    "target_faces": (100, 5_000_000, "triangles after simplification"),
    "texture": (64, 8192, "pixels per side of the texture"),
    "scale": (1e-6, 1e6, "metres per world unit; objects are about one unit long"),
}
"""Least and most of each option, and what it is."""


def main(words: list[str]) -> int:
    """The command line of `mesh`; returns the exit code."""
    parser = Parser(prog="python -m dreammapping mesh", description=__doc__)
    parser.add_argument("run", type=expanded, help="run folder, such as output/quickstart")
    parser.add_argument("--iteration", type=int, help="saved iteration (default: the last)")
    parser.add_argument(
        "--output", metavar="FOLDER", type=expanded, help="folder for the files (default: mesh in the run's)"
    )
    defaults = {"views": 64, "resolution": 96, "target_faces": 20_000, "texture": 1024, "scale": 1.0}
    for name, default in defaults.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(default),
            default=default,
            help=f"{LIMITS[name][2]} (default {default})",
        )
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: _mesh(options), stopped="stopped; nothing half-written is left")


def _mesh(options: argparse.Namespace) -> int:
    for name, (low, high, _) in LIMITS.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise UserError(
                f"--{name.replace('_', '-')}: expected {low:,} to {high:,}, got {value:,}; choose another"
            )
    from tqdm import tqdm

    from dreammapping.mesh.make import MeshSettings, mesh_run

    settings = MeshSettings(**{name: getattr(options, name) for name in LIMITS})
    with tqdm(total=3 * options.views, file=sys.stderr, leave=False, disable=None) as bar:

        def progress(what: str, _done: int, _of: int) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        def say(text: str) -> None:
            bar.clear()
            write_out(text + "\n")

        out = options.output or options.run / "mesh"
        made = mesh_run(options.run, out, settings, options.iteration, say=say, progress=progress)
    likeness = made.likeness
    write_out(
        f"{', '.join(str(path) for path in made.files)}\n"
        f"{made.faces:,} triangles, {'' if made.watertight else 'not '}watertight, in {made.seconds:.0f} s\n"
        f"against the run's asset, in views that it was not made from: PSNR {likeness.psnr:.1f} dB, coverage "
        f"{likeness.coverage:.3f}\n"
    )
    return 0
