"""Make a table of the documents again: `python -m dreammapping reproduce TABLE`.

Every cell (prompt, method, seed) is one `train.py` run and its judgement. Finished cells are kept, so the command can
be stopped and given again; a table always has all that are finished, whatever part of it was asked for.
"""

import argparse
import logging
import sys
from typing import Any

from dreammapping.command import exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.paths import user_path
from utils.repository import QUICKSTART, ROOT

TABLES = {
    "prompts": "VDM against SDS over prompts that nothing was tuned on (docs/results.md)",
    "methods": "every method of Table 1 on the same prompts and seeds (docs/methods.md)",
    "pictures": "text to 2D, method beside method from one start: figures 10 and 14",
}


def main(words: list[str]) -> int:
    """The command line of `reproduce`; returns the exit code."""
    options = parser().parse_intermixed_args(words)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    return exit_code(lambda: _reproduce(options))


def parser() -> argparse.ArgumentParser:
    """What `reproduce` understands."""
    tables = "\n".join(f"  {name:10}{about}" for name, about in TABLES.items())
    parser = argparse.ArgumentParser(
        prog="python -m dreammapping reproduce",
        description=f"{__doc__}\ntables:\n{tables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", choices=TABLES, metavar="TABLE", help="one of those above")
    parser.add_argument(
        "--opt", help="settings of every run (the quick start's, or configs/image/toybox.yaml)"
    )
    parser.add_argument(
        "--methods",
        default="",
        help="of `methods` and `pictures`: names with commas between, of pictures such as sds@7.5 (default: all)",
    )
    parser.add_argument("--prompts", type=int, help="default 6; of `methods` 2, with a GPU 6")
    parser.add_argument("--seeds", type=int, help="runs of each (default 1; of `methods` with a GPU 3)")
    parser.add_argument("--views", type=int, default=24, help="views that judge each (default 24)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, sharing the cores (default 1)")
    parser.add_argument("--again", action="store_true", help="run those again that other code has made")
    parser.add_argument("--report", action="store_true", help="run nothing, only show what is finished")
    parser.add_argument("--write", action="store_true", help="put the table and its picture into docs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    if options.opt is not None:
        options.opt = user_path(options.opt, "--opt")
    if options.methods and options.table == "prompts":
        raise UserError("--methods: expected the table `methods` or `pictures`, got 'prompts'; leave it out")
    if options.table == "pictures":
        return _pictures(options)
    from dreammapping.reproduction import methods, prompts

    if options.table == "methods":
        named = [name for name in options.methods.split(",") if name]
        plan = _plan(options, *((6, 3) if _has_gpu() else (2, 1)))
        failures, text = methods.reproduce(plan, named, train=not options.report, write=options.write)
    else:
        plan = _plan(options, 6, 1)
        failures, text = prompts.reproduce(plan, train=not options.report, write=options.write)
    write_out(text + "\n")
    if not options.write:
        write_out("\n(nothing was written; --write puts it into docs/)\n")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0


def _pictures(options: argparse.Namespace) -> int:
    from dreammapping.reproduction.pictures import METHODS, compare

    opt = options.opt or ROOT / "configs" / "image" / "toybox.yaml"
    words = ["--opt", str(opt), *options.overrides]
    path, lines = compare((options.methods or METHODS).split(","), words, train=not options.report)
    sys.stdout.write("\n".join([*lines, str(path)]) + "\n")
    return 0


def _plan(options: argparse.Namespace, prompts: int, seeds: int) -> Any:
    """The plan of a table, with its own numbers of prompts and seeds where none are given."""
    from dreammapping.reproduction.table import Plan

    return Plan(
        opt=options.opt or QUICKSTART,
        overrides=tuple(options.overrides),
        prompts=prompts if options.prompts is None else options.prompts,
        seeds=seeds if options.seeds is None else options.seeds,
        views=options.views,
        jobs=options.jobs,
        again=options.again,
    )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
