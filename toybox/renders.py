"""Captioned renders of the toybox: `python -m toybox.dataset` writes them, `load` opens them.

A split is two files in the cache folder, `{split}_images.npy` (N, S, S, 3) uint8 and
`{split}_labels.npz`. View i depends on the seed, the split and i alone, so the number of processes and an
interruption change nothing.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from toybox.objects import solids
from toybox.raycast import Cameras, cast
from toybox.world import (
    COLOURS,
    HELD_OUT,
    OBJECTS,
    caption,
    paints,
    sample_backgrounds,
    train_pairs,
    view_word,
)
from utils.errors import UserError
from utils.files import atomic, remove_unfinished, remove_unfinished_of
from utils.inputs import regular_file
from utils.lock import held

CACHE = Path(__file__).parent / "cache"
LOCK = ".dataset.lock"
"""Held in the cache while views are written there."""
SHARD = 250
_DRAWS = 2  # counts the ways in which an index has determined its view
_CHUNK = 64  # views of one object that are cast at once
SPLITS: dict[str, int | None] = {"train": None, "test": 2000, "held_out": 1000}
"""Number of views of each split; that of `train` is a setting."""

_LABELS = ("object_index", "colour_index", "azimuth_deg", "polar_deg", "radius", "fov")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Views:
    """One split.

    `images` (N, S, S, 3) uint8 is memory-mapped; `object` and `colour` (N,) uint8 are indices into
    OBJECTS and COLOURS; the camera's angles (N,) are float32 degrees, its distance and full field of view
    (radians) float32.
    """

    images: np.ndarray
    object: np.ndarray
    colour: np.ndarray
    azimuth_deg: np.ndarray
    polar_deg: np.ndarray
    radius: np.ndarray
    fov: np.ndarray

    def __len__(self) -> int:
        return len(self.object)

    def caption(self, index: int, with_view: bool) -> str:
        """The caption of one view."""
        colour = tuple(COLOURS)[self.colour[index]]
        view = view_word(self.azimuth_deg[index]) if with_view else None
        return caption(OBJECTS[self.object[index]], colour, view)

    def captions(
        self, rng: np.random.Generator, indices: np.ndarray | None = None, view_probability: float = 0.7
    ) -> list[str]:
        """Captions of `indices` (all by default), each naming its view with `view_probability`."""
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        named = rng.random(len(chosen)) < view_probability
        return [
            self.caption(int(index), bool(with_view)) for index, with_view in zip(chosen, named, strict=True)
        ]


def load(split: str, cache: str | os.PathLike[str] = CACHE) -> Views:
    """Open a split; raises `UserError` if it is unknown, has not been generated or is damaged."""
    if split not in SPLITS:
        raise UserError(f"toybox split: expected one of {', '.join(SPLITS)}, got {split!r}; use one of them")
    images, labels = _paths(Path(cache), split)
    if not (images.exists() and labels.exists()):
        raise UserError(
            f"{images}: expected the toybox's {split} views, found none; run python -m toybox.dataset"
        )
    pictures, stored = _read(Path(cache), split)
    return Views(pictures, *(stored[name] for name in _LABELS))


def sample_orbits(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Arguments of `Cameras.orbit` for random cameras, float64 on the generator's device.

    Their half width at the origin is U(0.76, 0.96): objects fit in, and fill the frame.
    """
    options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    low, polar, azimuth, radius, half = torch.rand(5, count, **options)
    noise = torch.randn(4, count, **options)
    radius = 3.2 + radius
    return {
        "azimuth_deg": 360.0 * azimuth - 180.0,
        "polar_deg": torch.where(low < 0.85, 60.0 + 40.0 * polar, 30.0 + 30.0 * polar),
        "radius": radius,
        "fov": 2.0 * torch.atan((0.76 + 0.2 * half) / radius),
        "target": 0.03 * noise[:3].T,
        "roll_deg": 2.0 * noise[3],
    }


