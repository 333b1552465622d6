"""A user study: `python -m dreammapping study build RUNS... --output DIR`,
then `python -m dreammapping study score ANSWERS...`.

`build` writes one page on which people rank the systems' pictures without
seeing names, and save a file of answers; nothing is sent anywhere. `score`
prints mean ranks with intervals, and how far people agree.
"""

import argparse
import logging

from dreammapping.json_file import JsonFile, add_json_option
from utils.command import STARTS_AGAIN, exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded


def main(words: list[str]) -> int:
    """The command line of `study`; returns the exit code."""
    options = parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    return exit_code(
        lambda: _build(options) if options.step == "build" else _score(options),
        stopped=STARTS_AGAIN,
    )


def parser() -> Parser:
    """What `study` understands."""
    parser = Parser(
        prog="python -m dreammapping study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="build|score")
    build = steps.add_parser("build", help="write the page and its key")
    build.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="run folders or folders of pictures; NAME is the system's (default: a run's method, a folder's name)",
    )
    build.add_argument(
        "--output", type=expanded, required=True, metavar="DIR", help="where index.html and key.json go"
    )
    build.add_argument("--prompt", help="prompt of picture folders without a prompt.txt")
    build.add_argument("--seed", type=int, default=0, help="seed of each participant's order (default 0)")
    build.add_argument("--views", type=int, default=4, help="views of each asset (default 4)")
    build.add_argument("--size", type=int, default=256, help="pixels of a view (default 256)")
    score = steps.add_parser("score", help="print mean ranks from files of answers")
    score.add_argument(
        "answers", nargs="+", type=expanded, metavar="ANSWERS", help="files that the page saved"
    )
    score.add_argument(
        "--study",
        type=expanded,
        metavar="DIR",
        help="the folder with key.json (default: that of the answers)",
    )
    add_json_option(score)
    return parser


def _build(options: argparse.Namespace) -> int:
    for name, least, most in (("views", 1, 16), ("size", 32, 2048)):
        value = getattr(options, name)
        if not least <= value <= most:
            raise UserError(f"--{name}: expected {least} to {most}, got {value}; give a number in that range")
    from dreammapping.study.build import KEY, PAGE, Entry, build
    from dreammapping.study.names import opened
    from utils.own_files import refuse_others

    refuse_others(options.output, (PAGE, KEY))
    entries = [Entry(*opened(word, options.prompt)) for word in options.runs]
    study = build(entries, seed=options.seed, views=options.views, size=options.size)
    study.write(options.output)
    trials = len(study.key["trials"])
    write_out(
        f"{options.output / PAGE}: {trials} trials; give it to participants\n"
        f"{options.output / KEY}: whose picture each is; keep it\n"
    )
    return 0


def _score(options: argparse.Namespace) -> int:
    numbers = JsonFile(options.json, "participants", "ranks", "agreement")
    from dreammapping.study.build import KEY
    from dreammapping.study.score import markdown, score

    result = score(options.answers, (options.study or options.answers[0].parent) / KEY)
    numbers.write(result.as_dict(), markdown(result))
    return 0
