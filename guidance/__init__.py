"""Score distillation from a frozen text-to-image model: images in, losses out.

Knows nothing of Gaussians, cameras or run folders. `ScoreModel` is the prior, `ViewPrompts` the text, and
`build_guidance` the loss that the settings name.
"""

import torch

from arguments import GuidanceParams, OptimizationParams
from guidance.interface import Guidance, GuidanceOutput
from guidance.prior import DiffusionPrior
from guidance.prompts import ViewPrompts, ViewText
from guidance.score_model import ScoreModel
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
    """The loss that `params.guidance_method` names.

    Args:
        optimization: `warmup_iter` is read, the steps over which the range of t is annealed.
        rng: draws the initial weights of what the loss trains.
    """
    if params.guidance_method == "sds":
        return SDSGuidance(params, optimization, score_model)
    return VDMGuidance(params, optimization, score_model, rng)
