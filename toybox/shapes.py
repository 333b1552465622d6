"""The vocabulary in which objects are written: balls, tubes, limbs, boxes, eyes, wheels, mirrored pairs.

A point is (x, y, z), front +y and up +z, in any unit: objects are fitted to the world afterwards.
"""

from collections.abc import Sequence

import numpy as np

from toybox.solid import Solid

Point = tuple[float, float, float]


def _rotation(degrees: Point) -> np.ndarray:
    """Rotation about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def ball(
    colour: str,
    at: Point,
    radii: Point | float,
    turn: Point = (0, 0, 0),
    span: tuple[float, float] = (-1.0, 1.0),
) -> Solid:
    """An ellipsoid, or the slice of it within `span` of its own z axis."""
    scale = np.diag(np.broadcast_to(np.asarray(radii, float), 3))
    return Solid(_rotation(turn) @ scale, np.array(at, float), colour, profile=(1.0, 0.0, -1.0), span=span)


def tube(colour: str, start: Point, end: Point, first: float, last: float | None = None) -> Solid:
    """A capped cone from `start` (radius `first`) to `end` (radius `last`, or the same)."""
    last = first if last is None else last
    begin, finish = np.array(start, float), np.array(end, float)
    axis = 0.5 * (finish - begin)
    length = np.linalg.norm(axis)
    along = axis / length
    across = np.cross(along, [1.0, 0.0, 0.0] if abs(along[0]) < 0.9 else [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across)
    wide = max(first, last)
    matrix = np.stack([wide * across, wide * np.cross(along, across), axis], axis=1)
    mean, slope = 0.5 * (first + last) / wide, 0.5 * (last - first) / wide
    profile = (mean * mean, 2.0 * mean * slope, slope * slope)
    return Solid(matrix, 0.5 * (begin + finish), colour, profile=profile)


def limb(colour: str, points: Sequence[Point], radii: Sequence[float] | float) -> list[Solid]:
    """A chain of rounded tubes through `points`."""
    widths = np.broadcast_to(np.asarray(radii, float), len(points))
    joints = [ball(colour, at, float(width)) for at, width in zip(points, widths, strict=True)]
    tubes = [
        tube(colour, points[i], points[i + 1], float(widths[i]), float(widths[i + 1]))
        for i in range(len(points) - 1)
    ]
    return joints + tubes


def box(
    colour: str, at: Point, half: Point, top: tuple[float, float] = (1.0, 1.0), turn: Point = (0, 0, 0)
) -> Solid:
    """A box of half sizes `half` whose top face is scaled by `top`."""
    return Solid(_rotation(turn) @ np.diag(np.asarray(half, float)), np.array(at, float), colour, top=top)


def pair(*parts: Solid | list[Solid]) -> list[Solid]:
    """The parts and their mirror images."""
    originals = flat(*parts)
    return originals + [part.mirrored() for part in originals]


def flat(*parts: Solid | list[Solid]) -> list[Solid]:
    """One list of solids and lists of solids."""
    return [solid for part in parts for solid in (part if isinstance(part, list) else [part])]


def eyes(at: Point, radius: float) -> list[Solid]:
    """Two white eyes with black pupils that look forward."""
    x, y, z = at
    pupil = ball("ink", (0.94 * x, y + 0.52 * radius, z), (0.6 * radius,) * 3)
    return pair(ball("ivory", at, radius), pupil)


def wheels(x: float, ys: Sequence[float], radius: float, width: float = 0.07) -> list[Solid]:
    """A wheel with a hub at each y, on both sides, standing on z = 0."""
    parts = []
    for y in ys:
        parts.append(tube("rubber", (x - width, y, radius), (x + width, y, radius), radius))
        parts.append(tube("steel", (x, y, radius), (x + width + 0.015, y, radius), 0.48 * radius))
    return pair(*parts)
