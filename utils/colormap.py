"""Single-channel pictures in colour."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor


def colored_depth(disparity: Float[Tensor, "B 1 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Disparity in [0, 1] (clamped) as RGB: black for the background and the farthest, light yellow for the nearest.

    The map is Inferno, whose lightness grows all along it: near is bright in print and to the colour-blind, too.
    """
    levels = (disparity.detach().clamp(0.0, 1.0) * 255.0 + 0.5).byte().squeeze(1).cpu().numpy()
    flat = cv2.applyColorMap(np.ascontiguousarray(levels.reshape(-1, levels.shape[-1])), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(flat.reshape(*levels.shape, 3)[..., ::-1])
