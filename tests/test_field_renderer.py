"""Rays through fields: closed forms, gradients, a plain twin in float64, chunks, and what is skipped."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from arguments import GenerateCamParams
from field_renderer import Sampling, render
from field_renderer.rays import Rays, by_weight, stratified
from scene.cameras import Cameras, orbit
from scene.field_start import Blob
from scene.occupancy import Occupancy
from scene.radiance_field import RadianceField, hash_cells, new_hash_grid, new_voxel_grid
from tests.tolerances import EPS, FORMULA, SUM

CAMERAS = GenerateCamParams(image_w=12, image_h=8, default_radius=3.0, default_fovy=0.5)
WHITE = torch.ones(3)


class Homogeneous(RadianceField):
    """One density and one colour wherever `holds` says so."""

    kind = "test"

    def __init__(
        self, density, color=(0.2, 0.5, 0.7), holds=lambda points: points[0] == points[0], bound=1.0
    ):
        super().__init__(bound, 1.0)
        self.value = nn.Parameter(torch.tensor(float(density), dtype=torch.float64))
        self.color = nn.Parameter(torch.tensor(color, dtype=torch.float64))
        self.holds = holds

    def raw(self, points):
        raise NotImplementedError

    def density(self, points):
        return self.value * self.holds(points).double()

    def forward(self, points):
        return self.density(points), self.color.expand(points.shape[1], 3)

    def roughness(self):
        return self.value * 0


def double(cameras: Cameras) -> Cameras:
    return dataclasses.replace(cameras, **{k: v.double() for k, v in cameras.tensors().items()})


def ball(points, radius=0.5):
    return points.norm(dim=0) < radius


def chords(cameras, radius):
    """Length of each pixel's ray within a ball about the origin."""
    rays = Rays.of(cameras)
    along = (rays.origins * rays.directions).sum(dim=0)
    inside = radius**2 - (rays.origins.square().sum(dim=0) - along.square())
    return 2 * inside.clamp_min(0).sqrt().view(len(cameras), 1, cameras.height, cameras.width), along


def test_a_slab_has_the_opacity_and_the_gradient_of_beers_law():
    field = Homogeneous(1.3)
    cameras = double(
        orbit(1, CAMERAS)
    )  # in front, on +y: its rays pass through both sides of the cube along y
    views = render(field, cameras, WHITE, Sampling(7))
    rays = Rays.of(cameras)
    length = (2 / rays.directions[1].abs()).view(1, 1, 8, 12)
    opacity = 1 - (-1.3 * length).exp()
    assert torch.allclose(views.alphas, opacity, rtol=FORMULA[torch.float64])
    expected = opacity * field.color.view(1, 3, 1, 1) + (1 - opacity)
    assert torch.allclose(views.images, expected, rtol=FORMULA[torch.float64])
    views.alphas.sum().backward()
    slope = (length * (-1.3 * length).exp()).sum()
    assert field.value.grad.item() == pytest.approx(slope.item(), rel=SUM[torch.float64])


def test_a_ball_converges_to_its_closed_form_in_image_depth_and_gradient():
    field, cameras = Homogeneous(4.0, holds=ball), double(orbit(2, CAMERAS, polar_deg=70.0))
    length, along = chords(cameras, 0.5)
    opacity = 1 - (-4.0 * length).exp()
    errors = []
    for samples in (64, 512):
        views = render(field, cameras, WHITE, Sampling(samples))
        error = (views.alphas - opacity).abs().amax().item()
        # a sample stands for 2 sqrt(3) / samples at most, and two ends of the chord are cut at such steps
        assert error <= 4.0 * 2 * 2 * math.sqrt(3) / samples
        errors.append(error)
    assert errors[1] < errors[0] / 3
    entry = -along.view_as(length) - length / 2
    depth = entry * opacity + (1 - (1 + 4.0 * length) * (-4.0 * length).exp()) / 4.0
    forward = Rays.of(cameras).forward.view_as(length)
    assert torch.allclose(views.depths, depth * forward, atol=0.05)
    (slope,) = torch.autograd.grad(views.alphas.sum(), field.value)
    assert slope.item() == pytest.approx((length * (-4.0 * length).exp()).sum().item(), rel=0.03)


