"""What exists in the toybox: kinds of object, colours, held-out pairs, view words, captions, backgrounds.

World frame: right-handed, +z up, the front of every object looks along +y, and every object is mirror
symmetric about the plane x = 0. Azimuth 0 is seen from the front, 90 from +x, 180 from the back.
"""

import functools

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.errors import UserError

OBJECTS: tuple[str, ...] = (
    "cat",
    "snowman",
    "car",
    "house",
    "robot",
    "mushroom",
    "duck",
    "chair",
    "airplane",
    "teapot",
    "rocket",
    "train",
    "boat",
    "rabbit",
    "penguin",
    "fish",
    "bus",
    "turtle",
    "elephant",
    "pig",
    "bear",
    "castle",
    "helicopter",
    "dinosaur",
    "television",
    "bee",
)
"""The kinds of object; their order is the class index in every label and in the shipped weights."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.09, 0.09),
    "orange": (0.98, 0.50, 0.04),
    "yellow": (0.99, 0.88, 0.10),
    "green": (0.13, 0.62, 0.18),
    "cyan": (0.12, 0.82, 0.86),
    "blue": (0.12, 0.24, 0.88),
    "purple": (0.49, 0.14, 0.70),
    "pink": (1.00, 0.52, 0.74),
    "brown": (0.46, 0.26, 0.12),
    "white": (0.97, 0.97, 0.97),
    "black": (0.12, 0.12, 0.12),
    "grey": (0.50, 0.50, 0.50),
}
"""Name to sRGB in [0, 1]; the order is the class index."""

VIEWS: tuple[str, ...] = ("front", "side", "back")

_COLOUR_NAMES = tuple(COLOURS)

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (name, _COLOUR_NAMES[(5 * index + 2) % len(COLOURS)]) for index, name in enumerate(OBJECTS)
)
"""(object, colour) pairs never seen in training: object i lacks colour (5 i + 2) mod 12. Since 5 and 12 are
coprime, every object and every colour occurs."""

_LIGHT = (0.65, 0.80, 1.0)  # the shades of one paint: underside, wall, top
_BACKGROUND_DISTANCE = 0.28
_TRIES = 24  # of a background; a try fails for at most a quarter of all colours
_VOWELS = "aeiou"


def train_pairs() -> list[tuple[str, str]]:
    """All (object, colour) pairs that are not held out, objects varying slowest."""
    return [(name, colour) for name in OBJECTS for colour in COLOURS if (name, colour) not in HELD_OUT]


def view_word(azimuth_deg: float) -> str:
    """The word for an azimuth in degrees: front within 45 of 0, back within 45 of 180, else side."""
    turned = abs((float(azimuth_deg) + 180.0) % 360.0 - 180.0)
    if turned <= 45.0:
        return "front"
    return "back" if turned >= 135.0 else "side"


def caption(name: str, colour: str, view: str | None = None) -> str:
    """`a red car` or `a red car, front view`; the article follows the colour (`an orange car`)."""
    check_pair(name, colour)
    if view is not None and view not in VIEWS:
        raise UserError(
            f"toybox caption: expected a view of {', '.join(VIEWS)}, got {view!r}; use one of them"
        )
    article = "an" if colour[0] in _VOWELS else "a"
    words = f"{article} {colour} {name}"
    return words if view is None else f"{words}, {view} view"


def check_pair(name: str, colour: str) -> None:
    """Raise `UserError` unless the object and the colour exist."""
    if name not in OBJECTS:
        raise UserError(f"toybox object: expected one of {', '.join(OBJECTS)}, got {name!r}; use one of them")
    if colour not in COLOURS:
        raise UserError(
            f"toybox colour: expected one of {', '.join(COLOURS)}, got {colour!r}; use one of them"
        )


def is_distinct(background: np.ndarray, colour: str) -> bool:
    """Whether a flat background (3,) can be told from every shade of the paint `colour`."""
    shades = np.outer(_LIGHT, COLOURS[colour])
    return bool(np.linalg.norm(shades - background, axis=1).min() >= _BACKGROUND_DISTANCE)


def sample_backgrounds(
    colour: Int[Tensor, " B"], size: int, generator: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Backgrounds in [0, 1] that no shade of the paints `colour` (indices) vanishes into, on the generator's device.

    40 % white, 15 % black, 37 % one flat colour, 8 % a soft vertical or radial gradient of two. White or
    black that would swallow the object becomes a flat colour.
    """
    device, count = generator.device, len(colour)
    draw = torch.rand(2 * _TRIES, count, 3, generator=generator, device=device)
    kind, radial = torch.rand(2, count, generator=generator, device=device)[..., None]
    paint = paints(device)[colour]
    first = _first(draw[:_TRIES], _distinct(draw[:_TRIES], paint))
    second = draw[_TRIES:]
    blends = torch.stack(
        [_distinct(torch.lerp(first, second, share), paint) for share in (0.25, 0.5, 0.75, 1.0)]
    )
    second = _first(torch.cat((second, first[None])), torch.cat((blends.all(0), blends.new_ones(1, count))))
    plain = (kind < 0.40).float().expand(count, 3)
    plain = torch.where(_distinct(plain[None], paint)[0][:, None], plain, first)
    first = torch.where(kind < 0.55, plain, first)
    second = torch.where(kind < 0.92, first, second)
    axis = (torch.arange(size, device=device) + 0.5) / size
    down = axis[:, None].expand(size, size)
    away = torch.hypot(axis[:, None] - 0.5, axis[None, :] - 0.5) / 0.5**0.5
    ramp = torch.where(radial[..., None] < 0.5, away, down)[:, None]
    return first[:, :, None, None] + ramp * (second - first)[:, :, None, None]


def _distinct(backgrounds: Float[Tensor, "K B 3"], paint: Float[Tensor, "B 3"]) -> Bool[Tensor, "K B"]:
    shades = torch.stack([light * paint for light in _LIGHT])
    return (backgrounds[:, None] - shades).norm(dim=-1).amin(1) >= _BACKGROUND_DISTANCE


def _first(values: Float[Tensor, "K B 3"], right: Bool[Tensor, "K B"]) -> Float[Tensor, "B 3"]:
    """The first right one of each column."""
    chosen = right.to(torch.uint8).argmax(0)
    return values.gather(0, chosen[None, :, None].expand(1, -1, 3))[0]


@functools.cache
def paints(device: torch.device) -> Float[Tensor, "C 3"]:
    """The colours in the order of their index."""
    return torch.tensor([*COLOURS.values()], device=device)


@functools.cache
def trained_colours(device: torch.device) -> Int[Tensor, "O C"]:
    """For each object the indices of the colours that it is not held out in."""
    rows = [[_COLOUR_NAMES.index(c) for c in COLOURS if (name, c) not in HELD_OUT] for name in OBJECTS]
    return torch.tensor(rows, device=device)
