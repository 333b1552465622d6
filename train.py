"""Text to 3D: `python train.py --opt configs/cat.yaml [Group.key=value ...]`; see `--help`."""

import logging
import os
import sys

from arguments import load, to_yaml
from utils.command import exit_code
from utils.console import write_out


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    0 when the run is finished, 2 for what the user can fix (one line on standard error), 129, 130 or 143 when a
    closed terminal, Ctrl-C or SIGTERM ended it early with everything saved.
    """
    words = sys.argv[1:] if argv is None else argv
    return exit_code(
        lambda: _work(words),
        stopped="stopped before the run began; nothing was changed",
        debug="--debug" in words,
    )


def _work(words: list[str]) -> int:
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    level = logging.INFO if first else logging.ERROR
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger().setLevel(level)
    config, command = load(words)
    if command.print_config:
        write_out(to_yaml(config))
        return 0
    if command.quiet:
        logging.getLogger().setLevel(max(level, logging.WARNING))
    from dreammapping.beside import in_its_place

    config = in_its_place(config, command)
    if command.dry_run:
        from dreammapping.dry_run import dry_run

        write_out(dry_run(config))
        return 0
    from dreammapping import optimize

    result = optimize(config, resume=command.resume, force=command.force, quiet=command.quiet)
    if result.exit_code == 0:
        logging.info("finished: %s", config.ModelParams.run_folder)
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main())
