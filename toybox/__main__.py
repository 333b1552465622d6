"""What the toybox knows: `python -m toybox --prompts`."""

import sys

from utils.console import write_out
from utils.parser import Parser


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(
        prog="python -m toybox",
        description="The toybox, a world of simple objects and the models trained on it.",
        epilog="It is trained by python -m toybox.train.",
    )
    parser.add_argument(
        "--prompts", action="store_true", help="list the objects and colours of which its prompts are made"
    )
    options = parser.parse_args(arguments)
    if not options.prompts:
        parser.print_help()
        return 0
    from toybox.captions import known_prompts

    write_out(known_prompts())
    return 0


if __name__ == "__main__":
    sys.exit(main())
