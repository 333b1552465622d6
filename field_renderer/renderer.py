"""`render`: rays through a field, where its cube is not empty, and what they gather (NeRF, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from field_renderer.rays import Rays, by_weight, stratified
from scene.cameras import Cameras
from scene.occupancy import Occupancy
from scene.radiance_field import RadianceField
from utils.random import uniform

OPAQUE = 1e-4
"""Transmittance behind which nothing has a gradient (Instant-NGP stops there)."""
NORMAL_STEP = 0.01
"""World units between the densities whose difference is a normal (threestudio)."""
EMPTINESS = 10.0
"""SJC's factor on the weights."""

COLOR, ALPHA, DEPTH, FIRST, SECOND, EMPTY, AWAY = (
    slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6), slice(6, 7), slice(7, 8), slice(8, 9),
)  # fmt: skip
"""Columns of what a ray gathers."""
GATHERED = 9


@dataclass(frozen=True, eq=False)
class FieldViews:
    """B rendered images, with the fields of `gaussian_renderer.Views`, and what regularisers need of the weights.

    With w the weight of a sample and t its distance: `images` are RGB, `alphas` Σ w, `depths` Σ w times the distance
    along the view axis (not divided by alpha); `variances` Σ w (t - t̄)², squared world units; `emptiness` the mean of
    log(1 + 10 w) over a ray's samples; `facing_away` Σ sg(w) max(0, n·d)², 0 unless it was asked for.
    """

    images: Float[Tensor, "B 3 H W"]
    alphas: Float[Tensor, "B 1 H W"]
    depths: Float[Tensor, "B 1 H W"]
    variances: Float[Tensor, "B 1 H W"]
    emptiness: Float[Tensor, "B 1 H W"]
    facing_away: Float[Tensor, "B 1 H W"]


@dataclass(frozen=True)
class Sampling:
    """How rays are looked at.

    Attributes:
        samples: evenly along a ray, between where it enters and leaves what is occupied.
        importance: further ones, drawn by the weights of those.
        normals: also gather which way surfaces face.
    """

    samples: int = 64
    importance: int = 0
    normals: bool = False


