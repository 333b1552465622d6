"""`.splat`, the 32 bytes a Gaussian of antimatter15's viewer: no harmonics, colours and rotations in 8 bits.

Positions and scales are float32, the rest bytes: colour and opacity in [0, 255], the quaternion w, x, y, z as
128 q + 128. Viewers expect the axes of a .ply, y down; the most conspicuous Gaussians come first, as they are drawn
while the rest loads.
"""

from pathlib import Path

import numpy as np
import torch

from scene.frame import WORLD_TO_FILE
from scene.gaussian_model import GaussianModel
from scene.raw_gaussians import model_of, raw_table
from utils.errors import UserError
from utils.files import atomic
from utils.inputs import regular_file
from utils.spherical_harmonics import rgb_to_sh_dc, sh_dc_to_rgb

ROW = np.dtype(
    [
        ("means", "<f4", 3),
        ("scales", "<f4", 3),
        ("colors", "u1", 3),
        ("opacities", "u1", 1),
        ("quats", "u1", 4),
    ]
)


def write(path: Path | str, model: GaussianModel) -> None:
    """Write band 0 alone; colours are clamped to [0, 1].

    Raises:
        UserError: a parameter is not finite, or the file cannot be written.
    """
    raw = raw_table(path, model, WORLD_TO_FILE)
    opacities = raw["opacity_logits"].sigmoid()
    order = (raw["log_scales"].sum(dim=1) + opacities[:, 0].log()).argsort(descending=True, stable=True)
    rows = np.empty(len(order), dtype=ROW)
    rows["means"] = raw["means"][order].numpy()
    rows["scales"] = raw["log_scales"][order].exp().numpy()
    rows["colors"] = to_bytes(255 * sh_dc_to_rgb(raw["sh"][order, 0]))
    rows["opacities"] = to_bytes(255 * opacities[order])
    rows["quats"] = to_bytes(128 * raw["quats"][order] + 128)
    with atomic(path) as temporary:
        rows.tofile(temporary)


def read(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read into our frame; see `scene.splat_formats.read_any`."""
    path = regular_file(path)
    size = path.stat().st_size
    if size == 0 or size % ROW.itemsize:
        raise UserError(
            f"{path}: expected rows of {ROW.itemsize} bytes, got {size:,} bytes; it is empty, cut off or no .splat"
        )
    rows = np.fromfile(path, dtype=ROW)
    quats = torch.from_numpy(rows["quats"].astype(np.float32)) / 128 - 1
    quats[quats.norm(dim=1) == 0, 0] = 1.0  # as viewers take it
    raw = {
        "means": torch.from_numpy(rows["means"].astype(np.float32)),
        "log_scales": torch.from_numpy(rows["scales"].astype(np.float32)).log(),
        "quats": quats,
        "opacity_logits": (torch.from_numpy(rows["opacities"].astype(np.float32)).view(-1, 1) / 255).logit(),
        "sh": rgb_to_sh_dc(torch.from_numpy(rows["colors"].astype(np.float32)) / 255)[:, None],
    }
    return model_of(path, raw, WORLD_TO_FILE, sh_degree)


def to_bytes(values: torch.Tensor) -> np.ndarray:
    """Rounded to the nearest of 0 to 255."""
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
