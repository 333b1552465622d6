"""Any argument may be wrong in any way: a clear error or a finite image, on every backend."""

import math
import re

import pytest
import torch
from diff_gaussian_rasterization import cpu, rasterize, reference
from gaussian_scenes import cloud, covariances, orbit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

BACKENDS = ["torch", *(["cpu"] if cpu.available() else []), "cuda"]
WRONG = {
    "missing": lambda _: None,
    "empty": lambda t: t[:0],
    "flat": lambda t: t.reshape(-1),
    "shorter": lambda t: t[:-1],
    "narrower": lambda t: t[..., :-1],
    "longer": lambda t: torch.cat([t, t]),
    "deeper": lambda t: t[None],
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "integer": lambda t: t.long(),
    "elsewhere": lambda t: t.to("meta"),
    "list": lambda t: t.tolist(),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "not a number": lambda t: _with(t, math.nan),
    "infinite": lambda t: _with(t, math.inf),
    "zero": torch.zeros_like,
    "negative": lambda t: -t,
    "one huge": lambda t: _with(t, 1e20),
    "huge": lambda t: 1e15 * t,
    "tiny": lambda t: 1e-30 * t,
}
NUMBERS = {
    "image_width": [0, -5, 1, 17, 100_000, 8.0, True, None, "8"],
    "image_height": [0, -5, 1, 17, 100_000, 8.0, None],
    "sh_degree": [-1, 0, 1, 4, [0], [0, 0], [], None, 1.5],
    "scale_modifier": [0.0, -1.0, 1e-20, 1e20, math.nan, math.inf, None],
    "antialiasing": [True],
}
TENSORS = [
    *("means3D", "means2D", "opacities", "shs", "colors_precomp", "scales", "rotations", "cov3D_precomp"),
    *("viewmatrix", "projmatrix", "campos", "tanfovx", "tanfovy", "bg"),
]


def _with(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    if changed.is_floating_point():  # whole numbers hold no such value
        changed.view(-1)[-1:] = value
    return changed


def arguments(precomputed: bool) -> dict:
    given = cloud(7) | orbit(1, 18, 17) | {"means2D": torch.zeros(1, 7, 3), "sh_degree": 0}
    if precomputed:
        given["cov3D_precomp"] = covariances(given.pop("scales"), given.pop("rotations"))
        given["colors_precomp"] = given.pop("shs")[:, 0]
    return given


wrong_tensor = st.tuples(st.sampled_from(TENSORS), st.sampled_from(sorted(WRONG)))
wrong_number = st.sampled_from([(name, value) for name, values in NUMBERS.items() for value in values])


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(wrong_tensor | wrong_number, min_size=1, max_size=2), precomputed=st.booleans())
def test_wrong_arguments_are_refused_or_drawn(backend, faults, precomputed):
    given = arguments(precomputed)
    for name, fault in faults:
        if name in NUMBERS:
            given[name] = fault
        elif isinstance(given.get(name), Tensor):
            given[name] = WRONG[fault](given[name])
    leaves = [v.requires_grad_() for v in given.values() if isinstance(v, Tensor) and v.is_floating_point()]
    try:
        drawn = rasterize(**given, backend=backend, debug=True)
    except (TypeError, ValueError, RuntimeError) as error:
        assert "\n" not in str(error)
        assert re.match(rf"({'|'.join([*TENSORS, *NUMBERS, 'the rasterizer'])})\b", str(error))
        return
    for image in (drawn.color, drawn.depth, drawn.alpha):
        assert torch.isfinite(image).all()
    assert drawn.alpha.min() >= 0
    assert drawn.alpha.max() <= 1
    assert (drawn.radii >= 0).all()
    if drawn.color.requires_grad:
        drawn.color.sum().backward()
        assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_overflows_on_the_screen_leaves_gradients_finite(backend):
    given = arguments(precomputed=True)
    given["tanfovx"] = 1e-30 * given["tanfovx"]
    leaves = [given[name].requires_grad_() for name in ("means3D", "cov3D_precomp")]
    drawn = rasterize(**given, backend=backend)
    torch.autograd.backward([drawn.color.sum(), drawn.depth.sum()])
    assert all(leaf.grad is None or torch.isfinite(leaf.grad).all() for leaf in leaves)


def on_one_pixel(count: int, opacity: float) -> dict:
    cameras = orbit(1, 40, 40)
    return {
        "means3D": torch.zeros(count, 3),
        "means2D": torch.zeros(1, count, 2),
        "opacities": torch.full((count, 1), opacity),
        "colors_precomp": torch.full((count, 3), 0.5),
        "scales": torch.full((count, 3), 1e-3),
        "rotations": torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        "sh_degree": 0,
        **cameras,
    }


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize(("backend", "count"), [("torch", 40_000), ("cpu", 1_000_000), ("cuda", 40_000)])
def test_very_many_gaussians_on_one_pixel(backend, count):
    if backend not in BACKENDS:
        pytest.skip("the compiled kernel was not built")
    given = on_one_pixel(count, opacity=0.5)
    given["opacities"].requires_grad_()
    first = {n: v[:4000] for n, v in given.items() if isinstance(v, Tensor) and len(v) == count}
    few = rasterize(**given | first | {"means2D": torch.zeros(1, 4000, 2)}, backend="torch")
    drawn = rasterize(**given, backend=backend)
    torch.testing.assert_close(drawn.color, few.color.detach(), rtol=1e-5, atol=1e-5)
    drawn.color.sum().backward()
    gradient = given["opacities"].grad
    assert torch.isfinite(gradient).all()
    assert gradient[:3].abs().min() > 0
    assert gradient[4000:].abs().max() == 0  # hidden by those before


def test_lists_of_any_length_are_blended_in_parts(monkeypatch):
    """The reference holds no more than a part of a list at once; parts change nothing."""

    def draw_all():
        given = cloud(300, size=0.1)
        given["means3D"].requires_grad_()
        drawn = rasterize(
            means2D=torch.zeros(1, 300, 3), sh_degree=0, backend="torch", **given, **orbit(1, 20, 20)
        )
        (drawn.color.sum() + drawn.depth.sum()).backward()
        return drawn.color.detach(), given["means3D"].grad

    whole = draw_all()
    monkeypatch.setattr(reference, "GROUP_ELEMENTS", 7 * reference.TILE**2)
    for a, b in zip(draw_all(), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not cpu.available(), reason="the compiled kernel was not built")
def test_more_pairs_than_can_be_counted_are_refused():
    """2^20 tiles, each touched by 2100 Gaussians; the images are never written."""
    given = cloud(2100, size=50.0) | orbit(1, 16_384, 16_384)
    with pytest.raises(RuntimeError, match=r"2\^31 pairs|memory"):
        rasterize(means2D=torch.zeros(1, 2100, 3), sh_degree=0, backend="cpu", **given)
