"""Radiance fields: the density and the colour of every point of a cube, learnt in a dense grid or in hash tables.

Density is softplus(raw + start) times a factor, a world unit; colours are sigmoids and do not depend on the view.
Points are in the world's frame, components first, `(3, P)`; outside of the cube its nearest point answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from scene.interpolation import cell_of, corner_weights, dense_corners, gather, interpolate

CHANNELS = 4
"""Of what a field knows of a point before the activations: density, and three colours."""
COLOR_LIMIT = 0.02
"""Start colours keep this distance from 0 and 1, where a sigmoid's logit is infinite."""
HASH_PRIMES = (1, 2654435761, 805459861)
"""Instant-NGP's."""
HASH_SPREAD = 1e-4
"""Hash tables start uniform in plus and minus this (Instant-NGP)."""


Colors = Callable[[Tensor], Tensor]
"""Colours in [0, 1], (P, 3), of points (3, P)."""


class RadianceField(nn.Module, ABC):
    """Density and colour of points.

    Attributes:
        bound: half the side of the cube, world units; its middle is the origin.
        density_scale: factor on the softplus.
    """

    kind: str

    def __init__(self, bound: float, density_scale: float) -> None:
        super().__init__()
        self.bound, self.density_scale = bound, density_scale

    @abstractmethod
    def raw(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 4"]:
        """Density and colours before their activations."""

    def forward(self, points: Float[Tensor, "3 P"]) -> tuple[Float[Tensor, " P"], Float[Tensor, "P 3"]]:
        """Density a world unit, at least 0, and colours in (0, 1)."""
        raw = self.raw(points)
        return self.density_scale * F.softplus(raw[:, 0]), raw[:, 1:].sigmoid()

    def density(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, " P"]:
        """Density a world unit."""
        return self.density_scale * F.softplus(self.raw(points)[:, 0])

    @abstractmethod
    def roughness(self) -> Float[Tensor, ""]:
        """Total variation: mean squared difference of neighbours in the table, summed over the axes."""

    def inside(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "3 P"]:
        """Points of the cube as points of [0, 1]³."""
        return (points + self.bound) / (2 * self.bound)


class VoxelGrid(RadianceField):
    """A dense grid of vertices, interpolated before the activations (post-activation, as in DVGO).

    Args:
        table: a row of density and colours, before activation, for each vertex; x slowest, z fastest.
    """

    kind = "grid"

    def __init__(self, table: Float[Tensor, "V 4"], bound: float, density_scale: float = 1.0) -> None:
        super().__init__(bound, density_scale)
        self.table = nn.Parameter(table)

    @property
    def resolution(self) -> int:
        """Vertices a side."""
        return round(len(self.table) ** (1 / 3))

    def raw(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 4"]:
        return interpolate(self.table, self.inside(points))

    def roughness(self) -> Float[Tensor, ""]:
        return _total_variation(self.table, self.resolution)


class HashGrid(RadianceField):
    """Instant-NGP's hash grid (Müller et al. 2022) and a small network, in plain PyTorch.

    Args:
        tables: a row of features for each vertex or slot of a level, coarse to fine.
        cells: cells a side of each level.
        network: features of all levels to density and colours.
        start: what is added to the density before the softplus.
        smoothstep: weights 3u² - 2u³ in the place of u.

    Attributes:
        active: levels in use; the features of finer ones count as 0.
    """

    kind = "hash"

    def __init__(
        self,
        tables: list[Tensor],
        cells: list[int],
        network: nn.Sequential,
        start: nn.Module,
        bound: float,
        density_scale: float = 1.0,
        *,
        smoothstep: bool = True,
    ) -> None:
        super().__init__(bound, density_scale)
        self.tables = nn.ParameterList(tables)
        self.cells, self.smoothstep, self.active = cells, smoothstep, len(cells)
        self.network, self.start = network, start

    def raw(self, points: Float[Tensor, "3 P"]) -> Float[Tensor, "P 4"]:
        inside = self.inside(points)
        features = [
            self._features(table, inside, cells)
            for table, cells in zip(self.tables[: self.active], self.cells, strict=False)
        ]
        missing = sum(table.shape[1] for table in self.tables[self.active :])
        raw = self.network(F.pad(torch.cat(features, dim=1), (0, missing)))
        return torch.cat([raw[:, :1] + self.start(points)[:, None], raw[:, 1:]], dim=1)

    def _features(
        self, table: Float[Tensor, "V F"], inside: Float[Tensor, "3 P"], cells: int
    ) -> Float[Tensor, "P F"]:
        low, where = cell_of(inside, cells + 1)
        if self.smoothstep:
            where = where.square() * (3 - 2 * where)
        dense = len(table) == (cells + 1) ** 3
        rows = dense_corners(low, cells + 1) if dense else hashed_corners(low, len(table))
        return gather(table, rows, corner_weights(where))

    def roughness(self) -> Float[Tensor, ""]:
        """Of the levels that are dense: in the others, neighbours in the table are none in space."""
        dense = [
            _total_variation(table, cells + 1)
            for table, cells in zip(self.tables, self.cells, strict=True)
            if len(table) == (cells + 1) ** 3
        ]
        return torch.stack(dense).mean() if dense else self.tables[0].new_zeros(())


def hashed_corners(low: Int[Tensor, "3 P"], rows: int) -> Int[Tensor, "8 P"]:
    """Slots of a cell's corners in a table of `rows`, a power of 2: the products with the primes, xor-ed."""
    low = low.long()
    x, y, z = ((torch.stack([axis, axis + 1]) * prime) for axis, prime in zip(low, HASH_PRIMES, strict=True))
    mixed = x[:, None, None] ^ y[None, :, None] ^ z[None, None, :]
    return (mixed & (rows - 1)).int().flatten(0, 2)


def hash_cells(levels: int, base: int, finest: int) -> list[int]:
    """Cells a side of each level, growing by one factor from `base` to `finest`."""
    factor = (finest / base) ** (1 / max(levels - 1, 1))
    return [int(base * factor**level + 1e-6) for level in range(levels)]


def hash_rows(cells: int, power: int) -> int:
    """Rows of a level's table: one for each vertex where they are at most 2^power, else that."""
    return min((cells + 1) ** 3, 2**power)


def new_hash_grid(
    start: nn.Module,
    bound: float,
    density_scale: float,
    *,
    cells: list[int],
    power: int,
    features: int,
    width: int,
    layers: int,
    smoothstep: bool,
    rng: torch.Generator,
) -> HashGrid:
    """A hash grid with random tables and weights: at the start its density is that of `start`, all but exactly."""
    tables = [
        (2 * torch.rand(hash_rows(each, power), features, generator=rng) - 1) * HASH_SPREAD for each in cells
    ]
    network = hash_network(features * len(cells), width, layers)
    for module in network:
        if isinstance(module, nn.Linear):  # torch's own start, from our generator
            limit = module.in_features**-0.5
            for parameter in module.parameters():
                parameter.data = (2 * torch.rand(parameter.shape, generator=rng) - 1) * limit
    nn.init.zeros_(network[-1].bias)
    return HashGrid(tables, cells, network, start, bound, density_scale, smoothstep=smoothstep)


def hash_network(inputs: int, width: int, layers: int) -> nn.Sequential:
    """Hidden layers with ReLU, and one linear map to density and colours."""
    hidden: list[nn.Module] = []
    for _ in range(layers):
        hidden += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*hidden, nn.Linear(inputs, CHANNELS))


def new_voxel_grid(
    start: nn.Module,
    bound: float,
    density_scale: float,
    resolution: int,
    colors: Colors | None = None,
) -> VoxelGrid:
    """A grid with the density of `start` at its vertices; colours mid-grey, or those of `colors`."""
    points = vertices(resolution, bound)
    table = torch.zeros(resolution**3, CHANNELS)
    table[:, 0] = start(points)
    if colors is not None:
        table[:, 1:] = colors(points).clamp(COLOR_LIMIT, 1 - COLOR_LIMIT).logit()
    return VoxelGrid(table, bound, density_scale)


def vertices(resolution: int, bound: float) -> Float[Tensor, "3 V"]:
    """The world positions of a grid's vertices, in the order of its table."""
    axis = torch.linspace(-bound, bound, resolution)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).flatten(1)


def resized(table: Float[Tensor, "V C"], resolution: int) -> Float[Tensor, "W C"]:
    """The same function on a grid of `resolution` vertices a side, by trilinear interpolation."""
    side = round(len(table) ** (1 / 3))
    volume = table.t().reshape(1, -1, side, side, side)
    larger = F.interpolate(volume, (resolution,) * 3, mode="trilinear", align_corners=True)
    return larger.flatten(2)[0].t().contiguous()


def _total_variation(table: Float[Tensor, "V C"], resolution: int) -> Float[Tensor, ""]:
    volume = table.view(resolution, resolution, resolution, -1)
    return torch.stack([volume.diff(dim=axis).square().mean() for axis in range(3)]).sum()
