"""Exact ray casting of solids in PyTorch: an object and a batch of cameras in, layers of its pictures out.

Light comes from straight above and is part of the world, not of the camera. There are no shadows and no
highlights, so views of an object agree with each other and its mirror image is its own. Paint and background are no
part of a cast: every picture is linear in both, so `Layers` serve all colours and all backgrounds.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from toybox.objects import INKS, solids
from toybox.solid import Solid
from toybox.world import COLOURS, check_pair

SUPERSAMPLING = 2
_TOGETHER = 8  # views on a CPU
_FAR = 1e9
_EPS = 1e-12


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras: centres (V, 3), rotations (V, 3, 3) with rows right, down, forward, full fov (V,) in radians."""

    centre: Float[Tensor, "V 3"]
    rotation: Float[Tensor, "V 3 3"]
    fov: Float[Tensor, " V"]

    @classmethod
    def orbit(
        cls,
        azimuth_deg: Float[Tensor, " V"],
        polar_deg: Float[Tensor, " V"],
        radius: Float[Tensor, " V"],
        fov: Float[Tensor, " V"],
        target: Float[Tensor, "V 3"] | None = None,
        roll_deg: Float[Tensor, " V"] | None = None,
    ) -> "Cameras":
        """At `radius` from the origin, looking at `target` (the origin); polar from +z, azimuth from +y towards +x."""
        theta, phi = torch.deg2rad(polar_deg), torch.deg2rad(azimuth_deg)
        roll = torch.zeros_like(theta) if roll_deg is None else torch.deg2rad(roll_deg)[:, None]
        centre = torch.stack((theta.sin() * phi.sin(), theta.sin() * phi.cos(), theta.cos()), 1)
        centre = radius[:, None] * centre
        forward = -centre if target is None else target - centre
        forward = forward / forward.norm(dim=1, keepdim=True)
        # Right is taken from the azimuth where forward is vertical, so that looking straight down is defined.
        level = torch.stack((forward[:, 1], -forward[:, 0], torch.zeros_like(phi)), 1)
        length = level.norm(dim=1, keepdim=True)
        turned = torch.stack((-phi.cos(), phi.sin(), torch.zeros_like(phi)), 1)
        right = torch.where(length < 1e-6, turned, level / length.clamp(min=_EPS))
        down = torch.linalg.cross(forward, right)
        roll = roll.view(-1, 1)
        right = roll.cos() * right + roll.sin() * down
        return cls(centre, torch.stack((right, torch.linalg.cross(forward, right), forward), 1), fov)

    def __len__(self) -> int:
        return len(self.fov)


