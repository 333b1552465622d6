"""Normal noise from one seeded CPU generator, so that a run is the same on every device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from utils.distributed import drawn


def standard_normal_like(reference: Tensor, rng: torch.Generator) -> Tensor:
    """N(0, I) of the shape and on the device of `reference`, float32, drawn on the CPU from `rng`."""
    noise = torch.randn(reference.shape, generator=rng, pin_memory=reference.is_cuda)
    return noise.to(reference.device, non_blocking=True)


def noise_of_views(latents: Float[Tensor, "B ..."], rng: torch.Generator) -> Float[Tensor, "B ..."]:
    """N(0, I) for each view: what it gets does not depend on how many processes share the batch."""
    return drawn(
        lambda views: standard_normal_like(latents[:1].expand(views, *latents.shape[1:]), rng), len(latents)
    )


def sample_noise(
    latents: Float[Tensor, "B C h w"], rng: torch.Generator, *, offset: float = 0.0
) -> Float[Tensor, "B C h w"]:
    """ε of Eq. 6: standard normal, plus `offset` times one normal number a channel that all views and pixels share.

    The paper's ε has no offset, and the operator regresses onto ε; LucidDreamer's has 0.1.
    """
    noise = noise_of_views(latents, rng)
    if offset:
        noise = noise + offset * standard_normal_like(latents[:1, :, :1, :1], rng)
    return noise


@contextmanager
def seeded(rng: torch.Generator) -> Iterator[None]:
    """Within the block, initial weights of modules are drawn from `rng`; torch's own state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
        yield
