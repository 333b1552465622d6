"""The operator M_ψ: its size, shapes, and normalisation."""

import pytest
import torch
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F

from arguments import VDMParams
from guidance.degradation import Pointwise, ULite, build_degradation, channels_first
from tests.tolerances import NETWORK


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def operator(shape=(4, 32, 32), seed=0, **settings):
    return build_degradation(VDMParams(**settings), shape, torch.Generator().manual_seed(seed))


def test_u_lite_has_its_published_size():
    assert parameters(ULite(4)) == 879_252


def test_u_lite_in_its_papers_form_has_878k_parameters():
    ulite = ULite(3)
    ulite.tail = torch.nn.Conv2d(16, 1, 1)
    assert parameters(ulite) == 878_417


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_product_is_the_convolution_of_one_pixel(layout):
    fast = Pointwise(5, 3).double()
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    expected = F.conv2d(x, fast.weight, fast.bias)
    assert torch.allclose(fast(x), expected, rtol=1e-12)
    weights = torch.randn_like(expected)
    found, wanted = (
        torch.autograd.grad((each * weights).sum(), [x, fast.weight, fast.bias])
        for each in (fast(x), expected)
    )
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("timed", ["none", "film"])
@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (2, 4, 64, 64), (1, 3, 16, 16), (3, 4, 40, 24)])
def test_every_latent_size_keeps_its_shape(norm, timed, shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mapped = operator(shape[1:], m_norm=norm, m_time=timed)(noise, torch.full((shape[0],), 500))
    assert mapped.shape == shape
    assert mapped.isfinite().all()


def test_time_modulation_starts_as_the_untimed_network_and_learns():
    noise, timesteps = torch.randn(2, 4, 32, 32), torch.tensor([20, 900])
    timed, plain = operator(m_time="film", m_norm="group"), operator(m_time="none", m_norm="group")
    plain.load_state_dict(
        {name: value for name, value in timed.state_dict().items() if name in plain.state_dict()}
    )
    assert torch.equal(timed(noise, timesteps), plain(noise, timesteps))

    optimizer = torch.optim.Adam(timed.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.mse_loss(timed(noise, timesteps), noise).backward()
        optimizer.step()
    assert not torch.equal(timed(noise, timesteps), timed(noise, timesteps.flip(0)))


def test_batch_statistics_are_those_of_the_batch_in_evaluation_too():
    noise, timesteps = torch.randn(2, 4, 32, 32), torch.tensor([20, 20])
    ulite = operator()
    assert torch.equal(ulite.train()(noise, timesteps), ulite.eval()(noise, timesteps))
    assert not any("running" in name for name in ulite.state_dict())


def test_group_statistics_do_not_mix_views():
    noise, timesteps = torch.randn(2, 4, 32, 32), torch.tensor([20, 20])
    ulite = operator(m_norm="group")
    assert torch.allclose(
        ulite(noise, timesteps)[:1], ulite(noise[:1], timesteps[:1]), atol=NETWORK[torch.float32]
    )


def test_a_single_value_a_channel_is_normalised_over_groups_only_there():
    ulite = operator()
    norm = ulite.bottleneck.norm.norm
    one, two = torch.randn(1, 512, 1, 1), torch.randn(2, 512, 1, 1)
    assert torch.allclose(norm(one), F.group_norm(one, 8), atol=1e-5)
    assert torch.allclose(norm(two), F.batch_norm(two, None, None, training=True), atol=1e-5)


def test_linear_operator_is_an_elementwise_weight_that_starts_at_one():
    linear, noise = operator((4, 8, 8), operator="linear"), torch.randn(2, 4, 8, 8)
    assert parameters(linear) == 4 * 8 * 8
    assert torch.equal(linear(noise, torch.tensor([1, 1])), noise)


def test_noisy_operator_adds_a_learned_tensor_that_starts_at_zero():
    noise, timesteps = torch.randn(1, 4, 32, 32), torch.tensor([1])
    noisy = operator(operator="ulite_noise")
    assert parameters(noisy) == 879_252 + 4 * 32 * 32
    assert torch.equal(noisy(noise, timesteps), noisy.operator(noise, timesteps))


def test_initial_weights_are_a_function_of_the_generator_alone():
    first = operator(seed=3).state_dict()
    torch.rand(1)
    second, other = operator(seed=3).state_dict(), operator(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_online_training_recovers_the_noise_from_a_scaled_copy():
    rng = torch.Generator().manual_seed(0)
    ulite = operator()
    optimizer = torch.optim.Adam(ulite.parameters(), lr=0.01)
    losses = []
    for _ in range(16):
        noise = torch.randn(2, 4, 32, 32, generator=rng)
        loss = F.mse_loss(ulite(0.5 * noise, torch.full((2,), 500)), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.6


@pytest.mark.parametrize("side", [1, 4])
def test_a_copy_of_what_a_pointwise_convolution_leaves_is_channels_first(side):
    """As PyTorch reads strides when it chooses a kernel; of one pixel `contiguous` would copy nothing."""
    left = Pointwise(8, 16)(torch.randn(2, 8, side, side))
    assert suggest_memory_format(left) is torch.channels_last
    copied = channels_first(left)
    assert torch.equal(copied, left) and suggest_memory_format(copied) is torch.contiguous_format
