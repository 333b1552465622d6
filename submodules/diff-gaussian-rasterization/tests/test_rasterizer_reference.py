"""The PyTorch reference: closed forms, gradients against finite differences, and the decisions of the method."""

import math

import pytest
import torch
from diff_gaussian_rasterization import rasterize
from diff_gaussian_rasterization.reference import rotation_matrices, spherical_harmonics
from gaussian_scenes import cloud, covariances, draw, orbit


def facing(width: int, height: int, dtype: torch.dtype = torch.float64) -> dict:
    """A camera at the origin that looks along +z with a right angle of view."""
    clip = torch.zeros(4, 4, dtype=dtype)
    clip[0, 0] = clip[1, 1] = clip[2, 2] = clip[3, 2] = 1.0
    one = torch.ones(1, dtype=dtype)
    return {
        "viewmatrix": torch.eye(4, dtype=dtype)[None],
        "projmatrix": clip.T[None],
        "campos": torch.zeros(1, 3, dtype=dtype),
        "tanfovx": one,
        "tanfovy": one,
        "bg": torch.tensor([[0.2, 0.4, 0.6]], dtype=dtype),
        "image_width": width,
        "image_height": height,
        "sh_degree": 0,
        "backend": "torch",
    }


def blob(
    depth: float, opacity: float, size: float, color: tuple[float, float, float]
) -> dict[str, torch.Tensor]:
    return {
        "means3D": torch.tensor([[0.0, 0.0, depth]], dtype=torch.float64),
        "opacities": torch.tensor([[opacity]], dtype=torch.float64),
        "colors_precomp": torch.tensor([color], dtype=torch.float64),
        "scales": torch.full((1, 3), size, dtype=torch.float64),
        "rotations": torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
    }


def both(first: dict, second: dict) -> dict:
    return {name: torch.cat([first[name], second[name]]) for name in first}


def screen(scene: dict, views: int = 1) -> torch.Tensor:
    return torch.zeros(views, len(scene["means3D"]), 3, dtype=scene["means3D"].dtype)


