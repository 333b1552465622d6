"""Depths at which a field has stopped a share of the light, as `gaussian_renderer.surface_depth` finds of Gaussians."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from field_renderer.rays import Rays, stratified
from scene.cameras import Cameras
from scene.occupancy import Occupancy
from scene.radiance_field import RadianceField


@torch.no_grad()
def depths_at(
    field: RadianceField,
    cameras: Cameras,
    share: float = 0.5,
    *,
    samples: int,
    occupancy: Occupancy,
    chunk: int,
) -> Float[Tensor, "B 1 H W"]:
    """Distances along the view axis, in world units, at which a field has stopped `share` of the light; inf where it
    does not.

    Args:
        share: between 0 and 1, both excluded; 0.5 gives the median depth.
        samples: equal parts of a ray, in each of which the density is taken to be that of its middle.
        occupancy: where to look.
        chunk: rays at a time.
    """
    rays = Rays.of(cameras)
    near, far = rays.within(occupancy.box.to(rays.origins))
    found = torch.full_like(near, torch.inf)
    for index in (far > near).nonzero().squeeze(1).split(chunk):
        part, start, end = rays[index], near[index], far[index]
        distances = stratified(start, end, samples, torch.full_like(start, 0.5))
        points = (part.origins[:, :, None] + part.directions[:, :, None] * distances).flatten(1)
        held = occupancy.holds(points).nonzero().squeeze(1)
        density = points.new_zeros(points.shape[1]).index_copy_(0, held, field.density(points[:, held]))
        step = (end - start) / samples
        thickness = density.view(-1, samples).double() * step[:, None]
        reached = start + step * _parts_until(thickness, -math.log1p(-share))
        found[index] = (reached * part.forward).to(found)
    return found.view(len(cameras), 1, cameras.height, cameras.width)


def _parts_until(thickness: Float[Tensor, "R S"], goal: float) -> Float[Tensor, " R"]:
    """How many parts of a ray, the last one in part, add up to an optical depth of `goal`; inf where they never do."""
    up_to = thickness.cumsum(dim=1)
    whole = (up_to < goal).sum(dim=1)
    last = whole.clamp(max=thickness.shape[1] - 1)[:, None]
    beyond = (up_to.gather(1, last) - goal) / thickness.gather(1, last)
    return torch.where(whole == thickness.shape[1], torch.inf, whole + 1 - beyond[:, 0])
