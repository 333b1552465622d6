"""The renders as training reads them: images in memory, labels as tensors, and the distinct captions."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from toybox import world
from toybox.dataset import load

COLOURS = tuple(world.COLOURS)


class Views:
    """One split in memory: images (N, 3, S, S) uint8, and the class indices (N,) of object, colour and view word."""

    def __init__(
        self, split: str, cache: Path, device: torch.device | str = "cpu", most: int | None = None
    ) -> None:
        stored = load(split, cache)
        self.device = device
        self.images = torch.from_numpy(np.array(stored.images[:most])).permute(0, 3, 1, 2)
        words = [world.VIEWS.index(world.view_word(angle)) for angle in stored.azimuth_deg[:most]]
        self.object = torch.from_numpy(stored.object[:most].astype(np.int64)).to(device)
        self.colour = torch.from_numpy(stored.colour[:most].astype(np.int64)).to(device)
        self.view = torch.tensor(words, device=device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pair(self) -> Tensor:
        """The (object, colour) index (N,): object times the number of colours plus colour."""
        return self.object * len(COLOURS) + self.colour

    def pixels(self, indices: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Images in [0, 1]."""
        return to_pixels(self.images[indices]).to(self.device)


def to_pixels(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes to [0, 1]."""
    return images.float() / 255.0


def pair_captions(view: str | None = None) -> list[str]:
    """The captions of all (object, colour) pairs in the order of the pair index, held-out ones too."""
    return [world.caption(name, colour, view) for name in world.OBJECTS for colour in COLOURS]


def recolour(images: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Permute the colour channels of images in [0, 1] and turn a third into their negatives, one draw for each."""
    count = len(images)
    order = torch.rand(count, 3, generator=generator).argsort(1).to(images.device)
    mixed = images.gather(1, order[:, :, None, None].expand_as(images))
    negative = torch.rand(count, generator=generator).to(images.device) < 1.0 / 3.0
    return torch.where(negative[:, None, None, None], 1.0 - mixed, mixed)


def jitter(images: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Random flip, zoom, shift and brightness of each image in [0, 1]; blur and noise, as renders of Gaussians have."""
    count, device = len(images), images.device
    draw = torch.rand(8, count, generator=generator).to(device)
    zoom = 0.8 + 0.35 * draw[0]
    affine = torch.zeros(count, 2, 3, device=device)
    affine[:, 0, 0] = zoom * torch.where(draw[1] < 0.5, -1.0, 1.0)
    affine[:, 1, 1] = zoom
    affine[:, :, 2] = 0.24 * (draw[2:4].T - 0.5)
    grid = functional.affine_grid(affine, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    for share, size in ((0.45, 3), (0.2, 5)):
        soft = draw[4] < share
        moved[soft] = functional.avg_pool2d(moved[soft], size, 1, size // 2, count_include_pad=False)
    moved = (0.85 + 0.3 * draw[5])[:, None, None, None] * moved
    rough = draw[6] < 0.5
    noise = torch.randn(moved[rough].shape, generator=generator).to(device)
    moved[rough] += 0.15 * draw[6, rough][:, None, None, None] * noise
    return moved.clamp(0.0, 1.0)
