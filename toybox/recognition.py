"""What a CLIP recognises in images of the world: the nearest of all captions, and the nearest view word."""

import re
from dataclasses import dataclass
from functools import cache

from jaxtyping import Float, Int
from torch import Tensor

from toybox import world

_GRAMMAR = re.compile(r"an?\s+(\w+)\s+(\w+)(?:\s*,\s*(\w+)\s+view)?\s*\.?", re.IGNORECASE)


@dataclass(frozen=True)
class Recognised:
    """Indices into `world.OBJECTS`, `world.COLOURS` and `world.VIEWS`, one of each for every image."""

    object: Int[Tensor, " N"]
    colour: Int[Tensor, " N"]
    view: Int[Tensor, " N"]


def recognise(
    images: Float[Tensor, "N D"], captions: Float[Tensor, "P D"], view_captions: Float[Tensor, "#N W D"]
) -> Recognised:
    """What unit vectors of images are nearest to.

    Args:
        captions: vectors of the captions of `caption_pairs()`.
        view_captions: for each image, or for all, the captions of its true object and colour with every view word.
    """
    pair = (images @ captions.T).argmax(1)
    view = (view_captions @ images[:, :, None]).squeeze(2).argmax(1)
    count = len(world.COLOURS)
    return Recognised(object=pair // count, colour=pair % count, view=view)


@cache
def caption_pairs() -> list[tuple[str, str]]:
    """All (object, colour) pairs, objects varying slowest."""
    return [(name, colour) for name in world.OBJECTS for colour in world.COLOURS]


def parse_caption(prompt: str) -> tuple[str, str] | None:
    """The (object, colour) of a prompt of the toybox's form: `a red car`, `an orange cat, side view`."""
    match = _GRAMMAR.fullmatch(prompt.strip())
    if match is None:
        return None
    colour, name, view = (word and word.lower() for word in match.groups())
    known = name in world.OBJECTS and colour in world.COLOURS and (view is None or view in world.VIEWS)
    return (name, colour) if known else None