@dataclass(frozen=True)
class Layers:
    """Pictures without their paint and background: layers (V, C, S, S) in [0, 1]."""

    fixed: Float[Tensor, "V 3 S S"]
    """What no paint changes, premultiplied."""
    paint: Float[Tensor, "V 1 S S"]
    """How much of the paint is added."""
    alpha: Float[Tensor, "V 1 S S"]
    """Coverage."""

    def picture(self, paint: Float[Tensor, "V 3"], background: Tensor) -> Float[Tensor, "V 3 S S"]:
        """Images in [0, 1]; `background` broadcasts to (V, 3, S, S)."""
        return self.fixed + self.paint * paint[:, :, None, None] + (1.0 - self.alpha) * background


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

    `background` is (3,) or (size, size, 3) in [0, 1], or None for white. Returns the image (size, size, 3)
    and its alpha (size, size), float32 in [0, 1]. Raises `UserError` for an unknown name.
    """
    check_pair(name, colour)
    angles = torch.tensor([[azimuth_deg, polar_deg, radius, fov, roll_deg]], dtype=torch.float64)
    aim = torch.tensor([target], dtype=torch.float64)
    layers = cast(solids(name), Cameras.orbit(*angles.T[:4], target=aim, roll_deg=angles.T[4]), size)
    behind = torch.from_numpy(np.array((1.0, 1.0, 1.0) if background is None else background, np.float32))
    behind = behind.view(3, 1, 1) if behind.ndim == 1 else behind.permute(2, 0, 1)
    image = layers.picture(torch.tensor([COLOURS[colour]]), behind)[0]
    return image.permute(1, 2, 0).contiguous().numpy(), layers.alpha[0, 0].numpy()


@torch.no_grad()
def cast(
    parts: Sequence[Solid],
    cameras: Cameras,
    size: int,
    inks: Mapping[str, tuple[float, float, float, float]] = INKS,
    draw: "Draw | None" = None,
) -> Layers:
    """Views of `parts`, all of one scene, on the cameras' device; float32.

    `inks` gives the fixed colour of each colour name and its share of the paint. On a CPU each view looks at a
    solid's window alone; elsewhere whole frames are drawn at once, by `draw` (the compiled `draw_whole`, say).
    """
    fine = size * SUPERSAMPLING
    device, count = cameras.fov.device, len(cameras)
    focal = (0.5 * fine / torch.tan(0.5 * cameras.fov)).double()
    names = tuple(inks)
    table = torch.tensor([*inks.values(), (0.0,) * 4], dtype=torch.float32, device="cpu")
    table = table.to(device, non_blocking=True)
    depth = torch.full((count, fine, fine), _FAR, device=device)
    shade = torch.zeros_like(depth)
    ink = torch.full_like(depth, len(names))
    offsets = torch.arange(fine, device=device) + (0.5 - 0.5 * fine)
    x = (offsets / focal[:, None]).float()
    windows = draw is None and device.type == "cpu"
    form = _pack(tuple(parts), names, device)
    for index, solid in enumerate(parts):
        inverse, centre = form.inverse[index], form.centre[index]
        # In float64: the difference of two points that lie close together decides which solid is in front.
        eye = ((cameras.centre.double() - centre) @ inverse.T).float()
        turn = (cameras.rotation.double() @ inverse.T).float()
        if windows:
            bounds = _windows(solid, cameras, focal, fine)
            for start in range(0, count, _TOGETHER):
                few = slice(start, start + _TOGETHER)
                buffers = depth[few], shade[few], ink[few]
                _draw_windows(
                    solid.profile is not None,
                    form.rows[index],
                    eye[few],
                    turn[few],
                    x[few],
                    bounds[:, few],
                    buffers,
                )
        else:
            whole = draw or draw_whole
            numbers = form.numbers[index]
            depth, shade, ink = whole(solid.profile is not None, numbers, eye, turn, x, depth, shade, ink)
    lit = shade[:, None] * table[ink.long()].movedim(3, 1)
    lit = F.avg_pool2d(lit, SUPERSAMPLING)
    alpha = F.avg_pool2d((depth < _FAR).float()[:, None], SUPERSAMPLING)
    return Layers(lit[:, :3], lit[:, 3:], alpha)


@dataclass(frozen=True)
class _Form:
    """Solids as numbers of each, also one by one, and in float64 what places the cameras in its frame."""

    numbers: Tensor
    rows: list[tuple[Tensor, ...]]
    inverse: Tensor
    centre: Tensor


@functools.lru_cache(maxsize=256)
def _pack(parts: tuple[Solid, ...], names: tuple[str, ...], device: torch.device) -> _Form:
    """Rows of 17 numbers: the ink, the span, the profile (a, b, c), the top, the inverse by rows."""
    rows = [
        [
            names.index(part.colour),
            *part.span,
            *(part.profile or (0.0, 0.0, 0.0)),
            *part.top,
            *part.inverse.ravel(),
        ]
        for part in parts
    ]
    numbers = torch.tensor(rows, dtype=torch.float32).to(device)
    return _Form(
        numbers,
        [row.unbind() for row in numbers.unbind()],
        torch.tensor(np.stack([part.inverse for part in parts])).to(device),
        torch.tensor(np.stack([part.centre for part in parts])).to(device),
    )


def _windows(solid: Solid, cameras: Cameras, focal: Tensor, fine: int) -> Int[Tensor, "4 V"]:
    """Top, bottom, left and right of the pixels of each view that the bounding sphere can touch."""
    centre, radius = solid.bounding_sphere
    away = torch.from_numpy(centre) - cameras.centre.double()
    x, y, z = (cameras.rotation.double() @ away[:, :, None])[..., 0].T
    offset = torch.stack((y, x))
    # Tangent directions of the sphere's cross-section: exact bounds of its projection on one axis.
    angle = torch.atan2(offset, z)
    half = torch.asin((radius / torch.hypot(offset, z)).clamp(max=1.0))
    low = (focal * torch.tan(angle - half) + 0.5 * fine).floor().clamp(0, fine)
    high = (focal * torch.tan(angle + half) + 0.5 * fine).ceil().clamp(0, fine)
    # Around or behind the camera nothing can be ruled out by projection.
    low, high = low.masked_fill(z <= radius, 0.0), high.masked_fill(z <= radius, fine)
    high = torch.where(z <= -radius, low, high)
    return torch.stack((low, high), 1).flatten(0, 1).long()


Draw = Callable[[bool, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def draw_whole(
    is_round: bool,
    numbers: Tensor,
    eye: Tensor,
    turn: Tensor,
    x: Tensor,
    depth: Tensor,
    shade: Tensor,
    ink: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One solid over whole frames: `depth`, `shade` and `ink` (V, F, F) as they are with it in the scene.

    `eye` (V, 3) and `turn` (V, 3, 3) are the camera in the solid's frame, `x` (V, F) the offsets of the pixels' rays.
    """
    ray = _rays(eye, turn, x[:, None, :], x[:, :, None])
    distance = _hit(is_round, numbers, ray)
    light = _light(is_round, numbers, ray, distance)
    nearest = distance < depth
    return (
        torch.where(nearest, distance, depth),
        torch.where(nearest, light, shade),
        torch.where(nearest, numbers[0], ink),
    )


