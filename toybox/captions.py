"""Which prompts the toybox's models know, and the nearest of them to any other."""

import re
import textwrap
from difflib import SequenceMatcher

from toybox.world import COLOURS, HELD_OUT, OBJECTS, VIEWS, caption

_KNOWN = re.compile(
    rf"(an? )?({'|'.join(COLOURS)}) ({'|'.join(OBJECTS)})(, ({'|'.join(VIEWS)}) view)?[.!]?", re.IGNORECASE
)
_ALIKE = 0.75
"""Of two words' letters: from here on one is taken for the other, as `gray` for `grey`."""


def known_prompts() -> str:
    """The prompts that the models know, in a few lines for a reader."""
    held_out = ", ".join(caption(name, colour) for name, colour in sorted(HELD_OUT, key=_place))
    return (
        f"The toybox knows {len(OBJECTS) * len(COLOURS)} prompts, 'a COLOUR OBJECT' each, as in 'a red car' or 'an "
        f"orange cat':\n\n"
        f"{_wrapped('colours', ', '.join(COLOURS))}\n{_wrapped('objects', ', '.join(OBJECTS))}\n\n"
        f"{_wrapped('left out of its training, to test it by', held_out)}\n"
    )


def _place(pair: tuple[str, str]) -> int:
    return OBJECTS.index(pair[0])


def _wrapped(title: str, text: str) -> str:
    return textwrap.fill(f"{title}: {text}", 100, subsequent_indent="  ")


def nearest_captions(prompt: str, count: int = 3) -> list[str] | None:
    """None for a prompt that the models know, `a COLOUR OBJECT` with or without a view; else captions like it.

    An object or a colour that the prompt names stays; in place of others come those whose letters are most alike.
    """
    if _KNOWN.fullmatch(" ".join(prompt.split())):
        return None
    words = re.findall(r"\w+", prompt.lower())
    objects, object_named = _like(words, OBJECTS)
    colours, colour_named = _like(words, tuple(COLOURS))
    if object_named:
        pairs = [(objects[0], colour) for colour in (colours[:1] if colour_named else COLOURS)]
    else:
        pairs = [(name, colours[0] if colour_named else _usual_colour(name)) for name in objects]
    return [caption(name, colour) for name, colour in pairs][:count]


def _like(words: list[str], known: tuple[str, ...]) -> tuple[list[str], bool]:
    """What is known, the likest to any of the words first, and whether that one is named by it."""

    def likeness(name: str) -> float:
        return max((SequenceMatcher(None, word, name).ratio() for word in words), default=0.0)

    ranked = sorted(known, key=likeness, reverse=True)
    return ranked, likeness(ranked[0]) >= _ALIKE


def _usual_colour(name: str) -> str:
    return next(colour for colour in COLOURS if (name, colour) not in HELD_OUT)
