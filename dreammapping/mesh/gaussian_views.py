"""Gaussians as what a mesh is made from."""

from collections.abc import Callable

import torch

from dreammapping.mesh.views import FAINT, SURFACE, Seen, reach
from gaussian_renderer import render
from gaussian_renderer.surface_depth import depths_at
from scene.cameras import Cameras
from scene.gaussian_model import GaussianModel

CHUNK = 4
"""Views rendered in one call, at most."""
PER_GAUSSIAN = 600
"""Bytes that a Gaussian takes while the depths of a view are found."""
MEMORY = 2e9
"""Bytes that may go into that: of more Gaussians, fewer views are rendered in one call."""


class GaussianViews:
    """Looks at Gaussians.

    Args:
        backend: of the rasterizer.
        direct_rgb: their colours are sigmoid(`sh_dc`).
    """

    def __init__(self, gaussians: GaussianModel, *, backend: str = "auto", direct_rgb: bool = False) -> None:
        self.gaussians, self.backend, self.direct_rgb = gaussians, backend, direct_rgb

    @property
    def reach(self) -> float:
        gaussians = self.gaussians
        seen = gaussians.opacities[:, 0] > FAINT
        seen = seen if bool(seen.any()) else torch.ones_like(seen)
        distances = gaussians.means.norm(dim=1) + 2 * gaussians.scales.amax(dim=1)
        return reach(distances[seen].detach())

    @torch.no_grad()
    def look(
        self, cameras: Cameras, progress: Callable[[], None] = lambda: None, *, depths: bool = True
    ) -> Seen:
        gaussians = self.gaussians
        cameras = cameras.to(gaussians.means.device)
        parts, at_once = [], views_at_once(len(gaussians))
        for first in range(0, len(cameras), at_once):
            chunk = cameras[first : first + at_once]
            views = render(
                gaussians,
                chunk,
                torch.zeros(3),
                backend=self.backend,
                direct_rgb=self.direct_rgb,
            )
            surface = (
                depths_at(gaussians, chunk, SURFACE, backend=self.backend)
                if depths
                else torch.full_like(views.alphas, torch.inf)
            )
            parts.append((views.images.clamp(0, 1), views.alphas, surface))
            for _ in range(len(chunk)):
                progress()
        images, alphas, found = (torch.cat(each) for each in zip(*parts, strict=True))
        return Seen(cameras, images, alphas, found)


def views_at_once(count: int) -> int:
    """Views of so many Gaussians that are rendered in one call."""
    return min(max(int(MEMORY / (PER_GAUSSIAN * max(count, 1))), 1), CHUNK)


def memory(count: int) -> int:
    """Bytes that looking at so many Gaussians takes, beside them and the views."""
    return views_at_once(count) * PER_GAUSSIAN * count
