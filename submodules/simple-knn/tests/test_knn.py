"""distCUDA2 against all pairs, on clouds that break trees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simple_knn import _C
from simple_knn._C import distCUDA2

CLOUDS = {
    "uniform": lambda rng: torch.rand(900, 3, generator=rng),
    "duplicates": lambda rng: torch.randint(0, 4, (500, 3), generator=rng).float(),
    "all the same": lambda _: torch.full((300, 3), 0.3),
    "line": lambda rng: torch.rand(400, 1, generator=rng) * torch.tensor([[1.0, -2.0, 0.5]]),
    "plane": lambda rng: torch.rand(400, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0]),
    "far clusters": lambda rng: (
        torch.randn(400, 3, generator=rng) + 1e4 * torch.arange(400).remainder(3)[:, None]
    ),
    "offset": lambda rng: torch.rand(400, 3, generator=rng) * 0.01 + 500.0,
    "scales": lambda rng: torch.randn(500, 3, generator=rng) * torch.logspace(-6, 6, 500)[:, None],
    "four": lambda rng: torch.rand(4, 3, generator=rng),
}


def all_pairs(points: torch.Tensor) -> torch.Tensor:
    squared = (points[:, None] - points[None]).square().sum(-1).fill_diagonal_(float("inf"))
    return squared.sort(dim=1).values[:, :3].mean(1)


@pytest.fixture(params=["compiled", "scipy"])
def implementation(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setattr(_C, "_library", lambda: None)
    elif _C._library() is None:
        pytest.skip("the compiled search was not built")


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.usefixtures("implementation")
def test_equals_all_pairs(name):
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    torch.testing.assert_close(distCUDA2(points), all_pairs(points), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_gpu_path_equals_all_pairs(name):
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    torch.testing.assert_close(_C._by_all_pairs(points, 3), all_pairs(points), rtol=1e-5, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_fewer_than_four_points():
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert distCUDA2(points[:0]).shape == (0,)
    assert distCUDA2(points[:1]).tolist() == [0.0]
    assert distCUDA2(points[:2]).tolist() == [1.0, 1.0]
    assert distCUDA2(points).tolist() == pytest.approx([2.5, 3.0, 4.5])


@settings(max_examples=40, deadline=None)
@given(count=st.integers(4, 120), levels=st.integers(1, 50), seed=st.integers(0, 1000))
def test_any_lattice_cloud(count, levels, seed):
    points = torch.randint(0, levels, (count, 3), generator=torch.Generator().manual_seed(seed)).float()
    torch.testing.assert_close(distCUDA2(points), all_pairs(points))


def test_order_of_the_points_does_not_matter():
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 3, generator=rng)
    shuffle = torch.randperm(3000, generator=rng)
    assert torch.equal(distCUDA2(points[shuffle]), distCUDA2(points)[shuffle])
    strided = torch.cat([points, points], dim=1)[:, :3]
    assert torch.equal(distCUDA2(strided), distCUDA2(points))


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ([[0.0, 0.0, 0.0]], TypeError, "torch.Tensor"),
        (torch.zeros(5, 3, dtype=torch.float64), TypeError, "float32"),
        (torch.zeros(5, 2), ValueError, r"\(P, 3\)"),
        (torch.zeros(15), ValueError, r"\(P, 3\)"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), ValueError, "finite"),
        (torch.tensor([[0.0, float("inf"), 0.0]]), ValueError, "finite"),
    ],
)
def test_bad_points_are_refused(points, error, message):
    with pytest.raises(error, match=message):
        distCUDA2(points)
