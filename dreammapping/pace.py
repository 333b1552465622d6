"""What a model of Stable Diffusion's size takes on a CPU: said before anything is fetched or fails."""

import logging
import os
from pathlib import Path

from arguments import Config
from guidance.models.source import ModelSource, resolve
from utils.device import choose_device
from utils.errors import UserError

SECONDS_A_VIEW, GIB_OF_FOUR_VIEWS = 58.7, 14.4
"""Of an iteration of `configs/cat.yaml` on two cores, as benchmarks/results/full_size.json has them."""
CORES = 2
LARGE = 1e9
"""Bytes of a U-Net from which a folder's model counts as one of that size."""

log = logging.getLogger(__name__)


def warn_of_pace(config: Config) -> None:
    """Say once how long a run will take, roughly, where a large model is to run without a card."""
    params = config.GuidanceParams
    if choose_device(config.device).type != "cpu" or not _is_large(config):
        return
    cores, views = os.cpu_count() or CORES, params.C_batch_size
    days = config.iterations * views * SECONDS_A_VIEW * CORES / cores / 86400
    log.warning(
        "%s is meant for a CUDA card; on this machine's CPU (%d cores) %d iterations of %d views take roughly %s, and "
        "a model that is not here yet is a download of gigabytes. With four views, 512 px and Perp-Neg it took %.0f "
        "GiB of memory. A first result in minutes: --opt configs/quickstart.yaml",
        params.model_key,
        cores,
        config.iterations,
        views,
        f"{days:.0f} days" if days >= 2 else f"{24 * days:.1f} hours",
        GIB_OF_FOUR_VIEWS,
    )


def _is_large(config: Config) -> bool:
    try:
        source: ModelSource = resolve(config.GuidanceParams)
    except UserError:  # said by those who look for models
        return False
    if source.kind != "folder":
        return True
    weights = Path(source.location, "unet").glob("*.safetensors")
    return sum(path.stat().st_size for path in weights) >= LARGE