def sample_views(
    split: str, indices: Sequence[int], seed: int, size: int, device: torch.device | str = "cpu"
) -> tuple[UInt8[np.ndarray, "N S S 3"], Float[np.ndarray, "N 6"]]:
    """Views `indices` of a split, rendered on `device`, and their labels in the order of the file.

    Pairs take turns, so any prefix of a split is balanced.
    """
    pairs = sorted(HELD_OUT) if split == "held_out" else train_pairs()
    groups: dict[str, list[int]] = {}
    for place, index in enumerate(indices):
        groups.setdefault(pairs[index % len(pairs)][0], []).append(place)
    images = np.empty((len(indices), size, size, 3), np.uint8)
    labels = np.empty((len(indices), len(_LABELS)))
    for name, places in groups.items():
        for start in range(0, len(places), _CHUNK):
            chunk = places[start : start + _CHUNK]
            colours = [tuple(COLOURS).index(pairs[indices[place] % len(pairs)][1]) for place in chunk]
            orbits, backgrounds = [], []
            for place, colour in zip(chunk, colours, strict=True):
                state = np.random.SeedSequence(
                    [seed, tuple(SPLITS).index(split), indices[place]]
                ).generate_state(2)
                generator = torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
                orbits.append(sample_orbits(1, generator))
                backgrounds.append(sample_backgrounds(torch.tensor([colour]), size, generator))
            orbit = {key: torch.cat([each[key] for each in orbits]) for key in orbits[0]}
            layers = cast(
                solids(name), Cameras.orbit(**{key: value.to(device) for key, value in orbit.items()}), size
            )
            paint = paints(torch.device("cpu"))[colours].to(device)
            pictures = to_bytes(layers.picture(paint, torch.cat(backgrounds).to(device)))
            images[chunk] = pictures.permute(0, 2, 3, 1).cpu().numpy()
            labels[chunk, 0], labels[chunk, 1] = OBJECTS.index(name), colours
            labels[chunk, 2:] = np.stack([orbit[key].numpy() for key in _LABELS[2:]], 1)
    return images, labels


def to_bytes(images: Float[Tensor, "*S"]) -> UInt8[Tensor, "*S"]:
    """[0, 1] to bytes, rounded."""
    return (255.0 * images.clamp(0.0, 1.0)).round_().to(torch.uint8)


def generate(
    views: int,
    size: int,
    seed: int,
    cache: Path,
    processes: int | None = None,
    device: torch.device | str = "cpu",
    splits: Iterable[str] | None = None,
) -> None:
    """Write the `splits` that are not there yet; finished shards of an interrupted run are kept and used.

    `views` counts the training views. A CPU renders in `processes`, another device in this one. Raises `UserError`
    for a number that is too small or needs more than the disk has, where another process writes, and as `missing`.
    """
    for name, value, least in (("views", views, 1), ("size", size, 1), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"toybox.dataset --{name}: expected {least} or more, got {value}; choose another")
    splits = list(SPLITS if splits is None else splits)
    absent = missing(views, size, seed, cache, splits)
    needed = 3 * size**2 * sum(SPLITS[split] or views for split in absent)
    there = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"{cache}: expected {needed / 1e9:.3g} GB to be free for the views, found {free / 1e9:.3g} GB; choose "
            "a smaller --size or --views, or another --cache"
        )
    cache.mkdir(parents=True, exist_ok=True)
    # who only looks needs no right to write
    with held(cache / LOCK, instead="choose another --cache") if absent else contextlib.nullcontext():
        for split in splits:
            count = SPLITS[split] or views
            identity = _identity(split, count, size, seed)
            shards = cache / f"{split}-{identity}"
            if absent:
                remove_unfinished(shards, ())
                for path in _paths(cache, split):
                    remove_unfinished_of(path)
            if split not in absent:
                log.info("%s: %d views are there", split, count)
                _drop(shards, count)
                continue
            began = time.monotonic()
            shards.mkdir(parents=True, exist_ok=True)
            work = partial(
                _write_shard, split=split, count=count, size=size, seed=seed, folder=shards, device=device
            )
            starts = [start for start in range(0, count, SHARD) if not _shard(shards, start).exists()]
            with contextlib.ExitStack() as stack:
                if torch.device(device).type == "cpu" and (processes or len(starts) > 1):
                    workers = max(1, min(processes or os.cpu_count() or 1, len(starts)))
                    pool = stack.enter_context(
                        multiprocessing.get_context("spawn").Pool(workers, _use_one_thread)
                    )
                    finished = pool.imap_unordered(work, starts)
                else:
                    finished = map(work, starts)
                for done, _ in enumerate(finished, 1):
                    log.info("%s: shard %d of %d, %.0f s", split, done, len(starts), time.monotonic() - began)
            _join(cache, split, shards, count, size, seed, identity)
            log.info("%s: %d views in %.0f s", split, count, time.monotonic() - began)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers, and says so in one line


def _write_shard(
    start: int, split: str, count: int, size: int, seed: int, folder: Path, device: torch.device | str
) -> None:
    images, labels = sample_views(split, range(start, min(start + SHARD, count)), seed, size, device)
    with atomic(_shard(folder, start)) as path, open(path, "wb") as file:
        np.savez(file, images=images, labels=labels)


