"""What a radiance field starts from: a density before the softplus, of a blob, a box, or the solid within a shape."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments import FieldParams, GenerateCamParams
from scene.initialization import TextToMesh, initial_points
from scene.interpolation import interpolate
from utils.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOLID_CELLS = 64
"""Cells a side of the grid in which a shape is made solid."""
STEEPNESS = 4.0
"""A shape's start density is full from a quarter of its depth on."""
CUBOIDS = {"box": (0.5, 0.5, 0.5), "rectangle_x": (0.3, 0.6, 0.25), "rectangle_z": (0.4, 0.3, 0.6)}
"""Half the sides of the boxes that `init_shape` names, world units."""


class Blob(nn.Module):
    """Magic3D's: `scale (1 - |x| / std)`, a ball of radius `std` world units."""

    def __init__(self, scale: float, std: float) -> None:
        super().__init__()
        self.scale, self.std = scale, std

    def forward(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, " P"]:
        return self.scale * (1 - points.norm(dim=0) / self.std)

    @property
    def reach(self) -> float:
        """Distance from the origin within which it is dense."""
        return self.std


class Cuboid(nn.Module):
    """The blob's form on a box: `scale (1 - max |x_i| / half_i)`."""

    def __init__(self, scale: float, half: tuple[float, float, float]) -> None:
        super().__init__()
        self.scale, self.half = scale, half

    def forward(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, " P"]:
        half = torch.tensor(self.half, device=points.device, dtype=points.dtype)
        return self.scale * (1 - (points.abs() / half[:, None]).amax(dim=0))

    @property
    def reach(self) -> float:
        return float(np.linalg.norm(self.half))


class Solid(nn.Module):
    """The inside of a shape: `scale` deep within, 0 on its surface, `-scale` away from it; and its colours.

    Args:
        table: density before the softplus and colours in [0, 1], a row for each vertex of a grid over the cube.
    """

    table: Tensor

    def __init__(self, table: Float[Tensor, "V 4"], bound: float, reach: float) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.bound, self.reach = bound, reach

    def _at(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 4"]:
        return interpolate(self.table, (points + self.bound) / (2 * self.bound))

    def forward(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, " P"]:
        return self._at(points)[:, 0]

    def colors(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 3"]:
        return self._at(points)[:, 1:]


Start = Blob | Cuboid | Solid


def field_start(
    params: FieldParams,
    cameras: GenerateCamParams,
    rng: torch.Generator,
    text_to_mesh: TextToMesh | None = None,
) -> Start:
    """What `init_shape` names: sphere is Magic3D's blob, boxes are boxes, and shapes are made solid.

    Raises:
        UserError: the shape is missing or broken, lies outside of the cube, has no inside, or is a scene's.
    """
    scale = params.blob_scale
    kind = cameras.init_shape
    if kind == "sphere":
        return Blob(scale, params.blob_std * cameras.init_scale)
    if kind in CUBOIDS:
        return Cuboid(scale, tuple(cameras.init_scale * side for side in CUBOIDS[kind]))
    if kind == "scene":
        raise UserError(
            "GenerateCamParams.init_shape: expected an object for a field, which cameras look at from outside, got "
            "scene; set init_shape=sphere or representation=gaussians"
        )
    points, colors = initial_points(cameras, rng, text_to_mesh)
    return solid(points, colors, scale, params.bound, cameras.init_path or kind)


def solid(
    points: Float[Tensor, "N 3"],
    colors: Float[Tensor, "N 3"],
    scale: float,
    bound: float,
    name: str,
) -> Solid:
    """The solid within points of a surface: what cannot be reached from outside through the cells between them.

    Raises:
        UserError: they leave the cube, or enclose nothing.
    """
    from scipy import ndimage

    outside = float(points.abs().amax())
    if outside >= bound:
        raise UserError(
            f"{name}: expected a shape within FieldParams.bound={bound:g}, got one that reaches {outside:g}; raise "
            "bound or lower init_scale"
        )
    side = SOLID_CELLS + 1
    spacing = 2 * bound / SOLID_CELLS
    nearest = ((points + bound) / spacing).round().long()
    flat = (nearest[:, 0] * side + nearest[:, 1]) * side + nearest[:, 2]
    shell = torch.zeros(side**3, dtype=torch.bool)
    shell[flat] = True
    painted = torch.zeros(side**3, 3).index_add_(0, flat, colors)
    painted = painted / torch.bincount(flat, minlength=side**3).clamp_min(1)[:, None]

    surface = shell.view(side, side, side).numpy()
    closed = ndimage.binary_closing(np.pad(surface, 2))[2:-2, 2:-2, 2:-2] | surface
    filled = ndimage.binary_fill_holes(closed)
    inside = filled & ~closed
    if not inside.any():
        raise UserError(
            f"{name}: expected a shape that encloses an inside of {spacing:.2g} world units or more, got a surface "
            "with holes or none; close it, raise init_scale or init_num_pts, or set init_shape=sphere"
        )
    depth = _signed_distance(filled) * spacing
    density = scale * np.clip(STEEPNESS * depth / depth.max(), -1.0, 1.0)
    places = ndimage.distance_transform_edt(~surface, return_distances=False, return_indices=True)
    paint = painted.view(side, side, side, 3).numpy()[tuple(np.asarray(places))]
    table = np.concatenate([density[..., None], paint], axis=-1).reshape(-1, 4).astype(np.float32)
    return Solid(torch.from_numpy(table), bound, float(points.norm(dim=1).max()))


def _signed_distance(filled: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """Distance to the border between cells in and out, in cells; positive inside."""
    from scipy import ndimage

    within, without = (np.asarray(ndimage.distance_transform_edt(each)) for each in (filled, ~filled))
    return np.where(filled, within - 0.5, 0.5 - without)
