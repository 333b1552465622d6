"""What a radiance field takes of the memory, and how many rays a memory plan renders at once."""

from itertools import pairwise

import psutil
import torch

from arguments import Config
from scene.radiance_field import CHANNELS, hash_cells, hash_rows
from utils.device import GIB
from utils.errors import UserError

ROOM = {"8gb": 8 * GIB, "12gb": 12 * GIB, "24gb": 24 * GIB}
"""What a plan has for everything; the others have what the device has."""
RAYS_ROOM = {"8gb": 1 * GIB, "12gb": 2 * GIB, "24gb": 6 * GIB, "max": 12 * GIB}
"""And of it for what rays gather."""
COPIES = 5
"""A value, its gradient and while that is made another, and Adam's two moments."""
SAMPLE_BYTES = 320
"""Of a sample: its place, distances and weights in float64, colours, and their gradients, roughly."""
CORNER_BYTES = 8 * (4 + 4)
"""Rows and weights of the eight corners that a sample asks for in one table."""


def parameter_count(config: Config) -> int:
    """Numbers that a run's field learns, when it is full grown."""
    params = config.FieldParams
    if config.ModelParams.representation == "grid":
        return CHANNELS * max(params.resolution, params.resolution_final) ** 3
    cells = hash_cells(params.hash_levels, params.hash_base, params.hash_finest)
    inputs, width = params.hash_levels * params.hash_features, params.hash_width
    widths = [inputs, *[width] * params.hash_layers, CHANNELS]
    network = sum((before + 1) * after for before, after in pairwise(widths))
    return network + params.hash_features * sum(hash_rows(each, params.hash_table) for each in cells)


def ray_bytes(config: Config) -> int:
    """What a ray takes that meets something all along its way."""
    params = config.FieldParams
    sample = SAMPLE_BYTES + CORNER_BYTES
    if config.ModelParams.representation == "hash":
        features = params.hash_levels * (CORNER_BYTES + 8 * params.hash_features)
        sample = SAMPLE_BYTES + features + 8 * params.hash_width * params.hash_layers
    return sample * (params.samples + params.importance_samples)


def rays_at_once(config: Config, plan: str) -> int:
    """Rays of a chunk under a memory plan."""
    return max(RAYS_ROOM[plan] // ray_bytes(config), 1)


def field_bytes(config: Config, chunk: int) -> dict[str, int]:
    """Bytes of an iteration by part, at most: where every ray meets something all along its way."""
    width, views = config.GenerateCamParams.image_w, config.GuidanceParams.C_batch_size
    rays = min(views * width**2, chunk)
    return {"field": 4 * COPIES * parameter_count(config), "rays": rays * ray_bytes(config)}


def refuse_too_large(config: Config, device: torch.device) -> None:
    """Raises UserError where the field does not fit, before anything of it is made."""
    needed, plan = 4 * COPIES * parameter_count(config), config.HardwareParams.memory
    has = ROOM.get(plan) or _total(device)
    if needed > has:
        params = config.FieldParams
        what = (
            f"FieldParams.resolution_final: expected a grid that fits {has / GIB:.1f} GiB, got "
            f"{max(params.resolution, params.resolution_final)} vertices a side"
            if config.ModelParams.representation == "grid"
            else f"FieldParams.hash_table: expected tables that fit {has / GIB:.1f} GiB, got {params.hash_levels} "
            f"levels of up to 2^{params.hash_table} rows"
        )
        raise UserError(f"{what}, which take {needed / GIB:.1f} GiB with gradients and moments; lower it")


def _total(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total
