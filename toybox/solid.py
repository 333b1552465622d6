"""Convex solids of two analytic kinds under affine maps.

A round solid is `x^2 + y^2 <= a + b z + c z^2` and a block is a box whose top is scaled by two ratios, both
cut to a range of z in their own frame. Ellipsoids, domes, cylinders, cones, boxes, prisms and pyramids are
among these.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class Solid:
    """A convex solid: a local shape, the map `world = matrix @ local + centre`, the name of its colour.

    `profile` is (a, b, c) of a round solid, or None for a block, whose half widths run linearly from 1 at
    z = -1 to `top` at z = 1. `span` is the range of local z.
    """

    matrix: np.ndarray
    centre: np.ndarray
    colour: str
    profile: tuple[float, float, float] | None = None
    top: tuple[float, float] = (1.0, 1.0)
    span: tuple[float, float] = (-1.0, 1.0)

    def mirrored(self) -> "Solid":
        """The reflection about the plane x = 0 (every local shape is its own reflection)."""
        flip = np.diag([-1.0, 1.0, 1.0])
        return replace(self, matrix=flip @ self.matrix @ flip, centre=flip @ self.centre)

    def placed(self, scale: float, shift: np.ndarray) -> "Solid":
        """The solid moved to `scale * (x + shift)`."""
        return replace(self, matrix=scale * self.matrix, centre=scale * (self.centre + shift))

    @cached_property
    def inverse(self) -> np.ndarray:
        return np.linalg.inv(self.matrix)

    @cached_property
    def outline(self) -> np.ndarray:
        """Points (N, 3) whose convex hull is the solid (round ones: closely enough for bounds)."""
        if self.profile is None:
            corners = [
                (sx * (1.0 if z < 0 else self.top[0]), sy * (1.0 if z < 0 else self.top[1]), z)
                for z in (-1.0, 1.0)
                for sx in (-1.0, 1.0)
                for sy in (-1.0, 1.0)
            ]
            local = np.array(corners)
        else:
            a, b, c = self.profile
            # Cosine spacing puts points where a sphere's outline turns fastest.
            z = self.span[0] + (self.span[1] - self.span[0]) * (
                0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, 33))
            )
            angle = np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)
            radius = np.sqrt(np.maximum(a + b * z + c * z * z, 0.0))
            local = np.stack(
                [
                    np.outer(radius, np.cos(angle)),
                    np.outer(radius, np.sin(angle)),
                    np.repeat(z[:, None], angle.size, axis=1),
                ],
                axis=-1,
            ).reshape(-1, 3)
        return local @ self.matrix.T + self.centre

    @cached_property
    def bounding_sphere(self) -> tuple[np.ndarray, float]:
        """(centre, radius), slightly enlarged."""
        low, high = self.outline.min(0), self.outline.max(0)
        centre = 0.5 * (low + high)
        return centre, 1.01 * float(np.linalg.norm(self.outline - centre, axis=1).max())
