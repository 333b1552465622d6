"""Whether what the viewer stands on is installed; nothing of it is imported here."""

from importlib.util import find_spec

from utils.errors import UserError


def require_viser(where: str) -> None:
    """Raise UserError where viser is missing. `where`: what asked for it."""
    if find_spec("viser") is None:
        raise UserError(
            f"{where}: expected the package viser, found none; install it: pip install -c constraints.txt ."
        )
