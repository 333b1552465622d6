"""Pictures of the prior: samples of captions, and grids of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from utils.files import atomic

GUIDANCE_SCALE, STEPS = 7.5, 30
_BATCH, _CARD_BATCH = 16, 128


def load_pipeline(prior: Path, device: torch.device | str = "cpu") -> StableDiffusionPipeline:
    """The prior's pipeline without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(prior, local_files_only=True).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], seed: int = 0, steps: int = STEPS
) -> Float[Tensor, "N 3 H W"]:
    """One DDIM sample of each caption with classifier-free guidance of 7.5; images in [0, 1].

    The noise of image i is that of seed `seed` + i alone, so neither the device nor the batch chooses it.
    """
    images = []
    batch = _BATCH if pipeline.device.type == "cpu" else _CARD_BATCH
    for start in range(0, len(captions), batch):
        chosen = list(captions[start : start + batch])
        output = pipeline(
            chosen,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed + start + place) for place in range(len(chosen))],
            output_type="pt",
        )
        images.append(output.images.cpu())
    return torch.cat(images)


def save_grid(images: Float[Tensor, "N 3 H W"], path: Path, columns: int) -> None:
    """Write images in [0, 1] row by row as one picture; the last row is filled with white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    padded = torch.ones(rows * columns, channels, height, width)
    padded[:count] = images.clamp(0.0, 1.0)
    table = (
        padded.unflatten(0, (rows, columns))
        .permute(0, 3, 1, 4, 2)
        .reshape(rows * height, columns * width, channels)
    )
    pixels = np.round(255.0 * table.numpy()).astype(np.uint8)
    with atomic(path) as partial:
        Image.fromarray(pixels).save(partial, optimize=True)
