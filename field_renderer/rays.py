"""Rays of cameras, and where along them a field is looked at."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scene.cameras import Cameras

NEAR = 0.05
"""No sample is closer to a camera, world units: what stands against the lens would fill the picture."""


@dataclass(frozen=True, eq=False)
class Rays:
    """R rays, components first; directions have length 1.

    Attributes:
        forward: cosine of the angle to the camera's axis: what turns a distance into a depth.
    """

    origins: Float[Tensor, "3 R"]
    directions: Float[Tensor, "3 R"]
    forward: Float[Tensor, " R"]

    def __len__(self) -> int:
        return len(self.forward)

    def __getitem__(self, index: slice | Int[Tensor, " S"]) -> "Rays":
        return Rays(self.origins[:, index], self.directions[:, index], self.forward[index])

    @classmethod
    def of(cls, cameras: Cameras) -> "Rays":
        """One through the middle of each pixel: views, rows, columns."""
        device = cameras.fov_x.device
        columns = (torch.arange(cameras.width, device=device) + 0.5) * (2 / cameras.width) - 1
        rows = (torch.arange(cameras.height, device=device) + 0.5) * (2 / cameras.height) - 1
        right = columns[None, None, :] * (cameras.fov_x / 2).tan()[:, None, None]
        down = rows[None, :, None] * (cameras.fov_y / 2).tan()[:, None, None]
        right, down = torch.broadcast_tensors(right, down)
        forward = (1 + right.square() + down.square()).rsqrt()
        local = torch.stack([right * forward, down * forward, forward])
        # the columns of a camera's matrix are its axes as the world sees them
        directions = torch.einsum("bci,cbhw->ibhw", cameras.world_to_camera[:, :3, :3], local).flatten(1)
        pixels = cameras.height * cameras.width
        return cls(cameras.centers.t().repeat_interleave(pixels, dim=1), directions, forward.flatten())

    def within(self, box: Float[Tensor, "2 3"]) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Distances at which rays enter and leave a box; a ray that misses it leaves no later than it enters."""
        ends = (box[:, :, None] - self.origins) / self.directions
        ends = torch.where(ends.isnan(), torch.inf, ends)  # a ray within one of the box's planes
        near = ends.amin(dim=0).amax(dim=0).clamp_min(NEAR)
        return near, ends.amax(dim=0).amin(dim=0)


def stratified(
    near: Float[Tensor, " R"], far: Float[Tensor, " R"], count: int, shift: Float[Tensor, " R"]
) -> Float[Tensor, "R S"]:
    """Distances, one in each of `count` equal parts of a ray; `shift` in [0, 1) says where in all of its parts."""
    parts = torch.arange(count, device=near.device) + shift[:, None]
    return near[:, None] + parts * ((far - near) / count)[:, None]


def by_weight(
    distances: Float[Tensor, "R S"],
    near: Float[Tensor, " R"],
    far: Float[Tensor, " R"],
    weights: Float[Tensor, "R S"],
    count: int,
    shift: Float[Tensor, " R"],
) -> Float[Tensor, "R T"]:
    """Further distances, drawn by the weights of the parts that `stratified` made, merged with those there are.

    The inverse of the weights' sum is taken at `count` even places, all moved by `shift` in [0, 1) (NeRF, section 5.2).
    """
    parts = weights.shape[1]
    share = weights + 1e-5  # a ray that met nothing is looked at evenly
    upper = share.cumsum(dim=1)
    places = (torch.arange(count, device=near.device) + shift[:, None]) / count * upper[:, -1:]
    index = torch.searchsorted(upper, places, right=True).clamp_(max=parts - 1)
    inside = (places - (upper - share).gather(1, index)) / share.gather(1, index)
    drawn = near[:, None] + (index + inside.clamp(0, 1)) * ((far - near) / parts)[:, None]
    return torch.cat([distances, drawn], dim=1).sort(dim=1).values