def _draw_windows(
    is_round: bool,
    numbers: Sequence[Tensor],
    eye: Tensor,
    turn: Tensor,
    x: Tensor,
    bounds: Int[Tensor, "4 V"],
    buffers: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The same for a window of each view, written in place; only what is in front is lit.

    All windows have the size of the largest: one operation on a few of them costs less than one on each.
    """
    depth, shade, ink = buffers
    fine = x.shape[1]
    top, bottom, left, right = bounds
    height, width = int((bottom - top).max()), int((right - left).max())
    if height <= 0 or width <= 0:
        return
    rows = top.clamp(max=fine - height)[:, None] + torch.arange(height)
    columns = left.clamp(max=fine - width)[:, None] + torch.arange(width)
    rays = _rays(eye, turn, x.gather(1, columns)[:, None, :], x.gather(1, rows)[:, :, None])
    distance = _hit(is_round, numbers, rays).flatten()
    views = torch.arange(len(x))[:, None]
    place = ((views * fine + rows)[:, :, None] * fine + columns[:, None, :]).flatten()
    front = (distance < depth.view(-1)[place]).nonzero()[:, 0]
    if not len(front):
        return
    distance, place = distance[front], place[front]
    view = place.div(fine * fine, rounding_mode="floor")
    origin = [each.flatten()[view] for each in rays[0]]
    direction = [each.flatten()[front] for each in rays[1]]
    light = _light(is_round, numbers, (origin, direction), distance)
    depth.view(-1).index_copy_(0, place, distance)
    shade.view(-1).index_copy_(0, place, light)
    ink.view(-1).index_fill_(0, place, numbers[0].item())


Ray = tuple[list[Tensor], list[Tensor]]
"""Origin and direction in a solid's frame, three components of each that broadcast."""
Numbers = Tensor | Sequence[Tensor]
"""A row of `_pack`."""


def _rays(eye: Tensor, turn: Tensor, x: Tensor, y: Tensor) -> Ray:
    shape = (*eye.shape[:-1], 1, 1)
    origin = [eye[..., axis].view(shape) for axis in range(3)]
    right, down, forward = ([turn[..., row, axis].view(shape) for axis in range(3)] for row in range(3))
    return origin, [x * right[axis] + (y * down[axis] + forward[axis]) for axis in range(3)]


def _nonzero(values: Tensor) -> Tensor:
    return values.masked_fill(values.abs() < _EPS, _EPS)


def _slab(numbers: Numbers, ray: Ray) -> tuple[Tensor, Tensor]:
    """Entry and exit distance of the range of local z."""
    vertical = 1.0 / _nonzero(ray[1][2])
    first, second = (numbers[1] - ray[0][2]) * vertical, (numbers[2] - ray[0][2]) * vertical
    return torch.minimum(first, second), torch.maximum(first, second)


def _hit(is_round: bool, numbers: Numbers, ray: Ray) -> Tensor:
    """Distance to a solid, `_FAR` where missed."""
    return _hit_round(numbers, ray) if is_round else _hit_block(numbers, ray)


def _hit_round(numbers: Numbers, ray: Ray) -> Tensor:
    a, b, c = numbers[3], numbers[4], numbers[5]
    (ox, oy, oz), (dx, dy, dz) = ray
    square = dx * dx + dy * dy - c * (dz * dz)
    half = ox * dx + oy * dy - (c * oz + 0.5 * b) * dz
    constant = ox * ox + oy * oy - (a + b * oz + c * oz * oz)
    root = half * half - square * constant
    crossing = root >= 0.0
    root = root.clamp(min=0.0).sqrt()
    square = _nonzero(square)
    first, second = (-half - root) / square, (root - half) / square
    enter, leave = _slab(numbers, ray)
    # Inside is between the roots where square > 0, and outside them (both nappes of a cone) where it is not.
    between = torch.maximum(first, enter)
    inside = crossing & (square > 0.0) & (between <= torch.minimum(second, leave))
    distance = between.masked_fill(~inside, _FAR)
    steep = square < 0.0
    if square.device.type != "cpu" or steep.any():  # on a CPU it costs little to ask
        early, late = torch.minimum(first, second), torch.maximum(first, second)
        outer = torch.where(enter <= early, enter, torch.maximum(late, enter))
        distance = torch.where(steep & (outer <= leave), outer, distance)
    return distance.masked_fill(distance <= 0.0, _FAR)


def _planes(numbers: Numbers) -> list[tuple[int, float, Tensor, Tensor]]:
    """The four leaning sides of a block: axis, sign, lean towards +z, offset."""
    sides = []
    for axis, top in ((0, numbers[6]), (1, numbers[7])):
        for sign in (1.0, -1.0):
            sides.append((axis, sign, 0.5 * (1.0 - top), 0.5 * (1.0 + top)))
    return sides


def _hit_block(numbers: Numbers, ray: Ray) -> Tensor:
    origin, direction = ray
    enter, leave = _slab(numbers, ray)
    for axis, sign, lean, offset in _planes(numbers):
        speed = _nonzero(sign * direction[axis] + lean * direction[2])
        crossing = (offset - (sign * origin[axis] + lean * origin[2])) / speed
        enter = torch.where(speed < 0.0, torch.maximum(enter, crossing), enter)
        leave = torch.where(speed > 0.0, torch.minimum(leave, crossing), leave)
    return enter.masked_fill((enter > leave) | (enter <= 0.0), _FAR)


def _light(is_round: bool, numbers: Numbers, ray: Ray, distance: Tensor) -> Tensor:
    """Lambert light from above, and walls that face sideways a little darker, so that vertical edges show."""
    point = [ray[0][axis] + distance * ray[1][axis] for axis in range(3)]
    normal = _round_normal(numbers, point) if is_round else _block_normal(numbers, point)
    inverse = numbers[8:17]
    x, y, z = (sum(normal[row] * inverse[3 * row + axis] for row in range(3)) for axis in range(3))
    length = (x * x + y * y + z * z).sqrt() + _EPS
    return 0.80 + 0.20 * (z / length) - 0.10 * (x / length) ** 2


def _ends(numbers: Numbers, z: Tensor) -> tuple[Tensor, Tensor]:
    """How far outside the nearer end a point lies, and whether its normal points to -z or +z."""
    below, above = numbers[1] - z, z - numbers[2]
    return torch.maximum(below, above), torch.where(below >= above, -1.0, 1.0)


def _round_normal(numbers: Numbers, point: list[Tensor]) -> list[Tensor]:
    """The outward normal, in the solid's frame, of the face on which a surface point lies."""
    a, b, c = numbers[3], numbers[4], numbers[5]
    x, y, z = point
    slope = -(c * z + 0.5 * b)
    across = x * x + y * y - (a + b * z + c * z * z)
    # The equation's value over its slope is a distance, comparable with the ends' distances.
    across = 0.5 * across / ((x * x + y * y + slope * slope).sqrt() + _EPS)
    end, sign = _ends(numbers, z)
    flat = end > across
    return [torch.where(flat, 0.0, x), torch.where(flat, 0.0, y), torch.where(flat, sign, slope)]


def _block_normal(numbers: Numbers, point: list[Tensor]) -> list[Tensor]:
    most = None
    normal: list[Tensor] = []
    zero, one = torch.zeros_like(point[0]), torch.ones_like(point[0])
    for axis, sign, lean, offset in _planes(numbers):
        face = sign * point[axis] + lean * point[2] - offset
        mine = [sign * one if axis == 0 else zero, sign * one if axis == 1 else zero, lean * one]
        if most is None:
            most, normal = face, mine
        else:
            further = face > most
            most = torch.where(further, face, most)
            normal = [torch.where(further, new, old) for new, old in zip(mine, normal, strict=True)]
    end, sign = _ends(numbers, point[2])
    flat = end > most
    return [
        torch.where(flat, 0.0, normal[0]),
        torch.where(flat, 0.0, normal[1]),
        torch.where(flat, sign, normal[2]),
    ]
