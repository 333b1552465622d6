"""Judge a finished asset by the toybox's CLIP: `python -m dreammapping judge output/quickstart`.

Views all around the object are compared with captions. Three rows make a range: the asset, renders of the
true object with the same cameras and background, and the untrained start of the run.
"""

import argparse
import logging

from dreammapping.json_file import JsonFile, add_json_option
from utils.command import STARTS_AGAIN, exit_code
from utils.errors import UserError
from utils.parser import Parser
from utils.paths import expanded

MOST_VIEWS = 1000


def main(words: list[str]) -> int:
    """The command line of `judge`; returns the exit code."""
    parser = Parser(prog="python -m dreammapping judge", description=__doc__)
    parser.add_argument("run", type=expanded, help="run folder, such as output/quickstart")
    parser.add_argument("--views", type=int, default=24, help="views all around, at least 4 (default 24)")
    parser.add_argument(
        "--prompt", help="judge by this prompt instead of the run's own; such scores are not kept in the run"
    )
    parser.add_argument(
        "--iteration",
        type=int,
        help="saved iteration to judge (default: the last, whose scores are kept in the run)",
    )
    add_json_option(parser)
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: _judge(options), stopped=STARTS_AGAIN)


def _judge(options: argparse.Namespace) -> int:
    if not 4 <= options.views <= MOST_VIEWS:
        raise UserError(f"--views: expected 4 to {MOST_VIEWS}, got {options.views}; 16 to 32 are usual")
    numbers = JsonFile(options.json, "run", "prompt", "views", "asset")
    from dreammapping.evaluation.judge import judge_run, table

    result = judge_run(options.run, options.views, options.prompt, options.iteration)
    numbers.write(result, table(result))
    return 0
