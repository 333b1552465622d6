"""Write a run's Gaussians in the formats of viewers and engines:
`python -m dreammapping export output/quickstart --format glb spz`.

Every format gets the axes that its readers expect, so that the object stands
upright and shows its front; cameras.json is written too, in the frame of the
.ply.
"""

import argparse
import logging

from utils.command import exit_code
from utils.console import write_out
from utils.parser import Parser
from utils.paths import expanded

FORMATS = {
    "ply": "3D Gaussian Splatting's own; every splat viewer",
    "splat": "32 bytes per Gaussian, no harmonics; web viewers",
    "spz": "Niantic's, with harmonics; a quarter to a tenth of the .ply",
    "glb": "glTF with KHR_gaussian_splatting; three.js, PlayCanvas, Cesium",
    "compressed.ply": "SuperSplat's, with harmonics; about a quarter of the .ply",
    "sog": "PlayCanvas's, the smallest; needs splat-transform (Node)",
    "usd": "OpenUSD 26.03 and newer; Omniverse, Houdini; needs usd-core",
}
"""Each format, which is also the suffix of its files, and who reads it."""


def main(words: list[str]) -> int:
    """The command line of `export`; returns the exit code."""
    listed = "\n".join(f"  {name:16}{about}" for name, about in FORMATS.items())
    parser = Parser(
        prog="python -m dreammapping export",
        description=f"{__doc__}\nformats:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=expanded, help="run folder, such as output/quickstart")
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        required=True,
        metavar="FORMAT",
        help="one or more of the above",
    )
    parser.add_argument("--iteration", type=int, help="saved iteration to export (default: the last)")
    parser.add_argument(
        "--sh",
        type=int,
        choices=range(4),
        help="degree of the harmonics in the file (default: the run's own); 3 suits Unity, 0 is smallest",
    )
    parser.add_argument(
        "--spz-version",
        type=int,
        choices=(3, 4),
        default=3,
        help="4 is newer and known to fewer readers (default 3)",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=expanded,
        help="folder for the files (default: export in the run's)",
    )
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: _export(options), stopped="stopped; the files that are listed are whole")


def _export(options: argparse.Namespace) -> int:
    from dreammapping.export.files import export_run

    folder = options.output or options.run / "export"
    for line in export_run(
        options.run,
        list(dict.fromkeys(options.format)),
        folder,
        options.iteration,
        options.sh,
        options.spz_version,
    ):
        write_out(line + "\n")
    return 0
