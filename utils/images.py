"""Pictures on disk. Tensors are `(B, C, H, W)` with values in [0, 1]."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from utils.files import atomic

if TYPE_CHECKING:
    from PIL.Image import Image


def to_uint8(images: Float[Tensor, "B C H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Round to 8 bits, channels last; a single channel becomes grey."""
    images = images.detach().clamp(0.0, 1.0)
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return (images * 255.0 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(rows: list[Float[Tensor, "_ _ H W"]]) -> Float[Tensor, "1 3 H2 W2"]:
    """Lay batches of equal height and width out as the rows of one picture; missing cells are white."""
    columns = max(len(row) for row in rows)
    lines = []
    for row in rows:
        row = row.detach().expand(-1, 3, -1, -1)
        blank = row.new_ones(columns - len(row), *row.shape[1:])
        lines.append(torch.cat([*row, *blank], dim=-1))
    return torch.cat(lines, dim=-2).unsqueeze(0)


def write_picture(path: Path, image: Float[Tensor, "1 C H W"] | UInt8[np.ndarray, "H W 3"]) -> None:
    """Write one image, a tensor or RGB bytes, as PNG or JPEG, chosen by the suffix."""
    from PIL import Image

    pixels = image if isinstance(image, np.ndarray) else to_uint8(image)[0]
    with atomic(path, durable=False) as temporary:
        Image.fromarray(pixels).save(temporary, quality=92)


def read_picture(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image as 8-bit RGB, as viewers show it: upright, before white where it is transparent, 16 bits rounded.

    Raises:
        OSError, ValueError: it is no picture, a broken one, or one of more pixels than anybody has.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
    except (SyntaxError, Image.DecompressionBombError) as error:  # what Pillow calls a broken PNG
        raise OSError(str(error)) from error


def eight_bits(image: "Image") -> "Image":
    """A grey image of 16 bits with 8, which Pillow would cut off at 255; any other as it is."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257.0).clip(0, 255).astype(np.uint8))


def _as_rgb(image: "Image") -> "Image":
    from PIL import Image

    image = eight_bits(image)
    if image.has_transparency_data:
        colors = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colors).convert("RGB")
    return image.convert("RGB")
