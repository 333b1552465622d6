"""What a mesh is made from: views of an object from all around, whatever draws them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams
from scene.cameras import Cameras, build_cameras

SURFACE = 0.25
"""Share of the light that is stopped where the surface is taken to be: of clouds that are translucent, as distillation
makes them, the half lies inside, and at another place for each view."""
FAINT = 0.05
"""What is less opaque than this says nothing of where the object ends."""
STRAY = 0.002
"""Share of its parts, at most, that may lie farther away than the object reaches."""


@dataclass(frozen=True, eq=False)
class Seen:
    """B views of an object: `images` are its colours in [0, 1] times `alphas`, as before black; `depths` are distances
    of its surface along the view axis, inf where there is none."""

    cameras: Cameras
    images: Float[Tensor, "B 3 H W"]
    alphas: Float[Tensor, "B 1 H W"]
    depths: Float[Tensor, "B 1 H W"]

    def __len__(self) -> int:
        return len(self.images)

    def each(self) -> Iterator["Seen"]:
        """Views, one by one."""
        for index in range(len(self)):
            one = slice(index, index + 1)
            yield Seen(self.cameras[one], self.images[one], self.alphas[one], self.depths[one])


class Source(Protocol):
    """What can be looked at: Gaussians, a radiance field."""

    @property
    def reach(self) -> float:
        """Distance from the origin, in world units, within which it lies."""
        ...

    def look(self, cameras: Cameras, progress: Callable[[], None] = ..., *, depths: bool = True) -> Seen:
        """Its views; depths are all inf where they are not asked for. `progress` is called once a view."""
        ...


def reach(distances: Float[Tensor, " P"]) -> float:
    """The distance from the origin within which all but strays of an object's parts lie."""
    return float(distances.sort().values[-1 - int(STRAY * len(distances))])


def around(
    count: int,
    params: GenerateCamParams,
    size: int,
    reach: float,
    *,
    start: float = 0.0,
    below_deg: float = 30.0,
) -> Cameras:
    """`count` cameras, spread evenly over the sphere but for its lowest cap, that have the whole object in sight.

    Args:
        size: pixels of a side of their images.
        reach: the object lies within this distance of the origin.
        start: azimuth of the first camera in degrees, by which two such sets differ.
        below_deg: they stand no lower than this under the horizon.
    """
    index = torch.arange(count, dtype=torch.float64)
    lowest = -math.sin(math.radians(below_deg))
    height = 1 - (1 - lowest) * (index + 0.5) / count
    azimuth = start + index * math.degrees(math.pi * (3 - math.sqrt(5)))
    polar = height.acos().rad2deg()
    square = dataclasses.replace(params, image_w=size, image_h=size)
    radius = max(params.default_radius, 1.05 * reach / math.sin(params.default_fovy / 2))
    return build_cameras(square, params.default_fovy, polar, azimuth, torch.full_like(polar, radius))


def project(
    cameras: Cameras, points: Float[Tensor, "P 3"]
) -> tuple[Float[Tensor, "P 2"], Float[Tensor, "P"]]:
    """Where one camera sees points: x and y from -1 to 1 over its picture, and distances along its axis."""
    matrix = cameras.world_to_camera[0]
    there = torch.addmm(matrix[:3, 3:], matrix[:3, :3], points.T)  # in rows: four times as fast
    tangents = torch.stack([(cameras.fov_x[0] / 2).tan(), (cameras.fov_y[0] / 2).tan()])
    return (there[:2] / (there[2].clamp_min(1e-6) * tangents[:, None])).T, there[2]


def unproject(cameras: Cameras, depths: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "P 3"]:
    """The points of the world that one camera sees at finite depths, in the order of its pixels."""
    height, width = depths.shape[2:]
    y, x = (
        (2 * torch.arange(side, device=depths.device) + 1) / side - 1 for side in (height, width)
    )  # centres of pixels
    rays = torch.stack(
        [
            x.expand(height, width) * (cameras.fov_x[0] / 2).tan(),
            y[:, None].expand(height, width) * (cameras.fov_y[0] / 2).tan(),
            torch.ones(height, width, device=depths.device),
        ],
        dim=-1,
    )
    here = depths[0, 0].isfinite()
    there = rays[here] * depths[0, 0][here][:, None]
    rotation, translation = cameras.world_to_camera[0, :3, :3], cameras.world_to_camera[0, :3, 3]
    return (there - translation) @ rotation


def sample(maps: Float[Tensor, "1 C H W"], at: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
    """Values at places of `project`, between pixels by their distance; 0 outside the picture."""
    found = torch.nn.functional.grid_sample(maps, at[None, None], padding_mode="zeros", align_corners=False)
    return found[0, :, 0].T
