"""Text to 3D: `python train.py --opt configs/cat.yaml [Group.key=value ...]`; see `--help`."""

import logging
import os
import sys

from arguments import load, to_yaml
from utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code.

    0 when the run is finished, 2 for what the user can mend (one line on standard error), 130 or 143 when
    Ctrl-C or SIGTERM ended it early with everything saved.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        config, command = load(argv)
        if command.print_config:
            sys.stdout.write(to_yaml(config))
            return 0
        if command.quiet:
            logging.getLogger().setLevel(logging.WARNING)
        if command.dry_run:
            from dreammapping.dry_run import dry_run

            sys.stdout.write(dry_run(config))
            return 0
        from dreammapping import optimize

        result = optimize(config, resume=command.resume, force=command.force, quiet=command.quiet)
        if result.exit_code == 0:
            logging.info("finished: %s", result.folder)
        return result.exit_code
    except BrokenPipeError:  # `--help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UserError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt as error:
        sys.stderr.write(f"{str(error) or 'stopped before the run began; nothing was changed'}\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
