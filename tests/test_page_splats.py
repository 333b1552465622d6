"""Gaussians as a page holds them are those of the model."""

import numpy as np
import pytest
import torch

from dreammapping.page.splats import pack
from tests.gaussians import random_gaussians
from utils.rotations import quaternions_to_matrices
from utils.spherical_harmonics import sh_dc_to_rgb


def shapes(quats, scales):
    """Covariances."""
    axes = quaternions_to_matrices(quats) * scales[:, None]
    return axes @ axes.transpose(1, 2)


@pytest.mark.parametrize("degree", range(4))
def test_packed_gaussians_are_those_of_the_model(degree):
    model = random_gaussians(40, sh_degree=degree)
    packed = pack(model)
    rest = 3 * ((degree + 1) ** 2 - 1)
    assert packed.texels == 2 + -(-rest // 8) and len(packed.data) == 40 * packed.texels * 16
    table = np.frombuffer(packed.data, "<u4").reshape(40, -1)
    halves = torch.from_numpy(table.view("<f2").astype(np.float32))
    near = {"rtol": 2**-11, "atol": 2**-24}  # a half's last bit, and its smallest number
    torch.testing.assert_close(torch.from_numpy(table[:, :3].copy().view("<f4")), model.means.detach())
    torch.testing.assert_close(halves[:, 6:9], sh_dc_to_rgb(model.sh_dc[:, 0]).detach(), **near)
    torch.testing.assert_close(halves[:, 9:10], model.opacities.detach(), **near)
    torch.testing.assert_close(halves[:, 10:13], model.log_scales.detach(), **near)
    torch.testing.assert_close(halves[:, 16 : 16 + rest], model.sh_rest.flatten(1).detach(), **near)
    axis = torch.from_numpy(table.view("<i2")[:, 13:16] / 32767.0)
    quats = torch.cat([(1 - axis.square().sum(1, keepdim=True)).clamp_min(0).sqrt(), axis], dim=1)
    found, expected = (
        shapes(each, model.scales.detach().double()) for each in (quats, model.rotations.detach().double())
    )
    largest = float(model.scales.detach().max()) ** 2
    torch.testing.assert_close(found, expected, rtol=0, atol=16 * 2**-15 * largest)


def test_colours_without_harmonics_are_packed_as_they_are_rendered():
    model = random_gaussians(10, sh_degree=2)
    packed = pack(model, direct_rgb=True)
    halves = np.frombuffer(packed.data, "<f2").reshape(10, -1)[:, 6:9].astype(np.float32)
    torch.testing.assert_close(
        torch.from_numpy(halves), model.sh_dc[:, 0].sigmoid().detach(), rtol=2**-11, atol=0
    )
    assert (packed.degree, packed.texels) == (0, 2)


def test_of_too_many_gaussians_the_most_visible_are_kept_in_their_order():
    model = random_gaussians(30)
    with torch.no_grad():
        model.opacity_logits[10:20] = 4.0
        model.log_scales[10:20] = 1.0
    packed = pack(model, most_bytes=10 * 32 + 31)
    assert (packed.count, packed.total) == (10, 30)
    means = np.frombuffer(packed.data, "<f4").reshape(10, -1)[:, :3]
    torch.testing.assert_close(torch.from_numpy(means.copy()), model.means[10:20].detach())
