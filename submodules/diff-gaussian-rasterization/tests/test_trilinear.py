"""Trilinear interpolation: `grid_sample` in value and gradient, of the same bits on any number of threads."""

import pytest
import torch
from diff_gaussian_rasterization import cpu, trilinear
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

EPS = torch.finfo(torch.float32).eps
pytestmark = pytest.mark.skipif(not cpu.available(), reason="the compiled kernel was not built")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def by_grid_sample(table, points, side):
    """The same in the table's precision; `grid_sample` wants x last and first."""
    volume = table.t().reshape(1, -1, side, side, side)
    asked = (2 * points.to(table) - 1).flip(0).t().view(1, -1, 1, 1, 3)
    return (
        F.grid_sample(volume, asked, align_corners=True, padding_mode="border").view(table.shape[1], -1).t()
    )


@pytest.mark.parametrize(("side", "count"), [(2, 1), (3, 0), (7, 500), (33, 40_000)])
def test_it_is_grid_sample_in_value_and_gradient(side, count):
    table = torch.randn(side**3, 4, generator=rng()).requires_grad_()
    points = 1.4 * torch.rand(3, count, generator=rng(1)) - 0.2  # some lie outside
    mix = torch.randn(count, 4, generator=rng(2))
    mix[1::3] = 0  # rows without a gradient are left out
    mine = trilinear.interpolate(table, points)
    (gradient,) = torch.autograd.grad((mine * mix).sum(), table)
    twin = table.detach().double().requires_grad_()
    theirs = by_grid_sample(twin, points, side)
    (expected,) = torch.autograd.grad((theirs * mix).sum(), twin)
    # a place in its cell is known to a rounding of its place in the grid; a gradient is a sum over points
    assert torch.allclose(mine.double(), theirs, atol=32 * side * EPS)
    per_vertex = max(8 * count / side**3, 1)
    assert torch.allclose(gradient.double(), expected, atol=32 * side * per_vertex * EPS)


@pytest.mark.parametrize("threads", [2, 5])
def test_the_bits_are_those_of_one_thread(threads):
    table = torch.randn(17**3, 4, generator=rng()).requires_grad_()
    points, mix = torch.rand(3, 50_000, generator=rng(1)), torch.randn(50_000, 4, generator=rng(2))

    def run(count):
        cpu.set_num_threads(count)
        value = trilinear.interpolate(table, points)
        return value, *torch.autograd.grad(value, table, mix)

    try:
        one, several = run(1), run(threads)
    finally:
        cpu.set_num_threads(None)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


def test_what_is_no_number_is_answered_for_an_edge_and_reads_nothing_else():
    table = torch.arange(8.0)[:, None].expand(8, 4).contiguous()
    points = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38]]).expand(3, 4)
    assert trilinear.interpolate(table, points)[:, 0].tolist() == [0.0, 7.0, 0.0, 7.0]


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_a_table_that_is_no_cube_is_refused(rows):
    with pytest.raises(ValueError, match=rf"expected R³ rows, R at least 2, got {rows}"):
        trilinear.interpolate(torch.zeros(rows, 4), torch.zeros(3, 1))


TABLE, POINTS = torch.zeros(8, 4), torch.zeros(3, 1)


@pytest.mark.parametrize(
    ("table", "points"),
    [
        (TABLE.double(), POINTS),
        (torch.zeros(8, 3), POINTS),
        (TABLE.to("meta"), POINTS),
        (TABLE, POINTS.long()),
        (TABLE, POINTS.t()),
        (TABLE, POINTS[0]),
        (TABLE, POINTS.clone().requires_grad_()),
    ],
)
def test_other_tensors_do_not_fit_and_are_refused_by_name(table, points):
    assert trilinear.fits(TABLE, POINTS)
    assert not trilinear.fits(table, points)
    with pytest.raises(ValueError, match=r"expected float32 tensors on the CPU, a table of \(R³, 4\)"):
        trilinear.interpolate(table, points)


def test_tensors_without_memory_do_not_fit():
    with FakeTensorMode() as mode:
        assert not trilinear.fits(mode.from_tensor(TABLE), mode.from_tensor(POINTS))
