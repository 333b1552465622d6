"""The interfaces: the field's, LucidDreamer's, batches of cameras, and what they refuse."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    cpu,
    gaussian_splatting_2023,
    gaussian_splatting_2024,
    gaussiandreamer,
    get_num_threads,
    luciddreamer,
    rasterize,
    set_num_threads,
)
from gaussian_scenes import cloud, covariances, draw, orbit

BACKENDS = ["torch"] + (["cpu"] if cpu.available() else [])


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def settings(cameras: dict, **changes) -> GaussianRasterizationSettings:
    fields = {
        "image_height": cameras["image_height"],
        "image_width": cameras["image_width"],
        "tanfovx": float(cameras["tanfovx"][0]),
        "tanfovy": float(cameras["tanfovy"][0]),
        "bg": cameras["bg"][0],
        "scale_modifier": 1.0,
        "viewmatrix": cameras["viewmatrix"][0],
        "projmatrix": cameras["projmatrix"][0],
        "sh_degree": 0,
        "campos": cameras["campos"][0],
        "prefiltered": False,
    }
    return GaussianRasterizationSettings(**(fields | changes))


def test_settings_are_built_with_and_without_debug():
    assert settings(orbit(1, 8, 8)).debug is False
    assert settings(orbit(1, 8, 8), debug=True, antialiasing=True).antialiasing is True


def test_classic_call_equals_a_batch_of_one(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    means2D = torch.zeros(60, 3, requires_grad=True)
    scene["means3D"].requires_grad_()
    rasterizer = GaussianRasterizer(settings(cameras), backend=backend, absgrad=True)
    color, radii, depth, alpha = rasterizer(means2D=means2D, **scene)
    assert (color.shape, radii.shape, radii.dtype) == ((3, 30, 40), (60,), torch.int32)
    assert depth.shape == alpha.shape == (1, 30, 40)
    color.square().sum().backward()

    batched = torch.zeros(1, 60, 3, requires_grad=True)
    drawn = rasterize(means2D=batched, sh_degree=0, backend=backend, absgrad=True, **scene, **cameras)
    drawn.color.square().sum().backward()
    assert torch.equal(drawn.color[0], color)
    assert torch.equal(batched.grad[0], means2D.grad)
    assert torch.equal(batched.absgrad[0], means2D.absgrad)
    assert means2D.grad[:, :2].abs().sum() > 0


def test_a_call_as_the_field_writes_it(backend):
    """All arguments by name, the unused ones None; the screen positions are no leaf and keep their gradient."""
    cameras, scene = orbit(1, 40, 30), cloud(60)
    positional = settings(cameras)
    camera = GaussianRasterizationSettings(*positional[:11], False)
    assert camera == positional
    means = scene["means3D"].requires_grad_()
    screen = torch.zeros_like(means, requires_grad=True) + 0
    screen.retain_grad()
    color, radii, _, _ = GaussianRasterizer(raster_settings=camera, backend=backend)(
        means3D=means,
        means2D=screen,
        shs=scene["shs"],
        colors_precomp=None,
        opacities=scene["opacities"],
        scales=scene["scales"],
        rotations=scene["rotations"],
        cov3D_precomp=None,
    )
    color.sum().backward()
    assert screen.grad[radii > 0, :2].norm(dim=-1).max() > 0
    assert screen.grad[radii == 0].abs().sum() == 0


def test_luciddreamer_gets_depth_and_transmittance():
    scene, cameras = cloud(60), orbit(1, 40, 30)
    scene["means2D"] = torch.zeros(60, 3)
    color, radii, depth, alpha = GaussianRasterizer(settings(cameras))(**scene)
    same_color, same_radii, stacked = luciddreamer.GaussianRasterizer(settings(cameras))(**scene)
    assert torch.equal(color, same_color)
    assert torch.equal(radii, same_radii)
    assert torch.equal(stacked, torch.cat([depth, 1 - alpha]))


def test_luciddreamers_second_channel_falls_as_alpha_grows(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    cotangent = torch.randn(2, 30, 40, generator=torch.Generator().manual_seed(0))
    gradients = []
    for form in (GaussianRasterizer, luciddreamer.GaussianRasterizer):
        leaves = {name: value.clone().requires_grad_() for name, value in scene.items()}
        *_, last = drawn = form(settings(cameras), backend=backend)(means2D=torch.zeros(60, 3), **leaves)
        images = last if len(drawn) == 3 else torch.cat([drawn[2], -last])
        gradients.append(torch.autograd.grad((images * cotangent).sum(), list(leaves.values())))
    for plain, stacked in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, stacked, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "shown"), [(gaussian_splatting_2023, 2), (gaussiandreamer, 3)], ids=["2023", "gaussiandreamer"]
)
def test_older_code_gets_the_first_of_the_outputs(form, shown, backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    ours = GaussianRasterizer(settings(cameras), backend=backend)(means2D=None, **scene)
    theirs = form.GaussianRasterizer(
        raster_settings=form.GaussianRasterizationSettings(*settings(cameras)), backend=backend
    )(means2D=None, **scene)
    assert len(theirs) == shown
    assert all(torch.equal(a, b) for a, b in zip(ours[:shown], theirs, strict=True))


def test_the_interface_of_2024_gets_the_inverse_depth(backend):
    """A single opaque Gaussian in the middle: the sum of weight over depth is its alpha over its depth."""
    cameras = orbit(1, 17, 17)
    scene = {name: value[:1] for name, value in cloud(60).items()}
    scene |= {"means3D": torch.zeros(1, 3), "scales": torch.full((1, 3), 0.5)}
    leaves = {name: value.clone().requires_grad_() for name, value in scene.items()}
    camera = settings(cameras, bg=torch.ones(3))
    *_, depth, alpha = GaussianRasterizer(camera, backend=backend)(means2D=None, **scene)
    color, radii, inverse = gaussian_splatting_2024.GaussianRasterizer(camera, backend=backend)(
        means2D=None, **leaves
    )
    assert (color.shape, radii.shape, inverse.shape) == ((3, 17, 17), (1,), (1, 17, 17))
    seen = alpha > 0.1
    assert seen.any()
    torch.testing.assert_close(inverse[seen], (alpha * alpha / depth)[seen])
    assert (inverse[alpha == 0] == 0).all()
    inverse.sum().backward()
    centre = cameras["campos"][0] - scene["means3D"][0]
    assert leaves["means3D"].grad[0] @ centre > 0  # what comes nearer has a greater inverse depth


def test_the_inverse_depth_agrees_with_float64_on_the_reference(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    drawn = []
    for dtype, where in ((torch.float32, backend), (torch.float64, "torch")):
        given = {name: value.detach().to(dtype).requires_grad_() for name, value in scene.items()}
        camera = settings({n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in cameras.items()})
        camera = camera._replace(antialiasing=True)
        screen = torch.zeros(60, 3, dtype=dtype, requires_grad=True)
        color, _, inverse = gaussian_splatting_2024.GaussianRasterizer(camera, backend=where)(
            means2D=screen, **given
        )
        (color.sum() + inverse.square().sum()).backward()
        drawn.append((inverse.double(), given["means3D"].grad.double(), screen.grad.double()))
    for ours, truth in zip(*drawn, strict=True):
        assert (ours - truth).norm() <= 1e-3 * truth.norm()


def test_nobody_need_ask_for_the_gradient_on_the_screen(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    scene["means3D"].requires_grad_()
    gradients, colors = [], []
    for screen in (None, torch.zeros(60, 3)):
        color, *_ = GaussianRasterizer(settings(cameras), backend=backend)(means2D=screen, **scene)
        gradients += torch.autograd.grad(color.square().sum(), scene["means3D"])
        colors.append(color)
    assert torch.equal(*colors)
    assert torch.equal(*gradients)


def test_numbers_may_be_numpys_or_torchs(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    plain = settings(cameras)
    numpys = plain._replace(
        image_height=np.int64(30),
        image_width=np.int32(40),
        tanfovx=np.float64(plain.tanfovx),
        tanfovy=np.float64(plain.tanfovy),
        scale_modifier=np.float32(1),
        sh_degree=np.int64(0),
        antialiasing=np.bool_(False),
    )
    torchs = plain._replace(
        image_height=torch.tensor(30),
        tanfovx=torch.tensor(plain.tanfovx),
        scale_modifier=torch.tensor(1.0),
        sh_degree=torch.tensor(0),
    )
    one, *others = (
        GaussianRasterizer(s, backend=backend)(means2D=None, **scene) for s in (plain, numpys, torchs)
    )
    assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("number", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_what_a_caller_has_made_the_default_of_tensors_changes_nothing(backend, number, device):
    """A kernel writes into tensors of the inputs' type and place, or it would write elsewhere."""
    scene, given = cloud(60), {"sh_degree": 0, "backend": backend, "absgrad": True, **orbit(2, 20, 20)}

    def drawn():
        means2D = torch.zeros(2, 60, 3, dtype=torch.float32, device="cpu", requires_grad=True)
        images = rasterize(means2D=means2D, **scene, **given)
        images.color.square().sum().backward()
        return *images, means2D.grad, means2D.absgrad

    usual, before = drawn(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(number)
        with torch.device(device):
            unusual = drawn()
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(usual, unusual, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_a_compiled_function_may_draw(backend):
    scene, cameras = cloud(60), orbit(1, 40, 30)
    rasterizer = GaussianRasterizer(settings(cameras), backend=backend, absgrad=True)

    def loss(means: torch.Tensor, screen: torch.Tensor) -> torch.Tensor:
        color, *_ = rasterizer(means2D=screen, **scene | {"means3D": 1.0 * means})
        return (2 * color).square().sum()

    results = []
    for function in (loss, torch.compile(loss, backend="eager")):
        means, screen = scene["means3D"].clone().requires_grad_(), torch.zeros(60, 3, requires_grad=True)
        function(means, screen).backward()
        results.append((means.grad, screen.grad, screen.absgrad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_visible_is_what_lies_beyond_the_near_plane():
    cameras = orbit(1, 8, 8)
    center = cameras["campos"][0]
    positions = torch.stack([torch.zeros(3), 2 * center, center * 0.99])
    rasterizer = GaussianRasterizer(settings(cameras))
    assert rasterizer.mark_visible(positions).tolist() == [True, False, False]
    assert rasterizer.markVisible(positions).dtype == torch.bool
    assert rasterizer.mark_visible(torch.full((2, 3), math.nan)).tolist() == [False, False]
    with pytest.raises(TypeError, match=r"positions: expected torch\.float32 as viewmatrix has"):
        rasterizer.mark_visible(positions.double())


def test_what_is_drawn_is_visible():
    scene, cameras = cloud(600, size=0.2, spread=2.0), orbit(1, 40, 30)
    rasterizer = GaussianRasterizer(settings(cameras))
    radii = rasterizer(means2D=torch.zeros(600, 3), **scene)[1]
    visible = rasterizer.mark_visible(scene["means3D"])
    assert 0 < visible.sum() < 600
    assert (radii > 0).sum() > 0
    assert visible[radii > 0].all()


def test_no_gaussians_leave_the_background(backend):
    drawn, gradients = draw(cloud(0), orbit(2, 21, 13), backend=backend)
    background = orbit(2, 21, 13)["bg"][:, :, None, None].expand(2, 3, 13, 21)
    assert torch.equal(drawn.color, background)
    assert drawn.radii.shape == (2, 0)
    assert drawn.alpha.abs().max() == drawn.depth.abs().max() == 0
    assert gradients["means3D"].shape == (0, 3)


def test_no_views_give_no_images(backend):
    cameras = {n: v[:0] if isinstance(v, torch.Tensor) else v for n, v in orbit(1, 21, 13).items()}
    drawn = rasterize(means2D=torch.zeros(0, 5, 3), sh_degree=0, backend=backend, **cloud(5), **cameras)
    assert [tuple(d.shape) for d in drawn] == [(0, 3, 13, 21), (0, 5), (0, 1, 13, 21), (0, 1, 13, 21)]


def test_a_batch_equals_its_views_one_by_one(backend):
    scene, cameras = cloud(150, degree=1), orbit(3, 50, 34)
    scales = scene["scales"] * torch.tensor([0.7, 1.0, 1.5]).view(3, 1, 1)
    together, gradients = draw(scene | {"scales": scales}, cameras, backend=backend, sh_degree=[1, 0, 1])
    rng = torch.Generator().manual_seed(7)
    cotangents = [torch.randn(3, channels, 34, 50, generator=rng) for channels in (3, 1, 1)]
    means = scene["means3D"].requires_grad_()
    for i, degree in enumerate((1, 0, 1)):
        camera = {n: v[i : i + 1] if isinstance(v, torch.Tensor) else v for n, v in cameras.items()}
        alone = rasterize(
            means2D=torch.zeros(1, 150, 3),
            sh_degree=degree,
            backend=backend,
            **(scene | {"scales": scales[i]}),
            **camera,
        )
        assert torch.equal(alone.color[0], together.color[i])
        assert torch.equal(alone.radii[0], together.radii[i])
        images = (alone.color, alone.depth, alone.alpha)
        sum((a[0] * c[i]).sum() for a, c in zip(images, cotangents, strict=True)).backward()
    torch.testing.assert_close(means.grad, gradients["means3D"], rtol=1e-3, atol=1e-3)


def test_two_columns_of_screen_positions_are_enough(backend):
    scene, cameras = cloud(30), orbit(1, 20, 20)
    means2D = torch.full((1, 30, 2), 5.0, requires_grad=True)  # values do not matter
    scene["means3D"].requires_grad_()
    drawn = rasterize(means2D=means2D, sh_degree=0, backend=backend, **scene, **cameras)
    plain = rasterize(means2D=torch.zeros(1, 30, 3), sh_degree=0, backend=backend, **scene, **cameras)
    assert torch.equal(drawn.color, plain.color)
    drawn.color.sum().backward()
    assert means2D.grad.shape == (1, 30, 2)


def test_inputs_need_not_be_contiguous(backend):
    scene, cameras = cloud(40), orbit(1, 20, 20)
    strided = {n: torch.stack([v, v], dim=-1)[..., 0] for n, v in scene.items()}
    cameras["projmatrix"] = cameras["projmatrix"].mT.contiguous().mT
    one, other = (
        rasterize(means2D=torch.zeros(1, 40, 3), sh_degree=0, backend=backend, **s, **cameras)
        for s in (scene, strided)
    )
    assert torch.equal(one.color, other.color)


def test_flat_and_broken_shapes_are_drawn_without_nan(backend):
    scene = cloud(20)
    scene["scales"][:7] = 0.0
    scene["rotations"][7:14] = 0.0
    scene["means3D"][14] = orbit(1, 8, 8)["campos"][0]
    drawn, gradients = draw(scene, orbit(1, 20, 20), backend=backend)
    assert torch.isfinite(drawn.color).all()
    assert all(torch.isfinite(g).all() for g in gradients.values())
    entries = covariances(cloud(20)["scales"], cloud(20)["rotations"])
    entries[:10] = -entries[:10]  # not a covariance: not drawn
    del scene["scales"], scene["rotations"]
    drawn, gradients = draw(scene | {"cov3D_precomp": entries}, orbit(1, 20, 20), backend=backend)
    assert torch.isfinite(drawn.color).all()
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_the_sign_of_a_scale_does_not_matter(backend):
    scene, cameras = cloud(20), orbit(1, 20, 20)
    positive, gradients = draw(scene, cameras, backend=backend)
    negative, mirrored = draw(scene | {"scales": -scene["scales"]}, cameras, backend=backend)
    assert torch.equal(positive.color, negative.color)
    assert torch.equal(positive.radii, negative.radii)
    torch.testing.assert_close(gradients["scales"], -mirrored["scales"])


SINGULAR = {
    "zero": torch.zeros(4, 4),
    "one depth for all": torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0])),
    "a line": torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])),
    "no clip w": torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])),
    "clip w that cancels": torch.diag(torch.tensor([0.0, 0.0, 0.0, -1e-7])),
}