def render(
    field: RadianceField,
    cameras: Cameras,
    background: Float[Tensor, "*#B 3"],
    sampling: Sampling = Sampling(),
    *,
    occupancy: Occupancy | None = None,
    rng: torch.Generator | None = None,
    chunk: int | None = None,
) -> FieldViews:
    """Look at `field` through `cameras`. Rays that miss its cube see the background.

    Args:
        background: one colour, or one for each view.
        occupancy: where to look; everywhere if None.
        rng: shifts the samples of each ray within their strata; if None, they are in the middle.
        chunk: rays at a time. Where there are more, each chunk is rendered again in the backward pass: the same
            gradient, at twice the forward's work and a chunk's memory. None: all at once.
    """
    views = len(cameras)
    rays = Rays.of(cameras)
    cube = torch.tensor([[-field.bound], [field.bound]]).to(rays.origins).expand(2, 3)
    near, far = rays.within(cube if occupancy is None else occupancy.box.to(rays.origins))
    shift = torch.full_like(near, 0.5)
    places = shift
    if rng is not None:
        count = 2 if sampling.importance else 1
        shift, *more = uniform((count, len(rays)), rng, near.device).to(near)
        places = more[0] if more else places
    hit = (far > near).nonzero().squeeze(1)

    def march(index: Int[Tensor, " S"]) -> Float[Tensor, "S 9"]:
        drawn = _Drawn(near[index], far[index], shift[index], places[index])
        return _march(field, rays[index], drawn, sampling, occupancy)

    chunks = (hit,) if chunk is None or len(hit) <= chunk else hit.split(chunk)
    parameters = [parameter for parameter in field.parameters() if parameter.requires_grad]
    if len(chunks) == 1 or not torch.is_grad_enabled():
        gathered = torch.cat([march(each) for each in chunks])
    else:
        gathered = _InChunks.apply(march, chunks, *parameters)
    lines = gathered.new_zeros(len(rays), GATHERED).index_copy(0, hit, gathered)
    maps = lines.view(views, cameras.height, cameras.width, GATHERED).permute(0, 3, 1, 2)

    alphas, first, second = maps[:, ALPHA], maps[:, FIRST], maps[:, SECOND]
    behind = background.to(maps).expand(views, 3)[:, :, None, None] * (1 - alphas)
    return FieldViews(
        images=maps[:, COLOR] + behind,
        alphas=alphas,
        depths=maps[:, DEPTH],
        variances=second - first.square() / alphas.clamp_min(1e-6),
        emptiness=maps[:, EMPTY],
        facing_away=maps[:, AWAY],
    )


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Where rays enter and leave, and their random numbers."""

    near: Float[Tensor, " R"]
    far: Float[Tensor, " R"]
    shift: Float[Tensor, " R"]
    places: Float[Tensor, " R"]


def _march(
    field: RadianceField, rays: Rays, drawn: _Drawn, sampling: Sampling, occupancy: Occupancy | None
) -> Float[Tensor, "R 9"]:
    """What each ray gathers along its way."""
    near, far = drawn.near, drawn.far
    distances = stratified(near, far, sampling.samples, drawn.shift)
    steps = (far - near) / sampling.samples
    if sampling.importance:
        with torch.no_grad():
            coarse = _Samples.of(rays, distances, steps, occupancy)
            weights = torch.zeros_like(distances)
            weights.view(-1)[coarse.places] = coarse.weights(field.density(coarse.points))[0].to(weights)
        distances = by_weight(distances, near, far, weights, sampling.importance, drawn.places)
        middles = (distances[:, 1:] + distances[:, :-1]) / 2
        steps = torch.cat([near[:, None], middles, far[:, None]], dim=1).diff(dim=1)
    samples = _Samples.of(rays, distances, steps, occupancy)
    density, colors = field(samples.points)
    weights, seen = samples.weights(density)
    weights = (weights * seen).to(colors)

    distance = samples.distances
    offset = distance - ((near + far) / 2).index_select(0, samples.rays)
    away = _facing_away(field, samples, density, rays) if sampling.normals else torch.zeros_like(weights)
    gathered = (
        weights[:, None] * colors,
        weights,
        weights * (distance * rays.forward.index_select(0, samples.rays)),
        weights * offset,
        weights * offset.square(),
        (EMPTINESS * weights).log1p() / distances.shape[1],
        weights.detach() * away,
    )
    sums = [each.new_zeros(len(rays), *each.shape[1:]).index_add(0, samples.rays, each) for each in gathered]
    return torch.column_stack(sums)


@dataclass(frozen=True, eq=False)
class _Samples:
    """Those samples of rays that lie where something is, ray by ray and each ray's in order.

    Attributes:
        places: of each among all samples, counted ray by ray.
        rays: the ray of each. starts: the first sample of each ray, where it has any.
        distances, steps: from the camera, and the length of the ray that a sample stands for.
    """

    points: Float[Tensor, "3 P"]
    places: Int[Tensor, " P"]
    rays: Int[Tensor, " P"]
    starts: Int[Tensor, " R"]
    distances: Float[Tensor, " P"]
    steps: Float[Tensor, " P"]

    @classmethod
    def of(
        cls,
        rays: Rays,
        distances: Float[Tensor, "R S"],
        steps: Float[Tensor, "R S"] | Float[Tensor, " R"],
        occupancy: Occupancy | None,
    ) -> "_Samples":
        points = rays.origins[:, :, None] + rays.directions[:, :, None] * distances
        points = points.flatten(1)
        if occupancy is None:
            places = torch.arange(points.shape[1], device=points.device)
        else:
            places = occupancy.holds(points).nonzero().squeeze(1)  # on a card the one wait for it
            points = points.index_select(1, places)
        owner = places.div(distances.shape[1], rounding_mode="floor")
        counts = torch.bincount(owner, minlength=len(rays))
        starts = (counts.cumsum(0) - counts).clamp_(max=max(len(places) - 1, 0))
        return cls(
            points,
            places,
            owner,
            starts,
            distances.view(-1).index_select(0, places),
            steps.view(-1).index_select(0, places) if steps.ndim == 2 else steps.index_select(0, owner),
        )

    def weights(self, density: Float[Tensor, " P"]) -> tuple[Float[Tensor, " P"], Tensor]:
        """Weights T (1 - exp(-σ δ)), in float64; and which samples light still reaches.

        Optical depth is summed over all samples in a row, and what a ray began with is taken off: that needs float64.
        """
        thickness = density.double() * self.steps
        before = thickness.cumsum(0) - thickness
        if len(before):
            before = before - before.index_select(0, self.starts).index_select(0, self.rays)
        transmittance = (-before).exp()
        return transmittance * -(-thickness).expm1(), transmittance.detach() > OPAQUE


def _facing_away(
    field: RadianceField, samples: _Samples, density: Float[Tensor, " P"], rays: Rays
) -> Float[Tensor, " P"]:
    """max(0, n·d)² of the normals n, which point to where the density falls, by differences forwards."""
    slopes = []
    for axis in range(3):
        moved = samples.points.clone()
        moved[axis] += NORMAL_STEP
        slopes.append(density - field.density(moved))
    normals = F.normalize(torch.stack(slopes), dim=0)
    return (normals * rays.directions[:, samples.rays]).sum(dim=0).clamp_min(0).square()


class _InChunks(torch.autograd.Function):
    """Chunks of rays, each rendered without a graph, and in the backward pass once more with one."""

    @staticmethod
    def forward(
        ctx: Any, march: Callable[[Tensor], Tensor], chunks: tuple[Tensor, ...], *parameters: Tensor
    ) -> Tensor:
        ctx.march, ctx.chunks, ctx.parameters = march, chunks, parameters
        return torch.cat([march(chunk) for chunk in chunks])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        total = [torch.zeros_like(parameter) for parameter in ctx.parameters]
        parts = gradient.split([len(chunk) for chunk in ctx.chunks])
        for chunk, part in zip(ctx.chunks, parts, strict=True):
            with torch.enable_grad():
                gathered = ctx.march(chunk)
            found = torch.autograd.grad(gathered, ctx.parameters, part, allow_unused=True)
            for sum_, each in zip(total, found, strict=True):
                if each is not None:
                    sum_ += each
        return None, None, *total
