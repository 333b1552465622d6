"""The pictures that training reads: renders of the disk cache, or an endless pool that the training device draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from toybox import world
from toybox.objects import solids
from toybox.raycast import Cameras, Draw, Layers, cast
from toybox.renders import load, sample_orbits, to_bytes

COLOURS = tuple(world.COLOURS)
_CHUNK = 64


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, S, S) in [0, 1] and their class indices (B,) of object, colour and view word."""

    images: Float[Tensor, "B 3 S S"]
    object: Int[Tensor, " B"]
    colour: Int[Tensor, " B"]
    view: Int[Tensor, " B"]

    @property
    def pair(self) -> Int[Tensor, " B"]:
        """The (object, colour) index: object times the number of colours plus colour."""
        return self.object * len(COLOURS) + self.colour

    @property
    def captions(self) -> list[str]:
        """What is in the images, with the view word."""
        rows = zip(self.object.tolist(), self.colour.tolist(), self.view.tolist(), strict=True)
        return [world.caption(world.OBJECTS[kind], COLOURS[c], world.VIEWS[view]) for kind, c, view in rows]


class Source(Protocol):
    """Where training pictures come from."""

    device: torch.device

    def __len__(self) -> int:
        """How many renders there are at a time."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Random pictures; `generator` is on the source's device."""
        ...

    def renew(self) -> None:
        """Replace a few renders, where that can be done."""
        ...


class Views:
    """One split of the disk cache in memory: images (N, 3, S, S) uint8, and the class indices (N,)."""

    def __init__(self, split: str, cache: Path, device: torch.device | str = "cpu") -> None:
        stored = load(split, cache)
        self.device = torch.device(device)
        self.images = torch.from_numpy(np.array(stored.images)).permute(0, 3, 1, 2)
        words = [world.VIEWS.index(world.view_word(angle)) for angle in stored.azimuth_deg]
        self.object = torch.from_numpy(stored.object.astype(np.int64)).to(device)
        self.colour = torch.from_numpy(stored.colour.astype(np.int64)).to(device)
        self.view = torch.tensor(words, device=device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pair(self) -> Tensor:
        """The (object, colour) index (N,): object times the number of colours plus colour."""
        return self.object * len(COLOURS) + self.colour

    def pixels(self, indices: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Images in [0, 1]."""
        return to_pixels(self.images[indices.cpu()].to(self.device))

    def at(self, chosen: Int[Tensor, " B"]) -> Batch:
        """The views of these indices."""
        return Batch(self.pixels(chosen), self.object[chosen], self.colour[chosen], self.view[chosen])

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        return self.at(torch.randint(len(self), (count,), generator=generator, device=self.device))

    def renew(self) -> None:
        """The disk cache stays as it is."""


class Pool:
    """Renders without paint and background, kept on `device` as bytes; each draw paints some and sets them before new
    backgrounds. Held-out pairs are never drawn. `draw` is that of `raycast.cast`."""

    @staticmethod
    def chunk_of(count: int) -> int:
        """How many views of one object a pool of `count` renders at once."""
        return max(1, min(_CHUNK, count // len(world.OBJECTS)))

    def __init__(
        self, count: int, size: int, device: torch.device, seed: int = 0, draw: Draw | None = None
    ) -> None:
        self.device, self._draw = device, draw
        self._generator = torch.Generator(device).manual_seed(seed)
        self._chunk = self.chunk_of(count)
        count -= count % (self._chunk * len(world.OBJECTS))
        self._layers = torch.empty(count, 5, size, size, dtype=torch.uint8, device=device)
        self._object = torch.empty(count, dtype=torch.int64, device=device)
        self._view = torch.empty(count, dtype=torch.int64, device=device)
        self._next = 0
        for _ in range(count // self._chunk):
            self.renew()

    def __len__(self) -> int:
        return len(self._layers)

    def renew(self) -> None:
        """Replace the oldest chunk: as many views of one object, so that objects stay balanced."""
        place = slice(self._next, self._next + self._chunk)
        kind = self._next // self._chunk % len(world.OBJECTS)
        orbits = sample_orbits(self._chunk, self._generator)
        layers = cast(
            solids(world.OBJECTS[kind]), Cameras.orbit(**orbits), self._layers.shape[-1], draw=self._draw
        )
        self._layers[place] = to_bytes(torch.cat((layers.fixed, layers.paint, layers.alpha), 1))
        self._object[place] = kind
        self._view[place] = view_index(orbits["azimuth_deg"])
        self._next = place.stop % len(self)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        options = {"generator": generator, "device": self.device}
        chosen = torch.randint(len(self), (count,), **options)
        kind = self._object[chosen]
        trained = world.trained_colours(self.device)
        colour = trained[kind, torch.randint(trained.shape[1], (count,), **options)]
        fixed, paint, alpha = to_pixels(self._layers[chosen]).split((3, 1, 1), dim=1)
        backgrounds = world.sample_backgrounds(colour, self._layers.shape[-1], generator)
        images = Layers(fixed, paint, alpha).picture(world.paints(self.device)[colour], backgrounds)
        return Batch(images.clamp(0.0, 1.0), kind, colour, self._view[chosen])


def view_index(azimuth_deg: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The index of the view word of each azimuth, as `world.view_word` has it."""
    turned = ((azimuth_deg + 180.0) % 360.0 - 180.0).abs()
    return (turned > 45.0).long() + (turned >= 135.0).long()


def to_pixels(images: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Bytes to [0, 1]."""
    return images.float() / 255.0


def pair_captions(view: str | None = None) -> list[str]:
    """The captions of all (object, colour) pairs in the order of the pair index, held-out ones too."""
    return [world.caption(name, colour, view) for name in world.OBJECTS for colour in COLOURS]


def recolour(images: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Permute the colour channels of images in [0, 1] and turn a third into their negatives, one draw for each."""
    count = len(images)
    order = torch.rand(count, 3, generator=generator, device=images.device).argsort(1)
    mixed = images.gather(1, order[:, :, None, None].expand_as(images))
    negative = torch.rand(count, generator=generator, device=images.device) < 1.0 / 3.0
    return torch.where(negative[:, None, None, None], 1.0 - mixed, mixed)


def jitter(images: Float[Tensor, "B 3 S S"], generator: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Random flip, zoom, shift and brightness of each image in [0, 1]; blur and noise, as renders of Gaussians have."""
    count, device = len(images), images.device
    draw = torch.rand(8, count, generator=generator, device=device)
    zoom = 0.8 + 0.35 * draw[0]
    zero = torch.zeros_like(zoom)
    across = zoom * torch.where(draw[1] < 0.5, -1.0, 1.0)
    shift = 0.24 * (draw[2:4] - 0.5)
    affine = torch.stack((across, zero, shift[0], zero, zoom, shift[1]), 1).view(count, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    for share, size in ((0.45, 3), (0.2, 5)):
        soft = F.avg_pool2d(moved, size, 1, size // 2, count_include_pad=False)
        moved = torch.where((draw[4] < share)[:, None, None, None], soft, moved)
    moved = (0.85 + 0.3 * draw[5])[:, None, None, None] * moved
    noise = torch.randn(moved.shape, generator=generator, device=device)
    level = torch.where(draw[6] < 0.5, 0.15 * draw[6], 0.0)
    return (moved + level[:, None, None, None] * noise).clamp(0.0, 1.0)
