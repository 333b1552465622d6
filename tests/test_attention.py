"""Attention of wide heads: as products of matrices it is the fused one, rounded elsewhere."""

import pytest
import torch

from arguments import HardwareParams
from guidance.prior import attention
from guidance.prior.attention import set_wide_heads
from tests.test_memory import model_of
from tests.tolerances import NETWORK


@pytest.fixture
def wide():
    from diffusers.models.attention_processor import Attention

    words = {"norm_num_groups": 8, "residual_connection": True, "bias": True, "rescale_output_factor": 2.0}
    block = Attention(640, heads=2, dim_head=320, **words)
    narrow = Attention(320, heads=2, dim_head=160)
    return torch.nn.ModuleList([block, narrow]).requires_grad_(False)


def results(network):
    torch.manual_seed(0)
    x = torch.randn(2, 640, 6, 5, requires_grad=True)
    found = network[0](x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    return found.detach(), gradient


def test_products_of_matrices_have_the_numbers_of_the_fused_kernel(wide):
    expected, kinds = results(wide), [type(each.processor).__name__ for each in wide]
    set_wide_heads(wide, fused=False)
    assert [type(each.processor).__name__ for each in wide] == ["Products", kinds[1]]
    for one, other in zip(results(wide), expected, strict=True):
        assert (one - other).norm() < NETWORK[torch.float32] * other.norm()
    set_wide_heads(wide, fused=True)
    assert [type(each.processor).__name__ for each in wide] == kinds


@pytest.mark.parametrize(
    ("device", "memory", "fused"), [("cuda", "max", False), ("cuda", "8gb", True), ("cpu", "max", True)]
)
def test_a_compiled_encoder_takes_them_on_a_card_with_room_and_another_run_does_not(
    prior, monkeypatch, device, memory, fused
):
    """The networks stay on the CPU here: only the device's name is a card's."""
    seen = []
    monkeypatch.setattr(
        "guidance.prior.score_model.set_wide_heads", lambda network, fused: seen.append(fused)
    )
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self: None)
    monkeypatch.setattr("guidance.prior.score_model.keep_compiled", lambda: None)
    assert attention.WIDEST == 256, "what flash attention is made for"
    model = model_of(prior, memory=memory)
    model.device = torch.device(device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        model.compile()
        assert seen == ([] if fused else [False])
        model.anew(model._params, HardwareParams(memory="max"))
        assert seen[-1] is True
