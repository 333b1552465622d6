"""One degradation operator trained across prompts: a chain of runs, each of which goes on with M of the last."""

import argparse
from pathlib import Path

from dreammapping.reproduction.cells import ROOT, Cell, CellStore, Trainer, run_missing
from dreammapping.reproduction.prompts import TUNED_ON, choose_prompts, make_cell

LENGTH = 4
"""Runs of the chain."""


def chain(options: argparse.Namespace, output: Path) -> dict[Cell, list[str]]:
    """The runs in their order, and their settings; the prompts are none of a table over `options.prompts`.

    Args:
        output: the folder of all runs, as the settings name it.
    """
    cells, start = {}, ("GuidanceParams.guidance=vdm",)
    for prompt in choose_prompts(options.prompts + LENGTH, exclude=TUNED_ON)[options.prompts :]:
        cell, settings = make_cell(options, prompt, "operator", start, seed=0)
        cells[cell] = settings
        start = ("GuidanceParams.guidance=vdm", f"GuidanceParams.operator_init={output / cell.workspace}")
    return cells


def train_chain(cells: dict[Cell, list[str]], output: Path) -> list[str]:
    """Run what is missing of the chain; the messages of what failed. What is finished is noted beside the runs."""
    trainer = Trainer(ROOT / output)
    store = CellStore(ROOT / output / "bench_logs" / "operator.json")
    return run_missing(
        cells, store, lambda cell: {"run": trainer.train(cell, cells[cell]).name}, 1, trainer.stop
    )
