"""Contact sheets: many small pictures on one sheet, with a label for each row and a caption over each column."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from utils.images import to_uint8

Images = Float[Tensor, "_ _ _ _"] | UInt8[np.ndarray, "_ _ _ 3"]

GAP = 4
"""Pixels of white between pictures."""
LINE, SCALE, SMALLEST = 18, 0.45, 0.2
"""Height of a line of text in pixels; the size of its letters, and the size under which a text is cut off instead."""
_FONT, _INK = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40)


def contact_sheet(
    rows: Iterable[tuple[str, Images]], captions: Sequence[str] = (), *, tile: int | None = None
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Lay out a row of pictures under each label; where a row has fewer than the longest, the rest is white.

    Args:
        rows: labels (an empty one takes no place), each with its pictures: tensors of one or three channels with
            values in [0, 1], or RGB bytes. All have the proportions of the very first.
        captions: what stands over the columns, from the first on; a caption may be empty.
        tile: width of every picture in pixels; that of the first row if None.
    """
    pictures = [(label, _bytes(images)) for label, images in rows]
    _, first = pictures[0]
    width = first.shape[2] if tile is None else tile
    height = max(1, round(width * first.shape[1] / first.shape[2]))
    columns = max(len(images) for _, images in pictures)
    strips = [_line(captions, columns, width)] if any(captions) else []
    for label, images in pictures:
        if label:
            strips.append(_line([label], 1, columns * (width + GAP) - GAP))
        strips.append(_row(images, columns, width, height))
    gap = np.full((GAP, strips[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for strip in strips for part in (strip, gap)][:-1])


def _bytes(images: Images) -> UInt8[np.ndarray, "_ _ _ 3"]:
    return images if isinstance(images, np.ndarray) else to_uint8(images)


def _row(images: UInt8[np.ndarray, "_ _ _ 3"], columns: int, width: int, height: int) -> np.ndarray:
    """Pictures of `width` x `height` side by side."""
    row = np.full((height, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    way = cv2.INTER_AREA if width < images.shape[2] else cv2.INTER_CUBIC
    for index, image in enumerate(images):
        left = index * (width + GAP)
        same = image.shape[:2] == (height, width)
        row[:, left : left + width] = image if same else cv2.resize(image, (width, height), interpolation=way)
    return row


def _line(texts: Sequence[str], columns: int, width: int) -> np.ndarray:
    """A strip of text, one at the left of each column, smaller where it would not fit."""
    line = np.full((LINE, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for index, text in enumerate(texts):
        left = index * (width + GAP)
        line[:, left : left + width] = _written(text, width)
    return line


def _written(text: str, width: int) -> np.ndarray:
    scale = SCALE
    while cv2.getTextSize(text, _FONT, scale, 1)[0][0] > width - 4 and scale > SMALLEST:
        scale *= 0.95  # letters have whole widths, so that half the size is not half the length
    picture = np.full((LINE, width, 3), 255, np.uint8)
    return cv2.putText(picture, text, (2, LINE - 5), _FONT, scale, _INK, 1, cv2.LINE_AA)