@pytest.mark.parametrize("name", ["viewmatrix", "projmatrix"])
@pytest.mark.parametrize("kind", SINGULAR)
def test_singular_matrices_are_drawn_without_nan(backend, name, kind):
    cameras = orbit(1, 20, 20)
    cameras[name] = cameras[name] @ SINGULAR[kind] if kind != "clip w that cancels" else SINGULAR[kind][None]
    drawn, gradients = draw(cloud(20), cameras, backend=backend)
    assert all(torch.isfinite(image).all() for image in drawn)
    assert all(torch.isfinite(g).all() for g in gradients.values())


def test_opacities_outside_of_their_range_are_drawn_without_nan(backend):
    scene = cloud(20)
    scene["opacities"] = torch.linspace(-1.0, 3.0, 20)[:, None]
    drawn, gradients = draw(scene, orbit(1, 20, 20), backend=backend)
    assert drawn.alpha.min() >= 0
    assert drawn.alpha.max() < 1
    assert all(torch.isfinite(g).all() for g in gradients.values())


def bad(**changes):
    """Arguments of a good call, with some changed."""
    good = {"means2D": torch.zeros(1, 5, 3), "sh_degree": 0, **cloud(5), **orbit(1, 9, 9)}
    return {name: value for name, value in (good | changes).items() if value is not ...}


