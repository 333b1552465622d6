"""Cells that are missing, trained as the runs of a sweep and handed over one by one as they end."""

import logging
from collections.abc import Callable
from pathlib import Path

from arguments import Config, load, to_yaml
from dreammapping.reproduction.cells import Cell
from dreammapping.sweep import processes
from dreammapping.sweep.grid import Grid, Job, without_identity
from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.slug import digest
from dreammapping.sweep.status import DONE, FINAL
from utils.errors import UserError
from utils.repository import ROOT

log = logging.getLogger(__name__)


class Harvest:
    """Hands over each cell that is done.

    Args:
        take: called with a cell and the folder of its run.

    Attributes:
        left: cells that are not over, by the names of their runs. failures: messages of those that failed.
    """

    def __init__(self, ledger: Ledger, cells: list[Cell], take: Callable[[Cell, Path], object]) -> None:
        self._ledger, self._take, self._count = ledger, take, len(cells)
        self.left = {cell.workspace: cell for cell in cells}
        self.failures: list[str] = []

    def show(self, *, last: bool = False) -> None:
        """Look what has ended."""
        del last
        for name, cell in list(self.left.items()):
            status = self._ledger.read(name)
            if status is None or status.state not in FINAL:
                continue
            try:
                if status.state != DONE:
                    raise UserError(f"{cell.key}: {status.reason}; see {self._ledger.path(name) / 'log.txt'}")
                # the run goes on from what its attempts have made since it last began anew
                begun = max(at for at, each in enumerate(status.attempts) if each.start == 0)
                if any("seed" in each.changes for each in status.attempts[begun:]):
                    raise UserError(
                        f"{cell.key}: its numbers are finite only with another seed, so it has no result"
                    )
                self._take(cell, self._ledger.run_folder(name))
                log.info("%d of %d: %s", self._count - len(self.left) + 1, self._count, cell.key)
            except UserError as error:
                self.failures.append(str(error))
                log.warning("%s", error)
            del self.left[name]


def train(
    cells: dict[Cell, list[str]], folder: Path, jobs: int, take: Callable[[Cell, Path], object]
) -> list[str]:
    """Train cells, `jobs` at a time, and hand each over as it ends; returns the messages of failures.

    What the folder has of them from an earlier call is not trained again, and what was begun goes on.

    Args:
        cells: with the words that `train.py` would be given.
        folder: of the sweep, which may have other runs, too.
        take: called with a cell that is done and its run's folder; a UserError of it is a failure of the cell.

    Raises:
        UserError: the settings of a cell are wrong, the folder holds something else, or no worker can work.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all that was running is saved; what else `take` raises comes
            then, too.
    """
    if not cells:
        return []
    configs = {cell: load([*words, "ModelParams.workspace=bench"])[0] for cell, words in cells.items()}
    texts = {cell: to_yaml(without_identity(config)) for cell, config in configs.items()}
    listed = [_job(cell, configs[cell], text) for cell, text in texts.items()]
    ledger = Ledger.enlist(
        folder, Grid(listed, {digest(text): text for text in texts.values()}), retry_failed=True
    )
    harvest = Harvest(ledger, list(cells), take)
    harvest.show()
    if harvest.left:
        team = processes.Team(min(jobs, len(harvest.left)), words=("--only", *harvest.left), place=ROOT)
        processes.run(folder, team, harvest)
    unfinished = (
        f"{cell.key}: is not over yet; repeat the command to continue" for cell in harvest.left.values()
    )
    return [*harvest.failures, *unfinished]


def _job(cell: Cell, config: Config, text: str) -> Job:
    return Job(cell.workspace, cell.prompt, config.seed, digest(text), {})
