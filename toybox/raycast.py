"""Exact ray casting of solids in NumPy: an object, a colour and a camera in, an image out.

Light comes from straight above and is part of the world, not of the camera. There are no shadows and no
highlights, so views of an object agree with each other and its mirror image is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toybox.objects import palette, solids
from toybox.solid import Solid
from toybox.world import COLOURS, check_pair

SUPERSAMPLING = 2
_FAR = np.float32(1e9)
_EPS = np.float32(1e-12)
_END_NORMALS = np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0]], np.float32)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: centre (3,), rotation (3, 3) with rows right, down, forward, full fov in radians."""

    centre: np.ndarray
    rotation: np.ndarray
    fov: float

    @classmethod
    def orbit(
        cls,
        azimuth_deg: float,
        polar_deg: float,
        radius: float,
        fov: float,
        target: tuple[float, float, float] = (0.0, 0.0, 0.0),
        roll_deg: float = 0.0,
    ) -> "Camera":
        """At ``radius`` from the origin, looking at ``target``; polar from +z, azimuth from +y towards +x."""
        theta, phi, roll = np.radians([polar_deg, azimuth_deg, roll_deg])
        centre = radius * np.array([np.sin(theta) * np.sin(phi), np.sin(theta) * np.cos(phi), np.cos(theta)])
        forward = np.asarray(target, float) - centre
        forward /= np.linalg.norm(forward)
        # Right is taken from the azimuth where forward is vertical, so that looking straight down is defined.
        right = np.cross(forward, [0.0, 0.0, 1.0])
        if np.linalg.norm(right) < 1e-6:
            right = np.array([-np.cos(phi), np.sin(phi), 0.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        turned = np.cos(roll) * right + np.sin(roll) * down
        return cls(centre, np.stack([turned, np.cross(forward, turned), forward]), fov)


def render(
    name: str,
    colour: str,
    azimuth_deg: float,
    polar_deg: float,
    radius: float,
    fov: float,
    size: int = 128,
    background: np.ndarray | tuple[float, float, float] | None = None,
    target: tuple[float, float, float] = (0.0, 0.0, 0.0),
    roll_deg: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """One object in one colour, from an orbit camera (angles in degrees, full field of view in radians).

    ``background`` is (3,) or (size, size, 3) in [0, 1], or None for white. Returns the image (size, size, 3)
    and its alpha (size, size), float32 in [0, 1]. Raises ``UserError`` for an unknown name.
    """
    check_pair(name, colour)
    camera = Camera.orbit(azimuth_deg, polar_deg, radius, fov, target, roll_deg)
    image, alpha = cast(solids(name), camera, size, palette(COLOURS[colour]))
    behind = np.asarray((1.0, 1.0, 1.0) if background is None else background, np.float32)
    return image + (1.0 - alpha)[..., None] * behind, alpha


def cast(
    parts: Sequence[Solid], camera: Camera, size: int, colours: dict[str, tuple[float, float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Render ``parts`` with the named ``colours``.

    Returns the premultiplied image (size, size, 3) and the coverage (size, size), float32 in [0, 1].
    """
    fine = size * SUPERSAMPLING
    focal = 0.5 * fine / np.tan(0.5 * camera.fov)
    offsets = ((np.arange(fine, dtype=np.float32) + 0.5) - 0.5 * fine) / np.float32(focal)
    rays = np.empty((fine, fine, 3), np.float32)
    right, down, forward = camera.rotation.astype(np.float32)
    rays[:] = offsets[None, :, None] * right + offsets[:, None, None] * down + forward
    depth = np.full((fine, fine), _FAR, np.float32)
    image = np.zeros((fine, fine, 3), np.float32)
    for solid in parts:
        window = _window(solid, camera, focal, fine)
        if window is not None:
            _draw(solid, camera.centre, rays[window], depth[window], image[window], colours[solid.colour])
    cells = (size, SUPERSAMPLING, size, SUPERSAMPLING)
    covered = (depth < _FAR).astype(np.float32)
    return image.reshape(*cells, 3).mean((1, 3)), covered.reshape(cells).mean((1, 3))


def _window(solid: Solid, camera: Camera, focal: float, fine: int) -> tuple[slice, slice] | None:
    """The pixels that the bounding sphere can touch, or None where it is out of sight."""
    centre, radius = solid.bounding_sphere
    x, y, z = camera.rotation @ (centre - camera.centre)
    if z <= radius:  # around or behind the camera: nothing can be ruled out by projection
        return (slice(0, fine), slice(0, fine)) if z > -radius else None
    bounds = []
    for offset in (y, x):
        # Tangent directions of the sphere's cross-section: exact bounds of its projection on one axis.
        angle, half = np.arctan2(offset, z), np.arcsin(min(radius / np.hypot(offset, z), 1.0))
        low = int(np.floor(focal * np.tan(angle - half) + 0.5 * fine))
        high = int(np.ceil(focal * np.tan(angle + half) + 0.5 * fine))
        low, high = max(low, 0), min(high, fine)
        if low >= high:
            return None
        bounds.append(slice(low, high))
    return bounds[0], bounds[1]


def _draw(
    solid: Solid,
    eye: np.ndarray,
    rays: np.ndarray,
    depth: np.ndarray,
    image: np.ndarray,
    colour: tuple[float, float, float],
) -> None:
    """Intersect ``rays`` (H, W, 3) from ``eye``; write depth and colour where this solid is nearest."""
    inverse = solid.inverse.astype(np.float32)
    origin = (solid.inverse @ (eye - solid.centre)).astype(np.float32)
    direction = rays @ inverse.T
    if solid.profile is None:
        distance = _hit_block(solid, origin, direction)
    else:
        distance = _hit_round(solid, solid.profile, origin, direction)
    nearest = distance < depth
    if not nearest.any():
        return
    distance = distance[nearest]
    depth[nearest] = distance
    points = origin + distance[:, None] * direction[nearest]
    normal = _local_normal(solid, points) @ inverse
    normal /= np.sqrt((normal * normal).sum(1, keepdims=True)) + _EPS
    image[nearest] = _shade(normal)[:, None] * np.asarray(colour, np.float32)


def _shade(normal: np.ndarray) -> np.ndarray:
    """Lambert light from above, and walls that face sideways a little darker, so that vertical edges show."""
    return 0.80 + 0.20 * normal[:, 2] - 0.10 * normal[:, 0] ** 2


def _slab(solid: Solid, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry and exit distance of the range of local z."""
    vertical = direction[..., 2]
    vertical = np.where(np.abs(vertical) < _EPS, _EPS, vertical)
    first = (np.float32(solid.span[0]) - origin[2]) / vertical
    second = (np.float32(solid.span[1]) - origin[2]) / vertical
    return np.minimum(first, second), np.maximum(first, second)


def _hit_round(
    solid: Solid, profile: tuple[float, float, float], origin: np.ndarray, direction: np.ndarray
) -> np.ndarray:
    """Distance to a round solid, ``_FAR`` where missed."""
    a, b, c = (np.float32(value) for value in profile)
    dx, dy, dz = direction[..., 0], direction[..., 1], direction[..., 2]
    ox, oy, oz = origin
    square = dx * dx + dy * dy - c * (dz * dz)
    half = ox * dx + oy * dy - (c * oz + 0.5 * b) * dz
    constant = ox * ox + oy * oy - (a + b * oz + c * oz * oz)
    root = half * half - square * constant
    crossing = root >= 0.0
    root = np.sqrt(np.maximum(root, 0.0))
    square = np.where(np.abs(square) < _EPS, _EPS, square)
    first, second = (-half - root) / square, (-half + root) / square
    enter, leave = _slab(solid, origin, direction)
    # Inside is between the roots where square > 0, and outside them (both nappes of a cone) where it is not.
    between = np.maximum(first, enter)
    inside = crossing & (square > 0.0) & (between <= np.minimum(second, leave))
    distance = np.where(inside, between, _FAR)
    steep = square < 0.0
    if steep.any():
        early, late = np.minimum(first, second), np.maximum(first, second)
        outer = np.where(enter <= early, enter, np.maximum(late, enter))
        distance = np.where(steep & (outer <= leave), outer, distance)
    return np.where(distance > 0.0, distance, _FAR)


def _hit_block(solid: Solid, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distance to a block, ``_FAR`` where missed."""
    enter, leave = _slab(solid, origin, direction)
    normals, offsets = solid.planes
    for normal, offset in zip(normals, offsets, strict=True):
        speed = direction @ normal
        speed = np.where(np.abs(speed) < _EPS, _EPS, speed)
        crossing = (offset - origin @ normal) / speed
        enter = np.where(speed < 0.0, np.maximum(enter, crossing), enter)
        leave = np.where(speed > 0.0, np.minimum(leave, crossing), leave)
    return np.where((enter <= leave) & (enter > 0.0), enter, _FAR)


def _local_normal(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Outward normals (N, 3), in the solid's frame, of the face on which each surface point lies."""
    low, high = solid.span
    ends = np.stack([low - points[:, 2], points[:, 2] - high], axis=1)
    if solid.profile is None:
        normals, offsets = solid.planes
        faces = np.concatenate([points @ normals.T - offsets, ends], axis=1)
        return np.concatenate([normals, _END_NORMALS])[faces.argmax(1)]
    a, b, c = solid.profile
    x, y, z = points.T
    side = np.stack([x, y, -(c * z + 0.5 * b)], axis=1).astype(np.float32)
    across = x * x + y * y - (a + b * z + c * z * z)
    # The equation's value over its slope is a distance, comparable with the ends' distances.
    across = 0.5 * across / (np.sqrt((side * side).sum(1)) + _EPS)
    end = ends.max(1) > across
    return np.where(end[:, None], _END_NORMALS[ends.argmax(1)], side)
