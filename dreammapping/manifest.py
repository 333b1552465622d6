"""What `run.json` says of an optimisation."""

from typing import Any

from dreammapping.optimization import Optimization
from guidance.models import shape_provenance
from utils.peak_memory import peak_memory


def manifest(optimization: Optimization, *, finished: bool) -> dict[str, Any]:
    """Prompt, method, seed, prior with hashes, device, progress and cost, as JSON values."""
    config, prior = optimization.config, optimization.score_model
    shape_model = config.GenerateCamParams.shape_model
    return {
        "prompt": config.GuidanceParams.text,
        "representation": config.ModelParams.representation,
        "method": config.GuidanceParams.guidance_method,
        "preset": config.preset or None,
        "seed": config.seed,
        "prior": prior.provenance,
        "shape_model": shape_provenance(shape_model) if config.starts_from_text else None,
        "device": str(optimization.device),
        "precision": str(prior.dtype)[6:],
        "memory_plan": prior.plan.name,
        "warm_up_seconds": optimization.warm_up_seconds,
        "peak_memory_bytes": peak_memory(optimization.device),
        "iterations": optimization.step,
        "finished": finished,
        **optimization.subject.numbers(),
        "score_model_evaluations": prior.evaluations.state_dict(),
    }
