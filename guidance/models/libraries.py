"""Hugging Face's libraries as whoever calls this program has them: silent and offline for a run, and no longer."""

import contextlib
import os
import sys
from collections.abc import Iterator

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
CLIENT = "huggingface_hub.constants"
_FAMILY = ("huggingface_hub", "transformers", "diffusers")
_before: dict[str, tuple[int, bool]] = {}
"""Verbosity and progress bars of the libraries that were silenced, as they were."""


def silence() -> None:
    """Let diffusers and transformers say nothing but errors: this program says in a line of its own what matters."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        logs = library.utils.logging
        _before.setdefault(library.__name__, (logs.get_verbosity(), logs.is_progress_bar_enabled()))
        logs.disable_progress_bar()
        logs.set_verbosity_error()


def go_offline() -> None:
    """Ask no hub from here on; must come before the hub's client is first imported, which reads this once."""
    for name in OFFLINE:
        os.environ[name] = "1"


@contextlib.contextmanager
def kept_as_they_were() -> Iterator[None]:
    """After the block the libraries say what they said before it, and a hub may be asked if it might be before.

    Imports none of them.
    """
    environment = {name: os.environ.get(name) for name in OFFLINE}
    asked, around = _asked(), dict(_before)  # of a run in whose callback this one is made
    _before.clear()
    try:
        yield
    finally:
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        # the client may have been imported in the block, and after `go_offline`
        plain = asked.get(CLIENT, any(_means_yes(value) for value in environment.values()))
        for name in _asked():
            sys.modules[name].HF_HUB_OFFLINE = asked.get(name, plain)  # type: ignore[attr-defined]
        for library, (verbosity, bars) in _before.items():
            logs = sys.modules[library].utils.logging
            logs.set_verbosity(verbosity)
            if bars:
                logs.enable_progress_bar()
        _before.clear()
        _before.update(around)


def is_offline() -> bool:
    """Whether no hub may be asked: by `go_offline`, or by the user's HF_HUB_OFFLINE."""
    return _means_yes(os.environ.get("HF_HUB_OFFLINE"))


def _means_yes(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")


def _asked() -> dict[str, bool]:
    """What the hub's client, and whoever has copied its word, takes for true, by module."""
    family = ((name, module) for name, module in list(sys.modules.items()) if name.startswith(_FAMILY))
    return {
        name: found
        for name, module in family
        if (found := getattr(module, "__dict__", {}).get("HF_HUB_OFFLINE")) is not None
    }
