"""Judge a finished asset by the toybox's CLIP: `python -m dreammapping judge output/quickstart`.

Views all around the object are compared with captions. Three rows make a range: the asset, renders of the
true object with the same cameras and background, and the untrained start of the run.
"""

import argparse
import json
import logging

from dreammapping.command import exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.files import atomic
from utils.paths import expanded


def main(words: list[str]) -> int:
    """The command line of `judge`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dreammapping judge", description=__doc__)
    parser.add_argument("run", type=expanded, help="run folder, such as output/quickstart")
    parser.add_argument("--views", type=int, default=24, help="views all around, at least 4 (default 24)")
    parser.add_argument("--prompt", help="judge by this prompt instead of the run's own")
    parser.add_argument("--iteration", type=int, help="saved iteration to judge (default: the last)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - for standard output")
    options = parser.parse_args(words)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    return exit_code(lambda: _judge(options))


def _judge(options: argparse.Namespace) -> int:
    if options.views < 4:
        raise UserError(f"--views: expected at least 4, got {options.views}; 16 to 32 are usual")
    from dreammapping.evaluation.judge import judge_run, table

    result = judge_run(options.run, options.views, options.prompt, options.iteration)
    text = json.dumps(result, indent=2)
    if options.json not in (None, "-"):
        with atomic(expanded(options.json)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    write_out((text if options.json == "-" else table(result)) + "\n")
    return 0
