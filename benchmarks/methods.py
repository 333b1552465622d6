"""What every method of Table 1 costs, counted and timed in one process: `python -m benchmarks.methods`.

The score model counts U-Net evaluations. Seconds are medians of whole iterations, compared with those of SDS measured
right before, in the same process. With `--full` the prior is Stable Diffusion 2.1 base's architecture with random
weights, and SDS is measured only once. On a CPU, try `--full --warm-up 1 --iterations 1 C_batch_size=1`.
"""

import gc
import logging
import sys
from pathlib import Path
from typing import Any

from arguments import load
from arguments.groups.guidance import METHODS
from benchmarks.command import RESULTS, finish_measurement
from benchmarks.random_model import SD2_BASE, random_model
from benchmarks.stopwatch import Stopwatch
from dreammapping.optimization import Optimization
from guidance.prior.memory import GIB
from utils.errors import UserError
from utils.parser import Parser
from utils.peak_memory import forget_peak, peak_memory
from utils.repository import QUICKSTART, ROOT

SMALL_BANK = (
    "LMCParams.lmc_bank=1",
    "LMCParams.lmc_sampling_steps=2",
    "LMCParams.lmc_steps=2",
)
"""What LMC learns before the run is no part of an iteration."""

Row = dict[str, Any]

log = logging.getLogger(__name__)


def measure(method: str, words: list[str], iterations: int, warm_up: int) -> Row:
    """Cost of one method: evaluations for each view and iteration, median seconds, peak memory in bytes.

    The measured iterations are spread over the run, so that what is annealed counts with its mean.
    """
    config, _ = load([*words, *SMALL_BANK, f"GuidanceParams.guidance={method}"])
    optimization = Optimization(config)
    views = config.GuidanceParams.C_batch_size
    length = config.OptimizationParams.iterations
    for step in range(1, warm_up + 1):
        optimization.iteration(step)
    forget_peak(optimization.device)
    spent, watch = optimization.score_model.evaluations.state_dict(), Stopwatch(optimization.device)
    for index in range(iterations):
        step = max(warm_up + 1, round(1 + (index + 0.5) * (length - 1) / iterations))
        with watch.timed("iteration"):
            optimization.iteration(step)
    after = optimization.score_model.evaluations.state_dict()
    per_view = {name: (after[name] - spent[name]) / (iterations * views) for name in after}
    peak = peak_memory(optimization.device)
    del optimization
    gc.collect()
    return {"method": method, **per_view, "seconds": watch.median("iteration"), "peak_memory_bytes": peak}


def compare(methods: list[str], words: list[str], iterations: int, warm_up: int, paired: bool) -> list[Row]:
    """Every method beside SDS, each beside one of its own if `paired`."""
    rows, sds = [], None
    for method in methods:
        if sds is None or paired:
            sds = measure("sds", words, iterations, warm_up)
        row = sds if method == "sds" else measure(method, words, iterations, warm_up)
        rows.append(row | {"over_sds": row["seconds"] / sds["seconds"]})
        log.info("%s", _line(rows[-1]))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    head = "| method | forward | backward | in forwards | s / iteration | over SDS | peak GiB |"
    return "\n".join([head, "| --- |" + " --- |" * 6, *map(_line, rows)])


def _line(row: Row) -> str:
    return (
        f"| `{row['method']}` | {row['forward']:.2f} | {row['backward']:.2f} | {row['forward'] + row['backward']:.2f} "
        f"| {row['seconds']:.3f} | {row['over_sds']:.2f} | {row['peak_memory_bytes'] / GIB:.2f} |"
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--opt", type=Path, default=QUICKSTART, help="settings of every method")
    parser.add_argument(
        "--methods", default=",".join(METHODS), help="names, separated by commas (default: all)"
    )
    parser.add_argument("--iterations", type=int, default=20, help="iterations to time (default 20)")
    parser.add_argument("--warm-up", type=int, default=2, help="untimed iterations before (default 2)")
    parser.add_argument("--full", action="store_true", help="a random prior of Stable Diffusion 2.1's size")
    parser.add_argument("--folder", type=Path, default=ROOT / ".models", help="folder for that prior")
    parser.add_argument("--json", type=Path, help="where the numbers go (default: benchmarks/results)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def measured() -> dict[str, Any]:
        methods = options.methods.split(",")
        unknown = [name for name in methods if name not in METHODS]
        if unknown:
            raise UserError(
                f"--methods: expected some of {', '.join(METHODS)}, got {', '.join(unknown)}; correct it"
            )
        if min(options.iterations, options.warm_up) < 1:
            raise UserError(
                f"expected --iterations and --warm-up of at least 1, got {options.iterations} and "
                f"{options.warm_up}; raise them"
            )
        words = ["--opt", str(options.opt), *options.overrides]
        if options.full:
            words += [f"model_key={random_model(SD2_BASE, options.folder)}", "image_w=512", "image_h=512"]
        rows = compare(methods, words, options.iterations, options.warm_up, paired=not options.full)
        return {
            "prior": "random, of SD 2.1's size" if options.full else "as set",
            "views": load(words)[0].GuidanceParams.C_batch_size,
            "iterations": options.iterations,
            "methods": rows,
        }

    path = options.json or RESULTS / ("methods_full.json" if options.full else "methods.json")
    return finish_measurement(measured, lambda result: table(result["methods"]), path)


if __name__ == "__main__":
    sys.exit(main())
