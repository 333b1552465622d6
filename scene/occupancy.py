"""Where a field's cube is empty, so that rays need not look there (Müller et al. 2022, appendix E.2)."""

import logging

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from scene.radiance_field import RadianceField

log = logging.getLogger(__name__)

DECAY = 0.95
"""What an update leaves of a cell's density (Instant-NGP)."""
ACROSS = 2
"""Points that an update asks for along each side of a cell."""
AT_ONCE = 2**20
"""Points of an update, asked for at a time."""


class Occupancy:
    """Cells of a cube, and which of them hold anything: those that are denser than the threshold, and their neighbours.

    Neighbours count, so that a surface can move outwards. Before the first update every cell is occupied.

    Args:
        resolution: cells a side.
        threshold: density, a world unit.
    """

    def __init__(self, bound: float, resolution: int, threshold: float, device: torch.device) -> None:
        self.bound, self.resolution, self.threshold = bound, resolution, threshold
        self.densities = torch.full((resolution**3,), torch.inf, device=device)
        self._mark()

    @torch.no_grad()
    def update(self, field: RadianceField, rng: torch.Generator) -> None:
        """Ask the field again, at points that `rng` shifts within each cell."""
        fine = ACROSS * self.resolution
        shift = torch.rand(3, 1, generator=rng).to(self.densities.device)
        axis = torch.arange(fine, device=shift.device)
        slab = max(AT_ONCE // fine**2 // ACROSS, 1) * ACROSS
        found = []
        for xs in axis.split(slab):
            points = torch.stack(torch.meshgrid(xs, axis, axis, indexing="ij")).flatten(1) + shift
            density = field.density((2 * points / fine - 1) * self.bound)
            found.append(F.max_pool3d(density.view(1, 1, len(xs), fine, fine), ACROSS).flatten())
        newest = torch.cat(found)
        kept = torch.where(self.densities.isinf(), 0.0, self.densities * DECAY)
        self.densities = torch.maximum(kept, newest)
        self._mark()

    def _mark(self) -> None:
        side = (self.resolution,) * 3
        dense = (self.densities > self.threshold).view(1, 1, *side).float()
        near = F.max_pool3d(dense, 3, stride=1, padding=1).view(side) > 0
        # where nothing is dense, nothing could ever grow: then all is looked at
        self.occupied: Bool[Tensor, "R R R"] = near | ~near.any()
        self.box = self._box()

    def _box(self) -> Float[Tensor, "2 3"]:
        """The smallest box around the occupied cells, world units."""
        others = ((1, 2), (0, 2), (0, 1))
        held = torch.stack([self.occupied.any(dim=axes[1]).any(dim=axes[0]) for axes in others])
        index = torch.arange(self.resolution, device=held.device)
        low = torch.where(held, index, self.resolution).amin(dim=1)
        high = torch.where(held, index, -1).amax(dim=1) + 1
        return torch.stack([low, high]) * (2 * self.bound / self.resolution) - self.bound

    def holds(self, points: Float[Tensor, "3 P"]) -> Bool[Tensor, " P"]:
        """Whether points of the cube lie in occupied cells."""
        scaled = (points + self.bound).mul_(0.5 * self.resolution / self.bound)
        x, y, z = scaled.int().clamp_(0, self.resolution - 1)
        rows = (x * self.resolution + y).mul_(self.resolution).add_(z)
        return self.occupied.view(-1).index_select(0, rows)

    def middles(self, cells: Bool[Tensor, "R R R"] | None = None) -> Float[Tensor, "3 N"]:
        """The middle of each of these cells, world units; of each occupied one if None."""
        found = (self.occupied if cells is None else cells).nonzero().t()
        return ((found + 0.5) * (2 / self.resolution) - 1) * self.bound

    def state_dict(self) -> dict[str, Tensor]:
        return {"densities": self.densities}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["densities"].shape != self.densities.shape:
            raise ValueError(
                f"occupancy: expected {len(self.densities)} cells, got {len(state['densities'])}"
            )
        self.densities = state["densities"].to(self.densities)
        self._mark()
