"""Cameras: where they stand, and how they look at the origin.

A camera at radius r, polar angle theta (from +z) and azimuth phi stands at
r (sin theta sin phi, sin theta cos phi, cos theta): azimuth 0 is in front (+y), 90 on +x, 180 at the back.
Camera axes are OpenCV's: x right, y down, z forward.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams
from scene.frame import FRAME, to_file


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of B pinhole cameras that share one image size.

    `world_to_camera` multiplies column vectors; fields of view are radians; `azimuth_deg` lies in
    (-180, 180]. Angles and `radius` are those asked for, before any jitter (prompts go by them).
    """

    world_to_camera: Float[Tensor, "B 4 4"]
    fov_x: Float[Tensor, "B"]
    fov_y: Float[Tensor, "B"]
    azimuth_deg: Float[Tensor, "B"]
    polar_deg: Float[Tensor, "B"]
    radius: Float[Tensor, "B"]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.world_to_camera)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Cameras":
        return dataclasses.replace(self, **{name: value[index] for name, value in self.tensors().items()})

    @property
    def centers(self) -> Float[Tensor, "B 3"]:
        """Positions in the world."""
        rotation, translation = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -torch.einsum("bij,bi->bj", rotation, translation)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold one row for each camera."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str) -> "Cameras":
        """The same on another device; on the way to a card the host does not wait."""
        there = torch.device(device)
        moved = {
            name: value.to(there, non_blocking=there.type != "cpu") for name, value in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)

    @classmethod
    def concatenate(cls, parts: Sequence["Cameras"]) -> "Cameras":
        """All cameras of `parts`, which share one image size, in order."""
        return dataclasses.replace(
            parts[0],
            **{name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()},
        )


def spherical_to_cartesian(
    polar_deg: Float[Tensor, "B"], azimuth_deg: Float[Tensor, "B"], radius: Float[Tensor, "B"]
) -> Float[Tensor, "B 3"]:
    """World positions of polar angle (from +z), azimuth (from +y towards +x) and distance."""
    polar, azimuth = polar_deg.deg2rad(), azimuth_deg.deg2rad()
    unit = torch.stack([polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos(), polar.cos()], dim=-1)
    return radius[:, None] * unit


def look_at(
    centers: Float[Tensor, "B 3"], targets: Float[Tensor, "B 3"], ups: Float[Tensor, "B 3"]
) -> Float[Tensor, "B 4 4"]:
    """World-to-camera matrices of cameras at `centers` that see `targets` in the middle and `ups` upwards."""
    forward = F.normalize(targets - centers, dim=-1)
    right = F.normalize(torch.linalg.cross(forward, ups), dim=-1)
    down = torch.linalg.cross(forward, right)
    matrices = torch.eye(4).to(centers).repeat(len(centers), 1, 1)
    matrices[:, :3, :3] = torch.stack([right, down, forward], dim=1)
    matrices[:, :3, 3] = -torch.einsum("bij,bj->bi", matrices[:, :3, :3], centers)
    return matrices


def wrap_degrees(angles: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The same directions in (-180, 180]."""
    return 180.0 - (180.0 - angles) % 360.0


def orbit(
    count: int, params: GenerateCamParams, *, polar_deg: float | None = None, elevated_ring: bool = False
) -> Cameras:
    """A ring of `count` cameras for tests and videos, starting in front and turning towards +x.

    Args:
        polar_deg: Angle from +z; `default_polar` if not given.
        elevated_ring: Append a second ring at two thirds of that angle, in whole degrees.
    """
    polar_deg = params.default_polar if polar_deg is None else polar_deg
    rings = [polar_deg, math.floor(2 / 3 * polar_deg)] if elevated_ring else [polar_deg]
    polar = torch.tensor(rings, dtype=torch.float64).repeat_interleave(count)
    azimuth = (360.0 / count * torch.arange(count, dtype=torch.float64)).repeat(len(rings))
    radius = torch.full_like(polar, params.default_radius)
    return build_cameras(params, params.default_fovy, polar, azimuth, radius)


def build_cameras(
    params: GenerateCamParams,
    fov: float,
    polar_deg: Float[Tensor, "B"],
    azimuth_deg: Float[Tensor, "B"],
    radius: Float[Tensor, "B"],
    *,
    jitter: Float[Tensor, "3 B 3"] | None = None,
    supersampling: int = 1,
) -> Cameras:
    """Cameras that look at the origin; `jitter` offsets centres, targets and up vectors.

    `fov` (radians) spans the width, as upstream, in spite of its setting's name; square images do not care.
    """
    centers = spherical_to_cartesian(polar_deg, azimuth_deg, radius)
    ups = torch.tensor([0.0, 0.0, 1.0]).to(centers).repeat(len(centers), 1)
    # Straight above or below, +z says nothing about up; the direction in which the polar angle shrinks does.
    at_pole = (polar_deg.deg2rad().sin().abs() < 1e-4)[:, None]
    ups = torch.where(
        at_pole, spherical_to_cartesian(polar_deg - 90.0, azimuth_deg, torch.ones_like(radius)), ups
    )
    targets = torch.zeros_like(centers)
    if jitter is not None:
        centers, targets, ups = centers + jitter[0], targets + jitter[1], ups + jitter[2]
    fov_y = 2 * math.atan(math.tan(fov / 2) * params.image_h / params.image_w)
    return Cameras(
        world_to_camera=look_at(centers, targets, ups).float(),
        fov_x=torch.full((len(centers),), fov),
        fov_y=torch.full((len(centers),), fov_y),
        azimuth_deg=wrap_degrees(azimuth_deg - params.default_azimuth).float(),
        polar_deg=polar_deg.float(),
        radius=radius.float(),
        width=params.image_w * supersampling,
        height=params.image_h * supersampling,
    )


def cameras_json(cameras: Cameras) -> list[dict[str, Any]]:
    """What SIBR viewers and SuperSplat read from `cameras.json`: poses in the frame of the .ply beside it.

    `rotation` leads from the camera's axes (x right, y down, z forward) to the file's, `position` is the camera's place
    there, focal lengths are pixels, and `frame` says which frame that is.
    """
    rotations = to_file(cameras.world_to_camera[:, :3, :3]).transpose(1, 2).tolist()
    positions = to_file(cameras.centers).tolist()
    return [
        {
            "id": index,
            "img_name": str(index),
            "width": cameras.width,
            "height": cameras.height,
            "position": positions[index],
            "rotation": rotations[index],
            "fy": cameras.height / (2 * math.tan(float(cameras.fov_y[index]) / 2)),
            "fx": cameras.width / (2 * math.tan(float(cameras.fov_x[index]) / 2)),
            "frame": FRAME,
        }
        for index in range(len(cameras))
    ]
