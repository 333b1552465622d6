"""The kinds of object as lists of solids: `solids(name)`, centred, and fitted into |coordinate| <= 0.54.

Each builder works in units of its own (front +y, up +z) and is fitted afterwards. The colours are `paint`
(that of the caption), `dark` and `light` (tints of it), and the accents, which are the same whatever the
paint.
"""

from functools import cache

import numpy as np

from toybox import animals, things
from toybox.solid import Solid
from utils.errors import UserError

HALF_EXTENT = 0.54

ACCENTS: dict[str, tuple[float, float, float]] = {
    "ivory": (0.97, 0.96, 0.92),
    "ink": (0.06, 0.06, 0.07),
    "rubber": (0.20, 0.20, 0.22),
    "steel": (0.68, 0.70, 0.73),
    "glass": (0.66, 0.86, 0.97),
    "lamp": (1.00, 0.95, 0.55),
    "stop": (0.90, 0.06, 0.06),
    "beak": (1.00, 0.60, 0.08),
    "rose": (0.98, 0.60, 0.66),
    "wood": (0.40, 0.24, 0.12),
}

_BUILDERS = {**animals.BUILDERS, **things.BUILDERS}


INKS: dict[str, tuple[float, float, float, float]] = {
    **{name: (*colour, 0.0) for name, colour in ACCENTS.items()},
    "paint": (0.0, 0.0, 0.0, 1.0),
    "dark": (0.0, 0.0, 0.0, 0.72),
    "light": (0.35, 0.35, 0.35, 0.65),
}
"""Every colour name of a builder: a fixed colour, and the share of the paint that is added to it."""


@cache
def solids(name: str) -> tuple[Solid, ...]:
    """The fitted solids of one kind; raises `UserError` for a name without a builder."""
    if name not in _BUILDERS:
        raise UserError(
            f"toybox object: expected one of {', '.join(_BUILDERS)}, got {name!r}; use one of them"
        )
    parts = _BUILDERS[name]()
    points = np.concatenate([part.outline for part in parts])
    low, high = points.min(0), points.max(0)
    scale = 2.0 * HALF_EXTENT / float((high - low).max())
    return tuple(part.placed(scale, -0.5 * (low + high)) for part in parts)
