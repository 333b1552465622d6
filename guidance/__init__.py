"""Score distillation from a frozen text-to-image model: images in, losses out.

Knows nothing of Gaussians, cameras or run folders. `ScoreModel` is the prior, `ViewPrompts` the text, and
`build_guidance` the loss that the settings name.
"""

from importlib import import_module

import torch

from arguments import GuidanceParams, OptimizationParams
from guidance.interface import Guidance, GuidanceOutput
from guidance.prior import DiffusionPrior
from guidance.prior.score_model import ScoreModel
from guidance.prompts import ViewPrompts, ViewText
from guidance.sds import SDSGuidance
from guidance.trace import Trace, predicted_images
from guidance.vdm import VDMGuidance

__all__ = [
    "DiffusionPrior", "Guidance", "GuidanceOutput", "SDSGuidance", "ScoreModel", "Trace", "VDMGuidance",
    "ViewPrompts", "ViewText", "build_guidance", "predicted_images",
]  # fmt: skip


def build_guidance(
    params: GuidanceParams,
    optimization: OptimizationParams,
    score_model: DiffusionPrior,
    rng: torch.Generator = torch.default_generator,
) -> Guidance:
    """The loss that `params.guidance_method` names: the method of `guidance/<name>.py`.

    Args:
        optimization: `warmup_iter` and `iterations` are read, over which the range of t and other things are annealed.
        rng: draws the initial weights of what the loss trains.
    """
    import_module(f"guidance.{params.guidance_method}")
    return Guidance.methods[params.guidance_method](params, optimization, score_model, rng)
