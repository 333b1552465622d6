"""The schedule of 3D Gaussian Splatting's learning rates."""

import pytest

from utils.learning_rate import log_linear


def test_it_starts_ends_and_halves_the_logarithm():
    assert log_linear(0, 1e-2, 1e-4, 100) == pytest.approx(1e-2)
    assert log_linear(50, 1e-2, 1e-4, 100) == pytest.approx(1e-3)
    assert log_linear(100, 1e-2, 1e-4, 100) == pytest.approx(1e-4)
    assert log_linear(1000, 1e-2, 1e-4, 100) == pytest.approx(1e-4)