def test_rays_that_miss_the_cube_see_the_background_and_a_camera_within_it_sees_what_is_before_it():
    field = Homogeneous(5.0, bound=0.1)
    cameras = double(orbit(1, CAMERAS))
    views = render(field, cameras, torch.tensor([0.1, 0.2, 0.3]), Sampling(8))
    missed = views.alphas[0, 0] == 0
    assert missed.any() and not missed.all()
    assert torch.allclose(views.images[0, :, missed].float(), torch.tensor([[0.1], [0.2], [0.3]]))
    away = dataclasses.replace(cameras, world_to_camera=cameras.world_to_camera.clone())
    away.world_to_camera[:, 1:] *= -1  # half a turn about the camera's own x
    views = render(field, away, WHITE, Sampling(8))
    assert (views.images == 1).all() and (views.alphas == 0).all() and (views.depths == 0).all()
    views.images.sum().backward()
    assert field.value.grad == 0
    inside = double(orbit(1, dataclasses.replace(CAMERAS, default_radius=0.3)))
    views = render(Homogeneous(3.0), inside, WHITE, Sampling(8))
    assert views.alphas.min() > 0.9 and views.images.isfinite().all()


def plain(field, cameras, background, samples, shift):
    """The same, ray by ray and sample by sample, as NeRF's section 4 writes it."""
    rays = Rays.of(cameras)
    images = []
    for index in range(len(rays)):
        origin, direction = rays.origins[:, index], rays.directions[:, index]
        ends = torch.stack([(-field.bound - origin) / direction, (field.bound - origin) / direction])
        near, far = ends.amin(dim=0).amax(), ends.amax(dim=0).amin()
        color, transmittance = torch.zeros(3, dtype=origin.dtype), 1.0
        for part in range(samples if far > near else 0):
            step = (far - near) / samples
            point = origin + direction * (near + (part + shift[index]) * step)
            density, seen = field(point[:, None])
            opacity = 1 - (-density[0] * step).exp()
            color = color + transmittance * opacity * seen[0]
            transmittance = transmittance * (1 - opacity)
        images.append(color + transmittance * background)
    return torch.stack(images, dim=1).view(3, cameras.height, cameras.width)


def fields():
    rng = torch.Generator().manual_seed(3)
    grid = new_voxel_grid(Blob(6.0, 0.5), 0.8, 1.0, 9)
    grid.table.data += 0.3 * torch.randn(grid.table.shape, generator=rng)
    hashed = new_hash_grid(
        Blob(6.0, 0.5), 0.8, 1.0, cells=hash_cells(4, 3, 24), power=9, features=2, width=8, layers=1,
        smoothstep=True, rng=rng,
    )  # fmt: skip
    for table in hashed.tables:
        table.data = torch.randn(table.shape, generator=rng)
    return {"grid": grid, "hash": hashed}


@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_image_and_gradient_are_those_of_a_plain_twin_in_float64(kind):
    field = fields()[kind]
    cameras = orbit(1, dataclasses.replace(CAMERAS, image_w=6, image_h=6), polar_deg=80.0)
    background, samples = torch.tensor([0.9, 0.4, 0.1]), 12
    mix = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(1))
    image = render(field, cameras, background, Sampling(samples)).images[0]
    parameters = list(field.parameters())
    gradients = torch.autograd.grad((image * mix).sum(), parameters)

    twin = fields()[kind].double()
    shift = torch.full((36,), 0.5, dtype=torch.float64)
    expected = plain(twin, double(cameras), background.double(), samples, shift)
    exact = torch.autograd.grad((expected * mix).sum(), list(twin.parameters()))
    # places 4 units from the camera are rounded to float32; features of neighbours, 24 cells a side, differ by about 3,
    # smoothstep is 1.5 times as steep, and a ray is at most 2.8 units long
    assert (image - expected).abs().amax() < 4 * EPS[torch.float32] * (3 * 24 / 1.6 * 1.5) * 2.8
    for mine, theirs in zip(gradients, exact, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-8


@pytest.mark.parametrize("importance", [0, 6])
@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_chunks_give_the_same_image_and_gradient(kind, importance):
    field, cameras = fields()[kind], orbit(2, CAMERAS)
    results = []
    for chunk in (None, 17):
        views = render(
            field, cameras, WHITE, Sampling(10, importance, normals=True),
            rng=torch.Generator().manual_seed(5), chunk=chunk,
        )  # fmt: skip
        loss = views.images.square().sum() + views.variances.sum() + views.facing_away.sum()
        results.append((views, torch.autograd.grad(loss + views.depths.sum(), list(field.parameters()))))
    (whole, expected), (parts, gradients) = results
    for name in vars(whole):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=4 * EPS[torch.float32]), name
    for mine, theirs in zip(gradients, expected, strict=True):
        assert (mine - theirs).norm() <= SUM[torch.float32] * theirs.norm()


