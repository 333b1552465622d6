"""Laws of quaternions and spherical harmonics."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.gaussians import seeded
from utils.rotations import conjugate_quaternions, multiply_quaternions, quaternions_to_matrices
from utils.spherical_harmonics import C0, eval_sh, rgb_to_sh_dc, rotate_sh, sh_basis, sh_dc_to_rgb


def random_quaternions(count: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, 4, generator=seeded(seed), dtype=torch.float64), dim=-1)


def random_directions(count: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 3, generator=seeded(7), dtype=torch.float64), dim=-1)


def test_matrices_are_rotations():
    matrices = quaternions_to_matrices(random_quaternions(50))
    torch.testing.assert_close(matrices @ matrices.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))


def test_rotations_form_a_group():
    first, second = random_quaternions(50, 1), random_quaternions(50, 2)
    product = quaternions_to_matrices(multiply_quaternions(first, second))
    torch.testing.assert_close(product, quaternions_to_matrices(first) @ quaternions_to_matrices(second))
    unit = multiply_quaternions(first, conjugate_quaternions(first))
    torch.testing.assert_close(unit, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(50, 4))


def test_length_and_sign_do_not_matter():
    quats = random_quaternions(5)
    torch.testing.assert_close(quaternions_to_matrices(-3 * quats), quaternions_to_matrices(quats))


def test_quarter_turn_about_z_takes_x_to_y():
    half = math.sqrt(0.5)
    matrix = quaternions_to_matrices(torch.tensor([half, 0, 0, half]))
    torch.testing.assert_close(matrix @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))


def test_basis_is_orthonormal_on_the_sphere():
    # Gauss-Legendre in z times equal steps in azimuth integrates products of these polynomials exactly.
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(8)
    z = torch.from_numpy(nodes)[:, None].expand(8, 16)
    azimuth = (torch.arange(16, dtype=torch.float64) * math.tau / 16).expand(8, 16)
    radius = (1 - z * z).sqrt()
    directions = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], dim=-1).reshape(-1, 3)
    area = torch.from_numpy(weights)[:, None].expand(8, 16).reshape(-1) * math.tau / 16
    basis = sh_basis(3, directions)
    torch.testing.assert_close(basis.T @ (area[:, None] * basis), torch.eye(16, dtype=torch.float64))


def test_constants_and_signs_are_those_of_the_field():
    poles = torch.eye(3, dtype=torch.float64)
    x, y, z = sh_basis(1, poles)
    c1 = 0.4886025119029199
    assert x.tolist() == pytest.approx([C0, 0, 0, -c1], abs=1e-15)
    assert y.tolist() == pytest.approx([C0, -c1, 0, 0], abs=1e-15)
    assert z.tolist() == pytest.approx([C0, 0, c1, 0], abs=1e-15)
    diagonal = F.normalize(torch.tensor([[1.0, 2.0, -1.0]], dtype=torch.float64))
    expected = [  # the published constants times the monomials at (1, 2, -1) / sqrt(6)
        1.0925484305920792 * 2 / 6,
        -1.0925484305920792 * -2 / 6,
        0.31539156525252005 * (2 - 1 - 4) / 6,
        -1.0925484305920792 * -1 / 6,
        0.5462742152960396 * (1 - 4) / 6,
        *[
            value / 6**1.5
            for value in (
                -0.5900435899266435 * 2 * (3 - 4),
                2.890611442640554 * -2,
                -0.4570457994644658 * 2 * (4 - 1 - 4),
                0.3731763325901154 * -1 * (2 - 3 - 12),
                -0.4570457994644658 * 1 * (4 - 1 - 4),
                1.445305721320277 * -1 * (1 - 4),
                -0.5900435899266435 * 1 * (1 - 12),
            )
        ],
    ]
    assert sh_basis(3, diagonal)[0, 4:].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_rotated_harmonics_are_the_function_turned(degree):
    sh = torch.randn(20, (degree + 1) ** 2, 3, generator=seeded(), dtype=torch.float64)
    rotation = quaternions_to_matrices(random_quaternions(1)[0])
    directions = random_directions(20)
    turned = eval_sh(degree, rotate_sh(sh, rotation), directions @ rotation.T)
    torch.testing.assert_close(turned, eval_sh(degree, sh, directions), rtol=0, atol=1e-12)


def test_colour_of_band_zero_round_trips():
    rgb = torch.rand(10, 3, generator=seeded())
    torch.testing.assert_close(sh_dc_to_rgb(rgb_to_sh_dc(rgb)), rgb)
    everywhere = eval_sh(0, rgb_to_sh_dc(rgb)[:, None], random_directions(10).float()) + 0.5
    torch.testing.assert_close(everywhere, rgb)
