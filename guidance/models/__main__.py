"""Fetch models ahead of a run: `python -m guidance.models fetch sd21-base shap-e`."""

import logging
import sys

from guidance.models import hub
from guidance.models.names import ALIASES, COMPONENTS, ENCODERS, HELPERS, LICENCES, SHAPE_COMPONENTS, TOYBOX
from guidance.models.preflight import encoder_source, loading_error
from guidance.models.source import ModelSource, locate
from utils.command import exit_code
from utils.console import write_out
from utils.errors import UserError
from utils.parser import Parser


def fetch(key: str) -> str:
    """Download a model into the hub's cache, once; returns what was fetched, for the user.

    Raises:
        UserError: there is no such model, or it cannot be fetched.
    """
    if key == "toybox":
        return f"toybox: comes with this program ({TOYBOX})\n"
    source = encoder_source(key) if key in ENCODERS else locate(key, "fetch", ALIASES | HELPERS)
    if source.kind == "folder":
        return f"{key}: is on this machine\n"
    try:
        folder = hub.fetch(source.location, _components(source))
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise loading_error(error, source) from error
    record = hub.recorded(folder) or {"files": {}, "revision": folder.name}
    total = sum(file["bytes"] for file in record["files"].values())
    lines = [
        f"{key}: {source.location}, revision {record['revision']}, {total / 1e9:.2f} GB, licence "
        f"{LICENCES.get(key, 'as its page says')}",
        f"  in {folder}",
        *(f"  {file['sha256']}  {name}" for name, file in record["files"].items()),
    ]
    return "\n".join(lines) + "\n"


def _components(source: ModelSource) -> tuple[str, ...]:
    if source.location == HELPERS["shap-e"]:
        return SHAPE_COMPONENTS
    alone = (HELPERS["taesd"], *ENCODERS.values())
    return () if source.location in alone else COMPONENTS


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = Parser(prog="python -m guidance.models", description=__doc__)
    known = ", ".join((*ALIASES, *HELPERS, *ENCODERS))
    parser.add_argument(
        "command", choices=("fetch",), help="fetch: download what a run needs, check and record it"
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=f"{known}, or a hub id")
    options = parser.parse_args(argv)

    def fetch_all() -> int:
        for key in options.models:
            write_out(fetch(key))
        return 0

    return exit_code(fetch_all)


if __name__ == "__main__":
    sys.exit(main())
