"""The renderer: closed forms, laws, gradients, and the disparity picture."""

import dataclasses
import math

import pytest
import torch

from arguments import GenerateCamParams
from gaussian_renderer import Views, disparity, render
from scene.cameras import orbit
from scene.density import Footprint
from scene.gaussian_model import GaussianModel
from tests.gaussians import random_gaussians, seeded
from utils.spherical_harmonics import rgb_to_sh_dc

SMALL = GenerateCamParams(image_w=33, image_h=33)
WHITE, BLACK = torch.ones(3), torch.zeros(3)


def single(mean=(0.0, 0.0, 0.0), scale=0.1, opacity=0.6, color=(0.8, 0.3, 0.1)) -> GaussianModel:
    return GaussianModel(
        means=torch.tensor([mean]),
        log_scales=torch.full((1, 3), math.log(scale)),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        opacity_logits=torch.tensor([[opacity]]).logit(),
        sh_dc=rgb_to_sh_dc(torch.tensor([[color]])),
        sh_rest=torch.zeros(1, 0, 3),
    )


def test_one_gaussian_in_closed_form():
    """In the middle: alpha is the opacity, the colour is blended over the background, depth is alpha times distance."""
    cameras = orbit(3, SMALL)
    with torch.no_grad():
        views = render(single(), cameras, WHITE)
    middle = views.images[:, :, 16, 16]
    expected = 0.6 * torch.tensor([0.8, 0.3, 0.1]) + 0.4
    torch.testing.assert_close(middle, expected.expand(3, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(views.alphas[:, 0, 16, 16], torch.full((3,), 0.6), rtol=0, atol=1e-5)
    torch.testing.assert_close(views.depths[:, 0, 16, 16], torch.full((3,), 0.6 * 3.5), rtol=0, atol=1e-4)
    focal = 33 / (2 * math.tan(0.55 / 2))
    variance = (0.1 * focal / 3.5) ** 2 + 0.3
    beside = 0.6 * math.exp(-0.5 * 4 / variance)
    assert views.alphas[0, 0, 16, 18] == pytest.approx(beside, abs=1e-4)
    assert views.footprint.radii.flatten().tolist() == [math.ceil(3 * math.sqrt(variance))] * 3


def test_world_directions_on_the_screen():
    """From the front, world -x is on the right and +z at the top."""
    camera = orbit(1, SMALL)
    with torch.no_grad():
        right = render(single((-0.4, 0, 0), 0.03), camera, BLACK).alphas[0, 0]
        top = render(single((0, 0, 0.4), 0.03), camera, BLACK).alphas[0, 0]
    row, column = divmod(int(right.argmax()), 33)
    assert (row, column > 20) == (16, True)
    row, column = divmod(int(top.argmax()), 33)
    assert (row < 12, column) == (True, 16)


def test_wide_images_keep_square_pixels():
    camera = orbit(1, GenerateCamParams(image_w=65, image_h=33))
    with torch.no_grad():
        views = render(single(scale=0.2), camera, BLACK)
    assert views.images.shape == (1, 3, 33, 65)
    alpha = views.alphas[0, 0]
    torch.testing.assert_close(alpha[16, 32 + 5], alpha[16 + 5, 32], rtol=0, atol=1e-5)


def test_a_batch_is_its_views_one_by_one():
    gaussians, cameras = random_gaussians(30, sh_degree=2), orbit(4, SMALL, elevated_ring=True)
    backgrounds = torch.rand(8, 3, generator=seeded())
    scales = gaussians.scales.detach() * (1 + torch.rand(8, 1, 1, generator=seeded(1)))
    degrees = [0, 1, 2, 0, 2, 1, 0, 2]
    with torch.no_grad():
        views = render(gaussians, cameras, backgrounds, scales=scales, sh_degree=degrees)
        for index, degree in enumerate(degrees):
            alone = render(
                gaussians, cameras[[index]], backgrounds[index], scales=scales[index], sh_degree=degree
            )
            torch.testing.assert_close(views.images[[index]], alone.images, rtol=0, atol=1e-6)
            torch.testing.assert_close(views.depths[[index]], alone.depths, rtol=0, atol=1e-5)


def test_the_order_of_gaussians_does_not_matter():
    gaussians, cameras = random_gaussians(30), orbit(2, SMALL)
    order = torch.randperm(30, generator=seeded())
    shuffled = GaussianModel(**{name: getattr(gaussians, name)[order] for name in gaussians.parameter_names})
    with torch.no_grad():
        first, second = render(gaussians, cameras, WHITE), render(shuffled, cameras, WHITE)
    torch.testing.assert_close(first.images, second.images, rtol=0, atol=1e-6)
    assert torch.equal(first.footprint.radii[:, order], second.footprint.radii)


def test_rendering_is_deterministic():
    gaussians, cameras = random_gaussians(30), orbit(2, SMALL)
    images = [render(gaussians, cameras, WHITE).images for _ in range(2)]
    assert torch.equal(*images)


def test_the_active_degree_is_used_unless_another_is_given():
    gaussians, camera = random_gaussians(10, sh_degree=1), orbit(1, SMALL)
    with torch.no_grad():
        full, flat = (
            render(gaussians, camera, WHITE).images,
            render(gaussians, camera, WHITE, sh_degree=0).images,
        )
        gaussians.active_sh_degree = 0
        assert torch.equal(render(gaussians, camera, WHITE).images, flat)
    assert not torch.allclose(full, flat)


def test_direct_colours_are_the_sigmoid_of_band_zero():
    gaussians = single()
    with torch.no_grad():
        views = render(gaussians, orbit(1, SMALL), BLACK, direct_rgb=True)
    torch.testing.assert_close(
        views.images[0, :, 16, 16], 0.6 * gaussians.sh_dc[0, 0].sigmoid().detach(), rtol=0, atol=1e-5
    )


def test_gradients_reach_every_parameter_and_the_screen():
    gaussians, cameras = random_gaussians(20, sh_degree=1), orbit(2, SMALL)
    views = render(gaussians, cameras, WHITE)
    weights = torch.rand(views.images.shape, generator=seeded())
    ((views.images * weights).sum() + disparity(views, cameras).sum()).backward()
    for name in gaussians.parameter_names:
        gradient = getattr(gaussians, name).grad
        assert gradient.isfinite().all() and gradient.any(), name
    assert views.footprint.means2d.grad.shape == (2, 20, 3)
    assert views.footprint.means2d.grad[..., :2].any()
    assert not views.footprint.means2d.grad[..., 2].any()


def test_screen_gradients_are_in_normalised_device_units():
    """Moving a Gaussian by dx in the world moves it dx / (distance tan(fov/2)) across the screen, in [-1, 1]."""
    gaussians, camera = single(scale=0.2), orbit(1, SMALL)
    weights = torch.linspace(0, 1, 33).expand(1, 3, 33, 33)
    views = render(gaussians, camera, BLACK)
    (views.images * weights).sum().backward()
    ndc = views.footprint.means2d.grad[0, 0, 0] / (3.5 * math.tan(0.275))
    assert float(-gaussians.means.grad[0, 0]) == pytest.approx(
        float(ndc), rel=0.02
    )  # the screen's right is world -x


def test_settings_of_the_aspect_reach_the_kernel():
    wide = dataclasses.replace(SMALL, image_w=48, image_h=20)
    views = render(random_gaussians(5), orbit(2, wide), BLACK)
    assert views.images.shape == (2, 3, 20, 48)
    assert views.alphas.shape == views.depths.shape == (2, 1, 20, 48)


def as_views(alphas: torch.Tensor, depths: torch.Tensor) -> Views:
    footprint = Footprint(torch.zeros(len(alphas), 0, 3), torch.zeros(len(alphas), 0, dtype=torch.int32))
    return Views(alphas.expand(-1, 3, -1, -1), alphas, depths, footprint)


def test_disparity_in_closed_form():
    camera = orbit(1, SMALL)
    alphas = torch.tensor([1.0, 1.0, 0.95, 0.0]).view(1, 1, 1, 4)
    depths = torch.tensor([3.0, 4.0, 3.3, 0.0]).view(1, 1, 1, 4)
    focal = 1 / (2 * math.tan(0.275))
    near, far, third = (focal / (value + 1e-5) for value in (3.0, 4.0, 3.8))
    expected = torch.tensor([1.0, 0.0, (third - far) / (near - far), 0.0]).view(1, 1, 1, 4)
    torch.testing.assert_close(disparity(as_views(alphas, depths), camera), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_disparity_of_a_view_without_differences_is_zero_with_finite_gradients(alpha):
    alphas = torch.full((1, 1, 4, 4), alpha, requires_grad=True)
    depths = torch.full((1, 1, 4, 4), alpha * 3.5, requires_grad=True)
    picture = disparity(as_views(alphas, depths), orbit(1, SMALL))
    assert not picture.any()
    picture.sum().backward()
    assert alphas.grad.isfinite().all()
    assert depths.grad.isfinite().all()


def test_disparity_of_a_faint_view_is_measured_over_all_pixels():
    alphas = torch.tensor([0.5, 0.0]).view(1, 1, 1, 2)
    picture = disparity(as_views(alphas, 3.5 * alphas), orbit(1, SMALL))
    assert picture.flatten().tolist() == [1.0, 0.0]


def test_views_are_scaled_each_by_itself():
    gaussians, cameras = random_gaussians(30), orbit(3, SMALL)
    with torch.no_grad():
        views = render(gaussians, cameras, WHITE)
        pictures = disparity(views, cameras)
        for index in range(3):
            alone = render(gaussians, cameras[[index]], WHITE)
            torch.testing.assert_close(
                pictures[[index]], disparity(alone, cameras[[index]]), rtol=0, atol=1e-4
            )
