"""One degradation operator trained across prompts: a chain of runs, each of which goes on with M of the last."""

from pathlib import Path

from dreammapping.reproduction.cells import Cell
from dreammapping.reproduction.prompts import TUNED_ON, choose_prompts
from dreammapping.reproduction.table import Plan, make_cell
from dreammapping.reproduction.train import train
from utils.repository import ROOT

LENGTH = 4
"""Runs of the chain."""
CHAIN = "operators"
"""Their folder, in that of all sweeps."""


def chain(plan: Plan, output: Path) -> dict[Cell, list[str]]:
    """The runs in their order, and their settings; the prompts are none of a table over `plan.prompts`.

    Args:
        output: the folder of all runs, as the settings name it.
    """
    cells, start = {}, ("GuidanceParams.guidance=vdm",)
    for prompt in choose_prompts(plan.prompts + LENGTH, exclude=TUNED_ON)[plan.prompts :]:
        cell, settings = make_cell(plan, prompt, "operator", start, seed=0)
        cells[cell] = settings
        start = ("GuidanceParams.guidance=vdm", f"VDMParams.operator_init={output / CHAIN / cell.workspace}")
    return cells


def train_chain(cells: dict[Cell, list[str]], output: Path) -> list[str]:
    """Run what is missing of the chain, whatever code has made the rest; the message of what failed, if anything did.

    Each begins when the one before it is done, here or in another command: else it would take what that one has learned
    so far for all that it learns.
    """
    for cell, words in cells.items():
        if failures := train({cell: words}, ROOT / output / CHAIN, 1, lambda *_: None):
            return failures
    return []
