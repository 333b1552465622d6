"""Write a run's page, which a browser opens from the disk: `python -m dreammapping page output/quickstart`.

The page is RUN/index.html: the asset in 3D, videos, test views, curves, settings, where the models come from. Several
runs, or a folder of runs, get a page each and one gallery; runs with broken settings are left out.
"""

import logging
import os
from itertools import count
from pathlib import Path

from utils.command import STARTS_AGAIN, exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

log = logging.getLogger(__name__)


def main(words: list[str]) -> int:
    """The command line of `page`; returns the exit code."""
    parser = Parser(prog="python -m dreammapping page", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=expanded, metavar="RUN", help="run folder, or a folder of runs"
    )
    parser.add_argument(
        "--output",
        type=expanded,
        metavar="FOLDER",
        help="write here instead: one run's index.html; for several runs, a folder each and the gallery, index.html",
    )
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: write(options.runs, options.output), stopped=STARTS_AGAIN)


def write(named: list[Path], to: Path | None) -> int:
    """Write the pages of runs, or of all runs in folders, and of several the gallery; returns 0.

    Args:
        to: the folder for them; None: each in its run's own, the gallery in the one above all.

    Raises:
        UserError: a word names no run, no run's settings can be read, or a page cannot be written.
    """
    from dreammapping.finished import FinishedRun, runs_in
    from dreammapping.page.document import refuse_to_replace
    from dreammapping.page.gallery import write_gallery
    from dreammapping.page.page import NAME, write_page

    folders = dict.fromkeys(run for folder in named for run in runs_in(folder))
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(FinishedRun.open(folder))
        except UserError as error:
            problems.append(str(error))
    if not runs:
        raise UserError("; ".join(problems))
    for problem in problems:
        log.warning("%s; the run is left out", problem)
    several = len(folders) > 1
    names = _own_names([run.folder for run in runs]) if several else [""]
    pages = [(run, (to / name if to else run.folder) / NAME) for run, name in zip(runs, names, strict=True)]
    above = (to or Path(os.path.commonpath([run.folder.resolve().parent for run in runs]))) / NAME
    for page in [page for _, page in pages] + [above] * several:  # all of them before any is written
        refuse_to_replace(page)
    for run in runs:
        try:
            size = run.size()
        except UserError:  # none was saved, or its file is broken: the page says so
            continue
        write_out(f"{run.folder}: {size.count:,} Gaussians; about {size.memory / 1e6:,.1f} MB of memory\n")
    for run, page in pages:
        write_page(run, page)
    for _, page in pages:
        write_out(f"{page}\n")
    if several:
        write_out(f"gallery: {write_gallery(pages, above)}\n")
    return 0


def _own_names(folders: list[Path]) -> list[str]:
    """A name for each run: its folder's, with a number where another has the same."""
    names: list[str] = []
    for folder in folders:
        name, tries = folder.resolve().name, count(2)
        while name in names:
            name = f"{folder.resolve().name}-{next(tries)}"
        names.append(name)
    return names
