"""Which system a word of the command line means: `NAME=RUN`, or a run that says so itself."""

import os
from pathlib import Path

from arguments.check import check_text
from dreammapping.evaluation.pictures import Source


def opened(word: str, prompt: str | None = None) -> tuple[str, Source]:
    """A system's name, and what it made.

    Raises:
        UserError: there is no run and no picture, a prompt is missing, or it or the name is no text.
    """
    name, equals, place = word.partition("=")
    if not equals or os.path.exists(word):
        name, place = "", word
    source = Source.open(Path(place), prompt)
    name = name or source.cost().get("method") or source.folder.resolve().name
    check_text(name, "study: NAME in NAME=RUN")
    return name, source