TENSORS = [name for name, value in bad().items() if isinstance(value, torch.Tensor) and name != "means3D"]


@pytest.mark.parametrize("name", [*TENSORS, "colors_precomp", "cov3D_precomp"])
def test_mixed_types_and_devices_are_refused_by_name(backend, name):
    given = bad()
    if name == "colors_precomp":
        given[name] = given.pop("shs")[:, 0]
    if name == "cov3D_precomp":
        given[name] = covariances(given.pop("scales"), given.pop("rotations"))
    with pytest.raises(
        TypeError, match=rf"^{name}: expected torch.float32 as means3D has, got torch.float64$"
    ):
        rasterize(**given | {name: given[name].double()}, backend=backend)
    with pytest.raises(ValueError, match=rf"^{name}: expected device cpu as means3D has, got meta$"):
        rasterize(**given | {name: given[name].to("meta")}, backend=backend)


NAN = torch.tensor([[math.nan, 0.0, 0.0]]).expand(5, 3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"colors_precomp": torch.zeros(5, 3)}, ValueError, "shs, colors_precomp: .*, got both"),
        ({"shs": None}, ValueError, "shs, colors_precomp: .*, got neither"),
        (
            {"cov3D_precomp": torch.zeros(5, 6)},
            ValueError,
            "cov3D_precomp: expected either .*, got scales and rotations and cov3D_precomp",
        ),
        ({"scales": None}, ValueError, "cov3D_precomp: expected either .*, got rotations$"),
        (
            {"scales": None, "rotations": None},
            ValueError,
            "cov3D_precomp: expected either .*, got none of them",
        ),
        ({"means3D": torch.zeros(5, 2)}, ValueError, r"means3D: expected shape \(\*, 3\), got \(5, 2\)"),
        ({"means3D": [[0.0] * 3] * 5}, TypeError, "means3D: expected a torch.Tensor, got list"),
        ({"means3D": torch.zeros(5, 3).half()}, TypeError, "means3D: expected float32 or float64"),
        (
            {"means3D": torch.zeros(5, 3).double()},
            TypeError,
            "means2D: expected torch.float64 as means3D has",
        ),
        ({"opacities": torch.zeros(5)}, ValueError, r"opacities: expected shape \(5, 1\)"),
        ({"shs": torch.zeros(5, 5, 3)}, ValueError, "shs: expected shape"),
        ({"rotations": torch.zeros(5, 3)}, ValueError, "rotations: expected shape"),
        ({"means2D": torch.zeros(2, 5, 3)}, ValueError, "means2D: expected shape"),
        ({"viewmatrix": torch.eye(4)}, ValueError, "expected shape"),
        ({"bg": torch.zeros(3)}, ValueError, "bg: expected shape"),
        ({"tanfovx": torch.zeros(1)}, ValueError, "positive"),
        ({"sh_degree": 1}, ValueError, "1 needs 4 coefficients, shs has 1"),
        ({"sh_degree": 4}, ValueError, "expected 0, 1, 2 or 3, got 4"),
        ({"sh_degree": [0, 0]}, ValueError, "expected one int or 1 of them, got 2"),
        ({"sh_degree": None}, TypeError, "sh_degree: expected one int or 1 of them, got None"),
        ({"sh_degree": [0.5]}, TypeError, r"sh_degree: expected one int or 1 of them, got \[0.5\]"),
        ({"scale_modifier": None}, TypeError, "scale_modifier: expected a number, got NoneType"),
        ({"image_width": 0}, ValueError, "image_width: expected 1 to 16384 pixels, got 0"),
        ({"image_height": 100_000}, ValueError, "image_height: expected 1 to 16384 pixels, got 100000"),
        ({"image_height": 9.0}, TypeError, "image_height: expected an int, got float"),
        ({"scale_modifier": 0.0}, ValueError, "scale_modifier: expected a positive number"),
        ({"backend": "vulkan"}, ValueError, "backend: expected"),
        (
            {"backend": "cuda"},
            ValueError,
            "expected float32 tensors on a CUDA device, got torch.float32 on cpu",
        ),
        ({"means3D": NAN}, ValueError, "means3D: expected finite"),
        ({"scales": NAN / 0}, ValueError, "scales: expected finite"),
        ({"shs": torch.full((5, 1, 3), math.inf)}, ValueError, "shs: expected finite"),
        ({"viewmatrix": torch.full((1, 4, 4), math.nan)}, ValueError, "viewmatrix: expected finite"),
        ({"tanfovx": torch.full((1,), math.nan)}, ValueError, "tanfovx, tanfovy: expected finite"),
        ({"shs": None, "colors_precomp": NAN}, ValueError, "colors_precomp: expected finite"),
        (
            {"scales": None, "rotations": None, "cov3D_precomp": torch.full((5, 6), math.inf)},
            ValueError,
            "cov3D_precomp: expected finite",
        ),
        ({"means2D": None, "absgrad": True}, ValueError, "means2D: expected a tensor"),
        ({"image_width": np.bool_(True)}, TypeError, "image_width: expected an int, got bool"),
        ({"image_width": np.float64(9)}, TypeError, "image_width: expected an int, got float64"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes, error, message):
    for backend in BACKENDS if "backend" not in changes else [changes["backend"]]:
        with pytest.raises(error, match=message) as caught:
            rasterize(**bad(**(changes | {"backend": backend})))
        assert "\n" not in str(caught.value)


