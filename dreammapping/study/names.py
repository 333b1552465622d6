"""Which system a word of the command line means: `NAME=RUN`, or a run that says so itself."""

import os
from pathlib import Path

from dreammapping.evaluation.pictures import Source


def opened(word: str, prompt: str | None = None) -> tuple[str, Source]:
    """A system's name, and what it made.

    Raises:
        UserError: there is no run and no picture, or a prompt is missing.
    """
    name, equals, place = word.partition("=")
    if not equals or os.path.exists(word):
        name, place = "", word
    source = Source.open(Path(place), prompt)
    return name or source.cost().get("method") or source.folder.resolve().name, source