def test_the_same_generator_gives_the_same_bits_and_another_others():
    field, cameras = fields()["grid"], orbit(1, CAMERAS)

    def image(seed):
        rng = torch.Generator().manual_seed(seed)
        return render(field, cameras, WHITE, Sampling(8, 4), rng=rng).images

    assert torch.equal(image(1), image(1)) and not torch.equal(image(1), image(2))
    assert torch.equal(*(render(field, cameras, WHITE, Sampling(8, 4)).images for _ in range(2)))


def test_what_is_skipped_is_not_seen():
    field, cameras = fields()["grid"], orbit(3, CAMERAS)
    occupancy = Occupancy(0.8, 16, 0.02, torch.device("cpu"))
    occupancy.update(field, torch.Generator().manual_seed(0))
    assert 0.05 < occupancy.occupied.float().mean() < 0.9
    whole, skipped = (
        render(field, cameras, WHITE, Sampling(400), occupancy=each) for each in (None, occupancy)
    )
    # 0.02 a unit over the 2.8 units of the longest ray, and two samplings of 400 parts
    assert (whole.images - skipped.images).abs().amax() < 0.02 * 2.8 + 0.01


def test_regularisers_numbers_are_those_of_the_weights():
    field = Homogeneous(2.0)
    cameras = double(orbit(1, dataclasses.replace(CAMERAS, image_w=1, image_h=1, default_fovy=1e-3)))
    views = render(field, cameras, WHITE, Sampling(200))
    # along the axis: from 2 to 4, density 2
    step = 2 / 200
    at = (torch.arange(200, dtype=torch.float64) + 0.5) * step
    weights = (-2.0 * step * torch.arange(200, dtype=torch.float64)).exp() * -math.expm1(-2.0 * step)
    mean = (weights * at).sum() / weights.sum()
    assert views.variances.item() == pytest.approx((weights * (at - mean).square()).sum().item(), rel=1e-6)
    assert views.emptiness.item() == pytest.approx((10 * weights).log1p().mean().item(), rel=1e-6)
    assert views.facing_away.item() == 0


def test_what_looks_away_is_counted_and_what_faces_the_camera_is_not():
    def ramp(towards):
        class Ramp(Homogeneous):
            def density(self, points):
                return self.value * (1 + towards * points[1]).clamp_min(0)

        return Ramp(1.0)

    cameras = double(orbit(1, dataclasses.replace(CAMERAS, image_w=1, image_h=1, default_fovy=1e-3)))
    away, facing = (
        render(ramp(towards), cameras, WHITE, Sampling(50, normals=True)) for towards in (0.9, -0.9)
    )
    # densest at the camera: it falls along the ray, so the normal looks along it; all of what is seen counts
    assert away.facing_away.item() == pytest.approx(away.alphas.item(), rel=1e-3)
    assert facing.facing_away.item() == pytest.approx(0, abs=1e-6)


def test_strata_cover_the_ray_and_importance_follows_the_weights():
    near, far = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])
    shift = torch.tensor([0.25, 0.75])
    distances = stratified(near, far, 4, shift)
    assert torch.equal(distances, torch.tensor([[1.125, 1.625, 2.125, 2.625], [2.75, 3.75, 4.75, 5.75]]))
    weights = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    merged = by_weight(distances, near, far, weights, 100, shift)
    assert merged.shape == (2, 104) and (merged.diff(dim=1) >= 0).all()
    drawn = ((merged[0] >= 2.0) & (merged[0] <= 2.5)).sum()
    assert drawn >= 100  # all in the one stratum that has any weight
    even = torch.histc(merged[1], 4, 2.0, 6.0)
    assert (even - 26).abs().amax() <= 1
