"""Make many assets: every prompt with every combination of settings and every
seed, each an ordinary run.

A sweep is a folder whose files say what is done. The same command, repeated,
continues: it does what is new in the list, and leaves what is done alone.
Several commands, terminals and machines may work in one folder.

  sweep SWEEP.yaml                 what a file says (docs/sweeps.md)
  sweep --prompts FILE --opt FILE  one prompt a line, with a file's settings;
                                   key=value changes one, key=[a,b,c] tries each
  sweep status FOLDER              show how far a sweep is
  sweep results FOLDER             write its results.csv and results.json now
"""

import argparse
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.command import exit_code
from utils.console import warning_once, write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

PLACES = ("status", "results")


def main(words: list[str]) -> int:
    """The command line of `sweep`; returns the exit code: 1 where a run has failed."""
    if words[:1] and words[0] in PLACES:
        options = _folder_parser(words[0]).parse_args(words[1:])
        return exit_code(lambda: _status(options) if words[0] == "status" else _results(options))
    options = parser().parse_intermixed_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[warning_once()])
    return exit_code(
        lambda: _sweep(options), stopped="stopped, with everything saved; repeat the command to continue"
    )


def parser() -> Parser:
    """What `sweep` understands."""
    parser = Parser(
        prog="python -m dreammapping sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--prompts", type=expanded, metavar="FILE", help="one prompt a line; # begins a comment"
    )
    parser.add_argument("--opt", metavar="FILE", help="settings of every run")
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="runs of each, with the seeds 0 to N-1 (default 1)"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="the sweep's folder (default: output/ and the file's name)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="runs at once (default: one per card; 1 without cards)"
    )
    parser.add_argument(
        "--cards",
        type=float,
        default=1,
        metavar="N",
        help="cards that share each run (default 1); with --ray a fraction lets runs share one",
    )
    parser.add_argument(
        "--cpus", type=float, default=1, metavar="N", help="with --ray: cores of each worker (default 1)"
    )
    parser.add_argument(
        "--ray", action="store_true", help="workers are Ray's actors (needs the extra `sweep`)"
    )
    parser.add_argument("--address", default="", metavar="HOST:PORT", help="with --ray: of a running cluster")
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="do only every N-th run, starting with the I-th"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="try runs again that have failed, or whose folder is gone"
    )
    parser.add_argument("--losses", type=int, default=5, metavar="N",
                        help="give up a run after N workers died without a new checkpoint (default 5)")  # fmt: skip
    parser.add_argument("--stale", type=float, default=90.0, metavar="SECONDS",
                        help="silence after which another worker takes a run (default 90)")  # fmt: skip
    parser.add_argument(
        "--judge", action="store_true", help="at the end, score every asset by the toybox's CLIP"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the runs and what they will take; run nothing"
    )
    parser.add_argument("--no-pages", action="store_true", help="write no pages and no gallery at the end")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("words", nargs="*", metavar="SWEEP.yaml | key=value", help="see above")
    return parser


def _folder_parser(place: str) -> Parser:
    parser = Parser(prog=f"python -m dreammapping sweep {place}")
    parser.add_argument("folder", type=expanded, help="the sweep's, such as output/animals")
    if place == "results":
        parser.add_argument("--no-pages", action="store_true", help="write the tables alone")
        parser.add_argument("--judge", action="store_true", help="score every asset by the toybox's CLIP")
    return parser


def _sweep(options: argparse.Namespace) -> int:
    from dreammapping.sweep.grid import grid, wish

    _check(options)
    files = [word for word in options.words if "=" not in word]
    changes = [word for word in options.words if "=" in word]
    if len(files) + (options.prompts is not None) != 1:
        got = " and ".join(map(str, filter(None, [*files, options.prompts]))) or "none"
        raise UserError(
            f"sweep: expected one list, SWEEP.yaml or --prompts FILE, got {got}; see sweep --help"
        )
    file = expanded(files[0]) if files else None
    wanted = wish(file, options.prompts, options.opt, changes, options.seeds, options.output)
    listed = grid(wanted)
    if options.dry_run:
        from dreammapping.sweep.dry_run import dry_run

        write_out(dry_run(listed, wanted.output, int(options.cards) or 1, options.workers))
        return 0
    return _carry_out(options, listed, wanted.output)


