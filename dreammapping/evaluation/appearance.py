"""How pictures look beside true ones: saturation of colours, and how much fine detail there is.

Score distillation errs to the colourful and the smooth, which scores against a text do not see.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from utils.errors import UserError

FINE = 0.125
"""Cycles per pixel from which on detail is fine: the upper two octaves that a picture has."""


def saturation(images: Float[Tensor, "V 3 H W"]) -> float:
    """Mean of (max - min) / max over the channels of the pixels that have colour at all, in [0, 1]."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    share = (high - low) / high.clamp_min(1e-6)
    coloured = share > 0.05
    return share[coloured].mean().item() if coloured.any() else 0.0


def spectrum(images: Float[Tensor, "V 3 S S"]) -> Float[Tensor, " bins"]:
    """Mean power of pictures at each whole number of cycles per picture side, float64.

    Entry k is that of all frequencies whose length rounds to k, summed over directions and averaged over views and
    channels; entry 0 is the squared mean. Their sum is the mean square of the pixels.

    Raises:
        UserError: the pictures are not square.
    """
    height, width = images.shape[-2:]
    if height != width:
        raise UserError(f"spectrum: expected square pictures, got {width}x{height}; crop them")
    cycles = torch.fft.fftfreq(height, 1.0 / height, dtype=torch.float64)
    ring = torch.hypot(cycles[:, None], cycles[None, :]).round().long()
    power = torch.fft.fft2(images.double(), norm="forward").abs().square().mean(dim=(0, 1))
    return torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add(0, ring.flatten(), power.flatten())


def fine_detail(images: Float[Tensor, "V 3 S S"], true: Float[Tensor, "W 3 S S"]) -> float:
    """Power above `FINE` relative to that of true pictures of the same size, in decibels.

    0: as much detail as the truth; -3: half of its power, smoother; above 0: noisier. Infinite where one has none.

    Raises:
        UserError: the pictures are not square, or not of one size.
    """
    if images.shape[-1] != true.shape[-1]:
        raise UserError(
            f"fine detail: expected pictures of one size, got {images.shape[-1]} and {true.shape[-1]} pixels; "
            "render both alike"
        )
    first = math.ceil(FINE * images.shape[-1])
    found, expected = (spectrum(each)[first:].sum().item() for each in (images, true))
    if found == 0.0 or expected == 0.0:
        return math.inf if found > 0.0 else -math.inf
    return 10.0 * math.log10(found / expected)
