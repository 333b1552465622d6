"""Spheres of known colours, their exact views, and their mesh: what the tests of meshes are held against."""

import math
from collections.abc import Callable
from functools import cache

import torch

from arguments import GenerateCamParams
from dreammapping.mesh.fusion import fuse
from dreammapping.mesh.surface import Surface, tidy
from dreammapping.mesh.texture import Textured, paint
from dreammapping.mesh.views import Seen, around, unproject
from scene.cameras import Cameras

PARAMS = GenerateCamParams(image_w=48, image_h=48, default_fovy=0.46)
RED, BLUE, GREEN = (torch.tensor(rgb) for rgb in ([0.8, 0.1, 0.1], [0.1, 0.2, 0.9], [0.1, 0.7, 0.2]))


def sides(points: torch.Tensor) -> torch.Tensor:
    """Red in front (+y), blue at the back, green on top of both; (P, 3)."""
    colors = torch.where(points[:, 1:2] > 0, RED, BLUE)
    return torch.where(points[:, 2:] > 0.2, GREEN, colors)


class Balls:
    """Exact views of spheres, each of a centre and a radius."""

    def __init__(
        self,
        *balls: tuple[tuple[float, float, float], float],
        colors: Callable[[torch.Tensor], torch.Tensor] = sides,
    ) -> None:
        self.balls, self.colors = balls, colors
        self.reach = max(math.hypot(*center) + radius for center, radius in balls)

    def look(
        self, cameras: Cameras, progress: Callable[[], None] = lambda: None, *, depths: bool = True
    ) -> Seen:
        found = []
        for index in range(len(cameras)):
            camera = cameras[index : index + 1]
            plane = torch.ones(1, 1, cameras.height, cameras.width)
            rays = unproject(camera, plane) - camera.centers
            nearest = torch.full((len(rays),), torch.inf)
            for center, radius in self.balls:
                to = torch.tensor(center) - camera.centers[0]
                along = (rays @ to) / rays.square().sum(dim=1)
                miss = (to - along[:, None] * rays).square().sum(dim=1)
                back = ((radius**2 - miss).clamp_min(0) / rays.square().sum(dim=1)).sqrt()
                nearest = torch.where(miss < radius**2, torch.minimum(nearest, along - back), nearest)
            hit = nearest.isfinite()
            points = camera.centers + nearest.nan_to_num(posinf=0)[:, None] * rays
            image = torch.where(hit[:, None], self.colors(points), 0.0)
            shape = (1, cameras.height, cameras.width)
            found.append((image.T.reshape(3, *shape[1:]), hit.float().reshape(shape), nearest.reshape(shape)))
            progress()
        images, alphas, distances = (torch.stack(each) for each in zip(*found, strict=True))
        return Seen(cameras, images, alphas, distances if depths else torch.full_like(distances, torch.inf))


def views(source, count: int = 24, size: int = 64, start: float = 0.0) -> Seen:
    return source.look(around(count, PARAMS, size, source.reach, start=start))


@cache
def painted() -> Textured:
    """A painted ball of radius 0.4."""
    seen = views(Balls(((0.0, 0.0, 0.0), 0.4)))
    return paint(seen, tidy(Surface(*fuse(seen, 32)), 1500), 256)
