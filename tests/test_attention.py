"""Attention of wide heads: as products of matrices it is the fused one, rounded elsewhere."""

import subprocess
import sys

import pytest
import torch

from arguments import GuidanceParams, HardwareParams
from guidance.prior import attention
from guidance.prior.attention import Products, set_wide_heads
from guidance.prior.group_norm import GroupNorm
from guidance.prior.score_model import ScoreModel
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.repository import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def wide():
    from diffusers.models.attention_processor import Attention

    words = {"norm_num_groups": 8, "residual_connection": True, "bias": True, "rescale_output_factor": 2.0}
    block = Attention(640, heads=2, dim_head=320, **words)
    narrow = Attention(320, heads=2, dim_head=160)
    return torch.nn.ModuleList([block, narrow]).requires_grad_(False)


@pytest.fixture
def all_wide(monkeypatch):
    monkeypatch.setattr(attention, "WIDEST", 0)


@pytest.fixture
def named_a_card(monkeypatch):
    """Models stay on the CPU, and nothing is compiled: only the device's name is a card's."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, backend: None)
    monkeypatch.setattr("guidance.prior.score_model.keep_compiled", lambda: None)

    def compile_as(model, device):
        model.device = torch.device(device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False):
            model.compile()

    return compile_as


def model_of(folder, device=CPU, **hardware):
    hardware = HardwareParams(**{"memory": "max", **hardware})
    return ScoreModel.from_pretrained(GuidanceParams(model_key=str(folder)), device, hardware=hardware)


def passes(network):
    """An output and its gradient to the input."""
    torch.manual_seed(0)
    x = torch.randn(2, 640, 6, 5, requires_grad=True)
    found = network[0](x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    return found.detach(), gradient


def kinds(network):
    return [type(each.processor) for each in network.modules() if hasattr(each, "processor")]


def test_products_of_matrices_have_the_numbers_of_the_fused_kernel(wide):
    expected, before = passes(wide), kinds(wide)
    set_wide_heads(wide, fused=False)
    assert kinds(wide) == [Products, before[1]]
    for one, other in zip(passes(wide), expected, strict=True):
        assert (one - other).norm() < NETWORK[torch.float32] * other.norm()
    set_wide_heads(wide, fused=True)
    assert kinds(wide) == before


@pytest.mark.parametrize(
    ("device", "memory", "fused"), [("cuda", "max", False), ("cuda", "8gb", True), ("cpu", "max", True)]
)
def test_a_compiled_encoder_takes_them_on_a_card_with_room_and_another_run_does_not(
    tmp_path, all_wide, named_a_card, device, memory, fused
):
    model = model_of(save_pipeline(tmp_path), memory=memory)
    decoders = kinds(model.vae.decoder)
    named_a_card(model, device)
    assert (Products in kinds(model.vae.encoder)) is not fused
    model.anew(model._params, HardwareParams(memory="max"))
    assert Products not in kinds(model.vae.encoder)
    assert kinds(model.vae.decoder) == decoders


def test_the_estimate_of_memory_knows_of_their_scores(tmp_path, all_wide, named_a_card):
    model = model_of(save_pipeline(tmp_path))
    fused = model.estimate_bytes(8, 1)
    named_a_card(model, "cuda")
    assert model.estimate_bytes(8, 1) > fused


ONE_PIECE = """
import sys
import torch
from torch._dynamo.testing import CompileCounter
from arguments import GuidanceParams, HardwareParams
from guidance.prior import attention
from guidance.prior.score_model import ScoreModel

attention.WIDEST = 0
model = ScoreModel.from_pretrained(GuidanceParams(model_key=sys.argv[1]), "cpu", HardwareParams(memory="max"))
encoder, images = model.vae.encoder, torch.rand(2, 3, *model.image_size)
expected = encoder(images)
attention.set_wide_heads(encoder, fused=False)
counter = CompileCounter()
found = torch.compile(encoder, backend=counter)(images)
print(counter.frame_count, float((found - expected).norm() / expected.norm()))
"""


def test_a_compiled_encoder_is_one_piece_with_norms_and_products_of_its_own(tmp_path):
    """In a process of its own: the tests' checks of shapes are Python between the pieces."""
    words = [sys.executable, "-c", ONE_PIECE, str(save_pipeline(tmp_path))]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    pieces, distance = printed.split()
    assert int(pieces) == 1 and 0 < float(distance) < NETWORK[torch.float32]


def test_every_network_of_a_prior_has_norms_of_its_own(prior):
    model = model_of(prior)
    for network in (model.unet, model.vae):
        norms = [each for each in network.modules() if isinstance(each, torch.nn.GroupNorm)]
        assert all(type(each) is GroupNorm for each in norms)
    assert any(type(each) is GroupNorm for each in model.unet.modules())


HALF = """
import sys
import torch
from arguments import GuidanceParams, HardwareParams
from guidance.prior import attention
from guidance.prior.score_model import ScoreModel

attention.WIDEST = 0
params = GuidanceParams(model_key=sys.argv[1])
model = ScoreModel.from_pretrained(params, torch.device("cuda"), HardwareParams(memory="max"))
images = torch.rand(2, 3, *model.image_size, device="cuda", requires_grad=True)

def passes():
    found = model.encode_images(images, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(found.square().sum(), images)
    return found.detach(), gradient

expected = passes()
model.compile()
for one, other in zip(passes(), expected, strict=True):
    print(float((one - other).norm() / other.norm()))
"""


def test_a_compiled_encoder_in_half_precision_on_a_gpu_is_the_eager_one(tmp_path, gpu):
    """In a process of its own, for the same reason."""
    words = [sys.executable, "-c", HALF, str(save_pipeline(tmp_path))]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    distances = [float(line) for line in printed.split()]
    assert len(distances) == 2 and all(each < NETWORK[torch.float16] for each in distances)