def test_classic_interface_refuses_bad_settings():
    cameras = orbit(1, 9, 9)
    scene = cloud(5) | {"means2D": torch.zeros(5, 3)}
    with pytest.raises(ValueError, match="viewmatrix: expected shape"):
        GaussianRasterizer(settings(cameras, viewmatrix=torch.eye(3)))(**scene)
    with pytest.raises(TypeError, match="tanfovx: expected a number, got NoneType"):
        GaussianRasterizer(settings(cameras, tanfovx=None))(**scene)
    with pytest.raises(ValueError, match=r"means2D: expected shape \(5, 3\) or \(5, 2\), got \(4, 3\)"):
        GaussianRasterizer(settings(cameras))(**scene | {"means2D": torch.zeros(4, 3)})
    with pytest.raises(TypeError, match="bg: expected a torch"):
        GaussianRasterizer(settings(cameras, bg=(0, 0, 0)))(**scene)
    with pytest.raises(TypeError, match="float32"):
        rasterize(
            **(bad(backend="cpu") | {n: v.double() for n, v in bad().items() if isinstance(v, torch.Tensor)})
        )


def test_without_the_kernel_pytorch_serves_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("no such file")))
    cpu.kernel.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert torch.isfinite(rasterize(**bad()).color).all()
            rasterize(**bad())
        with pytest.raises(RuntimeError, match="compiled rasterizer is missing"):
            rasterize(**bad(backend="cpu"))
    finally:
        monkeypatch.undo()
        cpu.kernel.cache_clear()
    assert len(caplog.records) == 1
    assert "C++ compiler" in caplog.text


def test_the_example_of_the_readme_runs():
    readme = Path(__file__).resolve().parents[1] / "README.md"
    scope: dict = {}
    exec(readme.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], scope)
    assert scope["color"].shape == (3, 256, 256)
    assert scope["means"].grad.abs().sum() > 0
    assert scope["screen"].grad.abs().sum() > 0


def test_threads_are_set_and_reset():
    set_num_threads(3)
    assert get_num_threads() == 3
    set_num_threads(None)
    assert get_num_threads() == torch.get_num_threads()
    with pytest.raises(ValueError, match="1 to 1024"):
        set_num_threads(0)