def test_one_gaussian_in_closed_form():
    width = 33  # the centre of the image is the centre of pixel 16
    scene = blob(depth=2.0, opacity=0.8, size=0.1, color=(1.0, 0.0, 0.5))
    color, radii, depth, alpha = rasterize(means2D=screen(scene), **scene, **facing(width, width))
    variance = (0.1 * (width / 2) / 2.0) ** 2 + 0.3
    assert alpha[0, 0, 16, 16].item() == pytest.approx(0.8)
    assert alpha[0, 0, 16, 18].item() == pytest.approx(0.8 * math.exp(-0.5 * 4 / variance))
    assert depth[0, 0, 16, 16].item() == pytest.approx(0.8 * 2.0)
    assert color[0, :, 16, 16].tolist() == pytest.approx([0.84, 0.08, 0.52])
    assert color[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert radii.tolist() == [[math.ceil(3 * math.sqrt(variance + math.sqrt(0.1)))]]


def test_the_nearer_hides_the_farther_whatever_their_order():
    near, far = blob(1.0, 0.9, 0.2, (1, 0, 0)), blob(3.0, 0.9, 0.6, (0, 1, 0))
    images = [
        rasterize(means2D=torch.zeros(1, 2, 3).double(), **s, **facing(17, 17))
        for s in (both(near, far), both(far, near))
    ]
    torch.testing.assert_close(images[0].color, images[1].color)
    assert images[0].color[0, :, 8, 8].tolist() == pytest.approx([0.9 + 0.002, 0.09 + 0.004, 0.006])


def test_alpha_stays_below_one_and_pixels_end():
    scene = blob(2.0, 1.0, 1.0, (1.0, 1.0, 1.0))
    for _ in range(2):
        scene = both(scene, scene)
    alpha = rasterize(means2D=screen(scene), **scene, **facing(17, 17)).alpha[0, 0, 8, 8].item()
    # 0.01 * 0.01 = 1e-4 rounds to just below or above the end; a third Gaussian would always pass it.
    assert alpha in (pytest.approx(0.99), pytest.approx(0.9999))


FORMS = {
    "degree 0": ({}, {}),
    "degree 3": ({"degree": 3}, {"sh_degree": 3}),
    "degree 1 of 2": ({"degree": 2}, {"sh_degree": 1}),
    "degree 2": ({"degree": 2}, {"sh_degree": 2}),
    "scale modifier": ({}, {"scale_modifier": 0.7}),
    "antialiasing": ({"size": 0.05}, {"antialiasing": True}),
    "off the frustum": ({"spread": 1.5}, {}),
}


def assert_gradients_equal_finite_differences(scene: dict, **options) -> None:
    cameras = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in orbit(2, 14, 13).items()}
    scene = {name: value.double().requires_grad_() for name, value in scene.items()}

    def images(*values):
        given = dict(zip(scene, values, strict=True))
        drawn = rasterize(**{"means2D": screen(given, 2), "sh_degree": 0, **given, **cameras, **options})
        return drawn.color, drawn.depth, drawn.alpha

    assert torch.autograd.gradcheck(images, tuple(scene.values()), eps=1e-7, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_finite_differences(form):
    torch.manual_seed(0)
    scene, options = FORMS[form]
    assert_gradients_equal_finite_differences(cloud(6, **({"size": 0.2} | scene)), **options)


@pytest.mark.parametrize("views", [1, 2])
def test_gradients_of_precomputed_inputs_equal_finite_differences(views):
    """One set of scales, covariances and colours for all views, or one for each."""
    torch.manual_seed(0)
    scene = cloud(6, size=0.2)
    entries, colors = covariances(scene["scales"], scene["rotations"]), torch.rand(views, 6, 3)
    bare = {name: scene[name] for name in ("means3D", "opacities")}
    sizes = torch.tensor([1.0, 1.5])[:views, None, None]
    shape = {"cov3D_precomp": (sizes * entries).squeeze(0), "colors_precomp": colors.squeeze(0)}
    assert_gradients_equal_finite_differences(bare | shape)
    shape = {
        "scales": (sizes * scene["scales"]).squeeze(0),
        "rotations": scene["rotations"],
        "shs": scene["shs"],
    }
    assert_gradients_equal_finite_differences(bare | shape)


@pytest.mark.parametrize("axis", [0, 1])
def test_screen_gradient_is_that_of_moving_the_image(axis):
    """Moving the principal point moves every centre by the same pixels: half the image size times the NDC gradient."""
    scene = cloud(8, size=0.2)
    cameras = orbit(1, 20, 24)
    _, gradients = draw(scene, cameras, dtype=torch.float64, backend="torch")
    cameras = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in cameras.items()}
    rng = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(1, c, 24, 20, generator=rng).double() for c in (3, 1, 1)]

    def loss(shift: float) -> float:
        moved = cameras["projmatrix"].clone()
        moved[:, :, axis] += shift * moved[:, :, 3]
        drawn = rasterize(
            means2D=torch.zeros(1, 8, 3).double(),
            sh_degree=0,
            **{n: v.double() for n, v in scene.items()},
            **(cameras | {"projmatrix": moved}),
        )
        images = (drawn.color, drawn.depth, drawn.alpha)
        return sum(float((i * c).sum()) for i, c in zip(images, cotangents, strict=True))

    numeric = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert gradients["means2D"][0, :, axis].sum().item() == pytest.approx(numeric, rel=1e-4)
    assert torch.all(gradients["means2D"][..., 2] == 0)


def test_absolute_gradients_are_those_of_single_pixels_added_up():
    scene = {n: v.double() for n, v in cloud(8, size=0.2).items()}
    cameras = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in orbit(1, 11, 9).items()}
    means2D = torch.zeros(1, 8, 3, dtype=torch.float64, requires_grad=True)
    drawn = rasterize(means2D=means2D, sh_degree=0, absgrad=True, **scene, **cameras)
    rng = torch.Generator().manual_seed(7)
    images = torch.cat([drawn.color, drawn.depth, drawn.alpha], dim=1)
    pixels = (images * torch.randn(images.shape, generator=rng)).sum(1).flatten()
    single = [torch.autograd.grad(p, means2D, retain_graph=True)[0][..., :2].abs() for p in pixels]
    means2D.absgrad.zero_()
    pixels.sum().backward()
    torch.testing.assert_close(means2D.absgrad, sum(single))
    assert (means2D.absgrad > 1.01 * means2D.grad[..., :2].abs()).any()


def test_spherical_harmonics_are_orthonormal():
    directions = torch.nn.functional.normalize(
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    )
    basis = spherical_harmonics(3, directions.double())
    gram = 4 * math.pi * basis.mT @ basis / len(basis)
    torch.testing.assert_close(gram, torch.eye(16).double(), atol=0.03, rtol=0)


def test_rotation_of_unit_quaternions_is_orthogonal():
    q = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double())
    m = rotation_matrices(q)
    torch.testing.assert_close(m @ m.mT, torch.eye(3).double().expand(20, 3, 3))
    quarter = rotation_matrices(torch.tensor([[math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)]]))
    torch.testing.assert_close(quarter[0] @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
