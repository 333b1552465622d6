"""A radiance field as what a mesh is made from."""

from collections.abc import Callable

import torch

from arguments import Config
from dreammapping.field import look, occupancy_of
from dreammapping.field_memory import ray_bytes, rays_at_once
from dreammapping.mesh.views import FAINT, SURFACE, Seen, reach
from field_renderer.surface_depth import depths_at
from scene.cameras import Cameras
from scene.radiance_field import RadianceField

PLAN = "8gb"
"""The memory plan whose room for rays is taken."""


class RadianceViews:
    """Looks at a radiance field.

    Args:
        config: the settings that it was made with, which say how finely it is looked at.
    """

    def __init__(self, field: RadianceField, config: Config) -> None:
        self.field, self.params, self._chunk = field, config.FieldParams, rays_of(config)
        self._device = next(field.parameters()).device
        self._occupancy = occupancy_of(field, self.params)

    @property
    def reach(self) -> float:
        side = 2 * self.field.bound / self._occupancy.resolution
        seen = 1 - (-self._occupancy.densities * side).exp() > FAINT
        cells = self._occupancy.occupied & seen.view_as(self._occupancy.occupied)
        middles = self._occupancy.middles(cells if bool(cells.any()) else None)
        return reach(middles.norm(dim=0) + side)

    @torch.no_grad()
    def look(
        self, cameras: Cameras, progress: Callable[[], None] = lambda: None, *, depths: bool = True
    ) -> Seen:
        cameras = cameras.to(self._device)
        seen = look(self.field, cameras, torch.zeros(3), self.params, self._chunk, self._occupancy)
        parts = []
        for index, views in enumerate(seen):
            surface = (
                depths_at(
                    self.field,
                    cameras[index : index + 1],
                    SURFACE,
                    samples=self.params.samples + self.params.importance_samples,
                    occupancy=self._occupancy,
                    chunk=self._chunk,
                )
                if depths
                else torch.full_like(views.alphas, torch.inf)
            )
            parts.append((views.images.clamp(0, 1), views.alphas, surface))
            progress()
        images, alphas, found = (torch.cat(each) for each in zip(*parts, strict=True))
        return Seen(cameras, images, alphas, found)


def rays_of(config: Config) -> int:
    """Rays that are looked along at a time."""
    return config.FieldParams.ray_chunk or rays_at_once(config, PLAN)


def memory(config: Config) -> int:
    """Bytes that looking takes, beside the field and the views."""
    return rays_of(config) * ray_bytes(config)
