"""Make a figure or a table of the paper, or a table of the documents:
`python -m dreammapping reproduce NAME`.

Each prompt, variant and seed is a run as `train.py` makes it, in the sweep
`output/bench_CODE`, and is then scored. Finished runs are kept: repeat a
stopped command to continue it. Runs that several figures need are made only
once. `python -m dreammapping sweep status output/bench_CODE` shows progress.
"""

import argparse
import logging
import sys
from typing import Any

from utils.command import exit_code
from utils.console import warning_once, write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import user_path
from utils.repository import QUICKSTART

FIGURES = {
    "fig6": "VDM and DCA against SDS at CFG 7.5",
    "fig7": "the operator: linear, with noise, noise-free",
    "fig8": "the cut-off of DCA: 100, 300, 500",
    "fig9": "on a radiance field: SDS, VSD, VDM + DCA",
    "fig10": "text to 2D from one start; figure 14 with another --model",
    "fig11": "the predicted noise over t: variance, correlation with the noise",
    "table1": "the methods: number of evaluations of the score model",
    "table2": "the systems: CLIP score and time",
    "table3": "the systems: 3D-FID",
    "table4": "the systems: a page for participants, mean ranks of their answers",
}
TABLES = {
    "prompts": "VDM against SDS, prompts that nothing was tuned on: docs/results.md",
    "methods": "every method of Table 1, same prompts and seeds: docs/methods.md",
}


def main(words: list[str]) -> int:
    """The command line of `reproduce`; returns the exit code."""
    options = parser().parse_intermixed_args(words)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[warning_once()]
    )
    return exit_code(lambda: _reproduce(options))


def parser() -> Parser:
    """What `reproduce` understands."""
    figures, tables = (
        "\n".join(f"  {name:10}{about}" for name, about in names.items()) for names in (FIGURES, TABLES)
    )
    parser = Parser(
        prog="python -m dreammapping reproduce",
        description=f"{__doc__}\nof the paper:\n{figures}\n  {'all':10}all of these\nof the documents:\n{tables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=(*FIGURES, "all", *TABLES), metavar="NAME", help="one of those above")
    parser.add_argument(
        "--model", help="the prior of a figure's runs: a folder, a file or a hub id (default toybox)"
    )
    parser.add_argument(
        "--opt", help="settings of every run (default: the toybox's own, or the paper's for another --model)"
    )
    parser.add_argument(
        "--methods",
        default="",
        help="names, separated by commas; of fig10 such as sds@7.5 (default: all)",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE|N",
        help="a file with one prompt a line (not for the documents' tables), or how many of our own",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of each prompt and variant")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="iterations of a figure's runs: a quick trial"
    )
    parser.add_argument(
        "--views", type=int, help="views that score each run (default 24; table3: 40, fig11: 64)"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="folder for a figure's picture, numbers and page (default output/reproduction)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, sharing the cores (default 1)")
    parser.add_argument("--again", action="store_true", help="repeat runs that other code has made")
    parser.add_argument("--report", action="store_true", help="run nothing, only show what is finished")
    parser.add_argument("--write", action="store_true", help="put the numbers and the picture into docs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    if options.opt is not None:
        options.opt = user_path(options.opt, "--opt").resolve()
    if options.name in TABLES:
        failures, text = _table(options)
    else:
        failures, text = _figures(options)
    write_out(text + "\n")
    if options.name in TABLES and not options.write:
        write_out("\n(nothing was written; --write puts it into docs/)\n")
    for failure in failures:
        sys.stderr.write(f"failed: {failure}\n")
    return 1 if failures else 0


def _figures(options: argparse.Namespace) -> tuple[list[str], str]:
    if options.methods and options.name == "all":
        raise UserError("--methods: expected one figure or table, got 'all'; leave it out")
    from dreammapping.reproduction.order import OUTPUT, Order
    from dreammapping.reproduction.work import reproduce
    from utils.own_files import refuse_others

    order = Order(
        model=_placed(options.model or "toybox"),
        opt=options.opt,
        prompts=options.prompts,
        seeds=options.seeds,
        iterations=options.iterations,
        views=options.views,
        overrides=tuple(options.overrides),
        methods=_named(options),
        output=user_path(options.output or str(OUTPUT), "--output"),
        jobs=options.jobs,
        again=options.again,
        train=not options.report,
        write=options.write,
    )
    failures, texts = [], []
    names = FIGURES if options.name == "all" else [options.name]
    for name in names:  # before hours of work
        refuse_others(order.output, order.files(name))
    for name in names:
        failed, text = reproduce(name, order)
        failures += failed
        texts.append(text)
    return failures, "\n".join([*texts, f"(also in {order.output})"])


def _placed(model: str) -> str:
    """The whole path of a folder or file that is there, as runs begin in another folder; else the name."""
    path = user_path(model, "--model")
    return str(path.resolve()) if model != "toybox" and path.exists() else model


def _table(options: argparse.Namespace) -> tuple[list[str], str]:
    if options.methods and options.name == "prompts":
        raise UserError("--methods: expected a figure or the table `methods`, got 'prompts'; leave it out")
    for name in ("model", "iterations", "output"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name}: expected a figure or table of the paper, got {options.name!r}; leave it out"
            )
    from dreammapping.reproduction import claims, methods, prompts

    if options.name == "methods":
        plan = _plan(options, *((6, 3) if _has_gpu() else (2, 1)))
        found = methods.reproduce(plan, list(_named(options)), train=not options.report, write=options.write)
        if options.write:
            claims.write_page()  # which has rows of this table
        return found
    plan = _plan(options, 6, 1)
    return prompts.reproduce(plan, train=not options.report, write=options.write)


def _named(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(name for name in options.methods.split(",") if name)


def _plan(options: argparse.Namespace, prompts: int, seeds: int) -> Any:
    """The plan of a table, with its own numbers of prompts and seeds where none are given."""
    from dreammapping.reproduction.table import Plan

    return Plan(
        opt=options.opt or QUICKSTART,
        overrides=tuple(options.overrides),
        prompts=prompts if options.prompts is None else _count(options.prompts),
        seeds=seeds if options.seeds is None else options.seeds,
        views=24 if options.views is None else options.views,
        jobs=options.jobs,
        again=options.again,
    )


def _count(given: str) -> int:
    if not given.isdecimal():
        raise UserError(f"--prompts: expected a number for a table of the documents, got {given}; correct it")
    return int(given)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