def _carry_out(options: argparse.Namespace, listed: Any, output: Path) -> int:
    from dreammapping.sweep.ledger import Ledger
    from dreammapping.sweep.overview import Overview
    from dreammapping.sweep.progress import Progress
    from dreammapping.sweep.results import refuse_changed, write_gallery, write_results

    engine = _engine(options)  # what is missing for it is told before anything is made
    folder = output.absolute()
    ledger = Ledger.enlist(folder, listed, retry_failed=options.retry_failed)
    overview = Overview(ledger)
    try:
        if overview.open:
            with Progress(overview, quiet=options.quiet) as progress:
                engine(folder, progress)
    finally:
        overview.look()
    try:
        refuse_changed(folder)
    except UserError as error:  # the runs are done all the same
        logging.warning("%s; then `python -m dreammapping sweep results %s` writes it", error, folder)
    else:
        write_results(ledger, judge=options.judge)
    if not options.no_pages:
        write_gallery(ledger)
    write_out(f"{overview.line}\n{folder / 'results.csv'}\n")
    for name, reason in overview.failed.items():
        sys.stderr.write(f"failed: {name}: {reason}\n")
    if overview.open and options.shard == "1/1":  # a status that a power cut has emptied, say
        sys.stderr.write("not all runs are over; repeat the command to continue\n")
        return 1
    return 1 if overview.failed else 0


def _engine(options: argparse.Namespace) -> Callable[[Path, Any], None]:
    """What has workers go through a folder."""
    if options.ray or options.address:
        from dreammapping.sweep import on_ray

        on_ray.check_ray()
        crew = on_ray.Crew(
            options.workers,
            options.cards,
            options.cpus,
            options.address,
            options.shard,
            options.losses,
            options.stale,
        )
        return lambda folder, progress: on_ray.run(folder, crew, progress)
    from dreammapping.sweep import processes
    from dreammapping.sweep.cards import cards

    words = ("--shard", options.shard, "--losses", str(options.losses), "--stale", str(options.stale))
    words = (*words, "--processes", str(int(options.cards)))
    team = processes.Team(options.workers, int(options.cards), words, options.losses)
    team.size(cards())
    return lambda folder, progress: processes.run(folder, team, progress)


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing."""
    from dreammapping.sweep.worker import shard

    shard([], options.shard)
    if not (0 < options.cards < math.inf and 0 < options.cpus < math.inf):
        raise UserError(
            f"--cards, --cpus: expected more than 0, got {options.cards:g} and {options.cpus:g}; leave them out for "
            "the default"
        )
    with_ray = options.ray or options.address
    if not with_ray and options.cards != int(options.cards):
        raise UserError(f"--cards: expected a whole number without --ray, got {options.cards:g}; add --ray")
    if options.cards > 1 and options.cards != int(options.cards):
        raise UserError(
            f"--cards: expected a whole number or a fraction below 1, got {options.cards:g}; try "
            f"{int(options.cards)}"
        )
    for name in ("workers", "seeds", "losses"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: expected at least 1, got {value}; leave it out for the default")
    if not options.stale > 0:  # nor is it no number
        raise UserError(
            f"--stale: expected seconds above 0, got {options.stale:g}; leave it out for the default"
        )


def _status(options: argparse.Namespace) -> int:
    from dreammapping.sweep.ledger import Ledger
    from dreammapping.sweep.overview import Overview

    overview = Overview(Ledger(options.folder))
    lines = [overview.line, *(f"running  {working.line}" for working in overview.working)]
    lines += [f"failed   {name}: {reason}" for name, reason in overview.failed.items()]
    write_out("\n".join(lines) + "\n")
    return 0


def _results(options: argparse.Namespace) -> int:
    from dreammapping.sweep.ledger import Ledger
    from dreammapping.sweep.results import write_gallery, write_results

    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[warning_once()])
    ledger = Ledger(options.folder)
    write_results(ledger, judge=options.judge)
    if not options.no_pages:
        write_gallery(ledger)
    write_out(f"{options.folder / 'results.csv'}\n{options.folder / 'results.json'}\n")
    return 0
