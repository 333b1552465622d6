"""Score distillation from a frozen text-to-image model: images in, losses out.

Knows nothing of Gaussians, cameras or run folders. `ScoreModel` is the prior, `ViewPrompts` the text, and
`build_guidance` the loss that the settings name. Nothing heavy is imported before it is used: the command
`python -m guidance.models` passes here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guidance.build import build_guidance
    from guidance.interface import Guidance, GuidanceOutput
    from guidance.prior import DiffusionPrior
    from guidance.prior.score_model import ScoreModel
    from guidance.prompts import ViewPrompts, ViewText
    from guidance.sds import SDSGuidance
    from guidance.vdm import VDMGuidance

_PLACES = {
    "DiffusionPrior": "prior", "Guidance": "interface", "GuidanceOutput": "interface", "SDSGuidance": "sds",
    "ScoreModel": "prior.score_model", "VDMGuidance": "vdm", "ViewPrompts": "prompts", "ViewText": "prompts",
    "build_guidance": "build",
}  # fmt: skip

__all__ = [
    "DiffusionPrior", "Guidance", "GuidanceOutput", "SDSGuidance", "ScoreModel", "VDMGuidance",
    "ViewPrompts", "ViewText", "build_guidance",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"guidance.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
