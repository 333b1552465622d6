"""Group normalisation by sums of channels: PyTorch's own is the slow twin."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guidance.prior.group_norm import GroupNorm, adopt, normalize
from tests.tolerances import EPS, FORMULA, SUM

SHAPES = {"images": (3, 12, 5, 7), "words": (2, 8, 6), "vectors": (4, 12), "one pixel": (2, 16, 1, 1)}
FIRST, LAST = torch.contiguous_format, torch.channels_last
LAID_OUT = {name: (shape, FIRST) for name, shape in SHAPES.items()} | {
    f"{name}, channels last": (shape, LAST) for name, shape in SHAPES.items() if len(shape) == 4
}


def drawn(shape, dtype, layout=torch.contiguous_format):
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    if layout is torch.channels_last:
        x = x.to(memory_format=layout)
    weight, bias = torch.randn(2, shape[1], dtype=torch.float64)
    return [each.to(dtype).requires_grad_() for each in (x, weight, bias)]


def results(function, inputs, weights):
    """Value, and gradient to all three."""
    x, weight, bias = inputs
    found = function(x, weight, bias)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), inputs)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("shape", "layout"), LAID_OUT.values(), ids=LAID_OUT)
def test_values_and_gradients_are_those_of_pytorch(shape, groups, layout):
    inputs, weights = drawn(shape, torch.float64, layout), torch.randn(shape, dtype=torch.float64)
    ours = results(lambda x, w, b: normalize(x, groups, w, b, 1e-5), inputs, weights)
    theirs = results(lambda x, w, b: F.group_norm(x, groups, w, b, 1e-5), inputs, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=SUM[torch.float64], atol=100 * SUM[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32_and_rounded_once(dtype):
    """Squares of these would overflow float16, and a sum of as many values in bfloat16 loses most of them."""
    x, weight, bias = drawn((1, 8, 96, 96), dtype)
    x = (200 * x).detach()
    found = normalize(x, 2, weight, bias, 1e-5)
    exact = F.group_norm(x.double(), 2, weight.double(), bias.double(), 1e-5)
    assert found.dtype == dtype
    # half a unit of the last place, and float32's rounding
    assert ((found - exact).abs() <= (EPS[dtype] / 2 + SUM[torch.float32]) * exact.abs().clamp_min(1.0)).all()


def test_no_root_is_taken_of_a_variance_that_is_nothing_but_rounding():
    """E[x²] - E[x]² of equal values may come out less than zero: here by 0.2, of 1.5 million."""
    x = torch.full((1, 8, 96, 96), 1234.5)
    assert normalize(x, 4, torch.ones(8), torch.zeros(8), 1e-5).isfinite().all()
    small = normalize(x / 1e4, 4, torch.ones(8), torch.arange(8.0), 1e-5)
    torch.testing.assert_close(small[0, :, 0, 0], torch.arange(8.0), rtol=0, atol=0.01)


def test_channels_last_stays_so():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    found = normalize(x, 4, torch.ones(8), torch.zeros(8), 1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_network_takes_it_with_its_weights_and_uses_it_only_where_it_is_compiled(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.GroupNorm(2, 8, affine=False))
    nn.init.normal_(network[1].weight)
    x = torch.randn(2, 3, 4, 4)
    expected = network(x)
    adopt(network)
    assert [type(each) for each in network] == [nn.Conv2d, GroupNorm, nn.GroupNorm]
    assert torch.equal(network(x), expected)
    called = []
    monkeypatch.setattr(
        "guidance.prior.group_norm.normalize", lambda *words: called.append(normalize(*words)) or called[-1]
    )
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(network(x), expected, rtol=FORMULA[torch.float32], atol=SUM[torch.float32])
    assert len(called) == 1
