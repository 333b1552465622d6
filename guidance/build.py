"""The loss that the settings name."""

from importlib import import_module

import torch

from arguments import Config
from guidance.interface import Guidance
from guidance.prior import DiffusionPrior
from guidance.schedule import NoiseSchedule


def build_guidance(
    config: Config, score_model: DiffusionPrior, rng: torch.Generator = torch.default_generator
) -> Guidance:
    """The loss that `guidance_method` names: the method of `guidance/<name>.py`.

    Args:
        config: `GuidanceParams`, the groups that the method declares, and the length of the run and of its warm-up,
            over which the range of t and other things are annealed, are read.
        rng: draws the initial weights of what the loss trains.
    """
    params = config.GuidanceParams
    import_module(f"guidance.{params.guidance_method}")
    method = Guidance.methods[params.guidance_method]
    schedule = NoiseSchedule(
        score_model.alphas_cumprod, params, config.OptimizationParams.warmup_iter, config.iterations
    )
    own = {name: getattr(config, group.__name__) for name, group in method.settings().items()}
    return method(params, schedule, score_model, rng, **own)