def _join(cache: Path, split: str, shards: Path, count: int, size: int, seed: int, identity: str) -> None:
    """Make the two files of a split from its shards, and remove these."""
    images_path, labels_path = _paths(cache, split)
    labels = np.empty((count, len(_LABELS)))
    with atomic(images_path) as path:
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(count, size, size, 3))
        for start, shard in _read_shards(shards, count):
            images[start : start + len(shard["images"])] = shard["images"]
            labels[start : start + len(shard["labels"])] = shard["labels"]
        images.flush()
    columns = {
        name: labels[:, column].astype(np.uint8 if name.endswith("_index") else np.float32)
        for column, name in enumerate(_LABELS)
    }
    with atomic(labels_path) as path, open(path, "wb") as file:
        settings = json.dumps([count, size, seed])
        np.savez(file, **columns, identity=np.array(identity), settings=np.array(settings))
    _drop(shards, count)


def _drop(shards: Path, count: int) -> None:
    """Remove shards that were joined."""
    with contextlib.suppress(OSError):  # no right to, or somebody's file is there, too
        for start in range(0, count, SHARD):
            _shard(shards, start).unlink(missing_ok=True)
        shards.rmdir()


def _read_shards(folder: Path, count: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    for start in range(0, count, SHARD):
        with np.load(_shard(folder, start)) as stored:
            yield start, dict(stored)


def _identity(split: str, count: int, size: int, seed: int) -> str:
    """A digest of the settings and the world, so that views of another world are never taken for these."""
    digest = hashlib.sha256(
        json.dumps([_DRAWS, split, count, size, seed, OBJECTS, COLOURS, sorted(HELD_OUT)]).encode()
    )
    for name in OBJECTS:
        for part in solids(name):
            shape = [*part.matrix.ravel(), *part.centre, *(part.profile or ()), *part.top, *part.span]
            # Rounded: the last bits of sines differ between machines.
            digest.update(
                json.dumps([part.colour, [round(float(value), 4) + 0.0 for value in shape]]).encode()
            )
    return digest.hexdigest()[:12]


def missing(views: int, size: int, seed: int, cache: Path, splits: Iterable[str]) -> list[str]:
    """Those of the `splits` that have to be rendered; the settings are those of `generate`.

    Raises:
        UserError: files would be replaced that are no views, or views of other settings. Views of another version's
            world are replaced in `CACHE` alone, which this program fills by itself.
    """
    return [split for split in splits if not _is_complete(cache, split, SPLITS[split] or views, size, seed)]


def _is_complete(cache: Path, split: str, count: int, size: int, seed: int) -> bool:
    images, labels = _paths(cache, split)
    if not (os.path.lexists(images) or os.path.lexists(labels)):
        return False
    identity = _identity(split, count, size, seed)
    shards = cache / f"{split}-{identity}"
    if not os.path.lexists(labels) and all(
        _shard(shards, start).exists() for start in range(0, count, SHARD)
    ):
        return False  # it was ended between the two files
    pictures, stored = _read(cache, split)
    if "identity" not in stored:
        raise _others(labels, cache, split)
    if str(stored["identity"]) == identity:
        return True
    # An earlier version did not keep its settings.
    settings = stored.get("settings", json.dumps([len(pictures), pictures.shape[1], seed]))
    if str(settings) == json.dumps([count, size, seed]) and cache.resolve() == CACHE.resolve():
        return False
    raise UserError(
        f"{images}: expected no views, or {count} of {size} px and seed {seed}, found those of other settings or of "
        f"another version; choose another --cache, or remove {images.name} and {labels.name}"
    )


_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)


def _read(cache: Path, split: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The images of a split, memory-mapped, and its labels; raises `UserError` where they are none."""
    images, labels = _paths(cache, split)
    path = labels
    try:
        with regular_file(path).open("rb") as file, np.load(file) as columns:
            stored = dict(columns)
        path = images
        pictures = np.load(regular_file(path), mmap_mode="r")
        counts = {len(stored[name]) for name in _LABELS}
        if pictures.shape[3:] != (3,) or pictures.dtype != np.uint8 or counts != {len(pictures)}:
            raise ValueError("no pictures of these labels")
    except _DAMAGED as error:
        raise _others(path, cache, split) from error
    return pictures, stored


def _others(path: Path, cache: Path, split: str) -> UserError:
    images, labels = _paths(cache, split)
    return UserError(
        f"{path}: expected the toybox's {split} views, found none, or a damaged file; choose another --cache, or move "
        f"what there is of {images.name} and {labels.name} away"
    )


def _paths(cache: Path, split: str) -> tuple[Path, Path]:
    return cache / f"{split}_images.npy", cache / f"{split}_labels.npz"


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.npz"
