"""Render the toybox's data set: `python -m toybox.dataset`."""

import logging
import sys

from utils.command import exit_code
from utils.parser import Parser
from utils.paths import expanded


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code. What renders is imported after it, so that its help is instant."""
    parser = Parser(prog="python -m toybox.dataset", description="Render the toybox's data set.")
    parser.add_argument("--views", type=int, default=20000, help="training views (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="pixels on a side (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of every random choice (default: %(default)s)"
    )
    parser.add_argument("--cache", type=expanded, help="folder for the files (default: toybox/cache)")
    settings = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def render() -> int:
        from toybox import renders

        renders.generate(settings.views, settings.size, settings.seed, settings.cache or renders.CACHE)
        return 0

    return exit_code(
        render, stopped="stopped; repeat the command to continue from the shards that are written"
    )


if __name__ == "__main__":
    sys.exit(main())
