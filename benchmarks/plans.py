"""Memory and time of every plan beside the estimate: `python -m benchmarks.plans --opt configs/cat.yaml`.

Each plan is iterated a few times in this process, without compilation, and the most memory of an iteration is compared
with `Optimization.memory`. The number of Gaussians is capped at what a run starts with, which is then what the estimate
counts too. Without a card, memory is that of the process, libraries included.
"""

import argparse
import gc
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from arguments import load
from benchmarks.command import RESULTS, finish_measurement
from benchmarks.stopwatch import Stopwatch
from dreammapping.optimization import Optimization
from guidance.prior.memory import GIB
from utils.device import choose_device
from utils.errors import UserError
from utils.parser import Parser
from utils.peak_memory import forget_peak, peak_memory, present_memory
from utils.repository import ROOT

WARM_UP = 2


def measure_plan(plan: str, words: list[str], iterations: int) -> dict[str, Any]:
    """Median seconds of an iteration, peak and estimate in bytes."""
    config, _ = load([*words, f"HardwareParams.memory={plan}", "HardwareParams.compile=never"])
    device = choose_device(config.device)
    before = present_memory(device) if device.type == "cuda" else 0
    optimization = Optimization(config)
    estimate = optimization.memory()
    optimization.iteration(1)
    forget_peak(device)  # what was alive only while the models loaded
    watch = Stopwatch(device)
    for step in range(2, 2 + WARM_UP + iterations):
        with watch.timed("warm-up" if step < 2 + WARM_UP else "iteration"):
            optimization.iteration(step)
    return {
        "seconds": watch.median("iteration"),
        "peak_bytes": peak_memory(device) - before,
        "reserved_bytes": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
        "estimate_bytes": sum(estimate.values()),
        "estimate_parts": estimate,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every plan in turn; one that fails says why."""
    words = ["--opt", str(options.opt), *options.overrides]
    config, _ = load(words)
    cap = config.ModelParams.max_gaussians or config.GenerateCamParams.init_num_pts
    words.append(f"max_gaussians={cap}")
    plans: dict[str, Any] = {}
    for plan in options.plans:
        try:
            plans[plan] = measure_plan(plan, words, options.iterations)
        except UserError as error:
            plans[plan] = {"failed": str(error)}
        sys.stderr.write(_line(plan, plans[plan]) + "\n")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"settings": options.opt.name, "gaussians": cap, "iterations": options.iterations, "plans": plans}


def _line(plan: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{plan:6}failed: {row['failed']}"
    numbers = [
        row["peak_bytes"] / GIB,
        row["estimate_bytes"] / GIB,
        row["estimate_bytes"] / row["peak_bytes"],
    ]
    return f"{plan:6}{1000 * row['seconds']:10.0f}" + "".join(f"{number:10.2f}" for number in numbers)


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    head = f"{'plan':6}{'ms':>10}{'peak GiB':>10}{'estimate':>10}{'ratio':>10}"
    return "\n".join([head, *(_line(plan, row) for plan, row in result["plans"].items())])


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.plans", description=__doc__)
    parser.add_argument("--opt", type=Path, default=ROOT / "configs" / "cat.yaml", help="settings to measure")
    parser.add_argument("--plans", nargs="+", default=["8gb", "12gb", "max"], help="default: 8gb 12gb max")
    parser.add_argument("--iterations", type=int, default=8, help="iterations to time (default 8)")
    parser.add_argument("--json", type=Path, default=RESULTS / "plans.json", help="where the numbers go")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    def measured() -> dict[str, Any]:
        if options.iterations < 1:
            raise UserError(f"--iterations: expected at least 1, got {options.iterations}; 8 is usual")
        return measure(options)

    return finish_measurement(measured, table, options.json)


if __name__ == "__main__":
    sys.exit(main())
