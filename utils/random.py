"""Random numbers from one seeded generator on the host, made where they are needed."""

import torch
from jaxtyping import Float
from torch import Tensor


def standard_normal(
    shape: tuple[int, ...], rng: torch.Generator, device: torch.device
) -> Float[Tensor, "*shape"]:
    """N(0, I) on `device`.

    The host draws them itself for a CPU. For another device it draws a seed, because millions of numbers an iteration
    would keep the host, and then the bus, busier than the rest of the iteration.
    """
    if device.type == "cpu":
        return torch.randn(shape, generator=rng)
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def uniform(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Float[Tensor, "*shape"]:
    """Uniform in [0, 1) on `device`; as `standard_normal`."""
    if device.type == "cpu":
        return torch.rand(shape, generator=rng)
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.rand(shape, generator=torch.Generator(device).manual_seed(seed), device=device)
