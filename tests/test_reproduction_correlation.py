"""Figure 11 on a Gaussian prior, whose curves are known in closed form."""

import pytest
import torch

from dreammapping.reproduction import correlation
from dreammapping.reproduction.correlation import STEPS, Point
from tests.tiny_models import alphas_cumprod

CHANNELS, SIZE = 2, 4
DIMENSIONS = CHANNELS * SIZE * SIZE
SAMPLES = 6000


def stationary_covariance() -> torch.Tensor:
    """Of a picture on a torus whose two channels vary together: C ⊗ K with K circulant in both directions."""
    wave = torch.fft.fftfreq(SIZE, 1.0 / SIZE, dtype=torch.float64)
    spectrum = 4.0 / (1.0 + 3.0 * (wave[:, None].square() + wave[None].square()))
    pixel = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    pixel[0, 0] = 1.0
    kernel = torch.fft.ifft2(torch.fft.fft2(pixel) * spectrum).real
    rows = [torch.roll(kernel, (y, x), (0, 1)).flatten() for y in range(SIZE) for x in range(SIZE)]
    channels = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    return torch.kron(channels, torch.stack(rows))


def root(matrix: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp_min(0.0).sqrt().diag() @ vectors.T


class GaussianPrior:
    """x_0 ~ N(0, S), whose exact prediction is E[ε | x_t] = σ A⁻¹ x_t with A = ᾱ S + σ² I."""

    def __init__(self, covariance: torch.Tensor) -> None:
        self.covariance = covariance

    def at(self, t: int) -> tuple[float, torch.Tensor]:
        """σ, and A⁻¹."""
        signal = alphas_cumprod()[t].item()
        matrix = signal * self.covariance + (1.0 - signal) * torch.eye(
            len(self.covariance), dtype=torch.float64
        )
        return (1.0 - signal) ** 0.5, torch.linalg.inv(matrix)

    def sample(self, t: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and the noise in what they predict from."""
        sigma, inverse = self.at(t)
        clean, noise = (
            torch.randn(SAMPLES, DIMENSIONS, generator=rng, dtype=torch.float64) for _ in range(2)
        )
        noisy = (1.0 - sigma**2) ** 0.5 * clean @ root(self.covariance) + sigma * noise
        shape = (SAMPLES, CHANNELS, SIZE, SIZE)
        return (sigma * noisy @ inverse).view(shape), noise.view(shape)

    def curve(self, t: int) -> tuple[float, float, float]:
        """Variance, lower bound and ρ: Cov(ε_φ, ε) = Cov(ε_φ) = σ² A⁻¹."""
        sigma, inverse = self.at(t)
        trace = inverse.trace().item()
        coefficient = sigma * trace / root(inverse).trace().item()
        return sigma**2 * trace / DIMENSIONS, sigma * (trace / DIMENSIONS) ** 0.5, coefficient


@pytest.fixture(scope="module")
def prior():
    return GaussianPrior(stationary_covariance())


# The standard error of a mean over SAMPLES is 1.3 %, of all elements less; roots are biased by D / SAMPLES / 8.
TOLERANCE = 3.0 / SAMPLES**0.5


@pytest.mark.parametrize("t", [20, 100, 300, 500, 980])
def test_the_numbers_of_a_gaussian_prior_are_those_of_its_formula(t, prior, rng):
    expected = prior.curve(t)
    found = correlation.point(t, *prior.sample(t, rng))
    assert (found.variance, found.lower_bound, found.stationary) == pytest.approx(expected, rel=TOLERANCE)
    assert found.on_crops == pytest.approx(expected[2], rel=TOLERANCE)  # one crop is the whole


def test_a_crop_has_the_coefficient_of_its_own_covariance(prior, rng):
    sigma, inverse = prior.at(300)
    inside = torch.zeros(CHANNELS, SIZE, SIZE, dtype=torch.bool)
    inside[:, :2, :2] = True
    part = sigma**2 * inverse[inside.flatten()][:, inside.flatten()]
    expected = part.trace().item() / root(part).trace().item()
    assert correlation.on_crops(*prior.sample(300, rng), crop=2) == pytest.approx(expected, rel=TOLERANCE)


def test_too_few_crops_say_nothing(prior, rng):
    predictions, noise = (each[: 10 * DIMENSIONS - 1] for each in prior.sample(300, rng))
    assert correlation.on_crops(predictions, noise) is None
    assert correlation.on_crops(predictions, noise, crop=2) is not None
    assert (
        correlation.on_crops(predictions, noise, crop=2, pictures=19) is None
    )  # 4 places of each, 8 dimensions
    assert correlation.on_crops(predictions, noise, crop=2, pictures=20) is not None


def test_the_bound_is_below_and_meets_the_coefficient_where_nothing_is_correlated(prior, rng):
    _, bound, coefficient = prior.curve(100)
    assert bound < coefficient
    noise = torch.randn(SAMPLES, CHANNELS, SIZE, SIZE, generator=rng)
    assert correlation.lower_bound(2.0 * noise, noise) == pytest.approx(1.0, rel=TOLERANCE)
    assert correlation.stationary(2.0 * noise, noise) == pytest.approx(1.0, rel=TOLERANCE)
    assert correlation.lower_bound(-noise, noise) == pytest.approx(-1.0, rel=TOLERANCE)


def test_the_curve_falls_towards_small_t(prior):
    points = [Point(t, *(prior.curve(t)), None, SAMPLES) for t in STEPS]
    assert correlation.falls(points) == pytest.approx(1.0)
    assert correlation.falls([Point(t, 1.0, -t, 0.0, None, 2) for t in STEPS]) == pytest.approx(-1.0)
