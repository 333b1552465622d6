"""Small Gaussians for the tests."""

import torch

from scene.gaussian_model import GaussianModel
from utils.spherical_harmonics import coefficient_count


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_gaussians(count: int = 12, sh_degree: int = 0, seed: int = 0) -> GaussianModel:
    """Gaussians of all sizes, shapes and colours around the origin."""
    rng = seeded(seed)
    model = GaussianModel(
        means=0.3 * torch.randn(count, 3, generator=rng),
        log_scales=-2.5 + 0.5 * torch.randn(count, 3, generator=rng),
        quats=torch.randn(count, 4, generator=rng),
        opacity_logits=torch.randn(count, 1, generator=rng),
        sh_dc=torch.randn(count, 1, 3, generator=rng),
        sh_rest=0.3 * torch.randn(count, coefficient_count(sh_degree) - 1, 3, generator=rng),
    )
    model.active_sh_degree = sh_degree
    return model
