"""Typed settings: what can be set, its default, unit, range and meaning; reading, checking and writing it.

Imports no torch, so that ``--help`` and every mistake in the settings answer at once.
"""

from arguments.config import Config, to_yaml
from arguments.groups import (
    GenerateCamParams,
    GuidanceParams,
    HardwareParams,
    ModelParams,
    OptimizationParams,
    PipelineParams,
)
from arguments.load import Command, load

__all__ = [
    "Command",
    "Config",
    "GenerateCamParams",
    "GuidanceParams",
    "HardwareParams",
    "ModelParams",
    "OptimizationParams",
    "PipelineParams",
    "load",
    "to_yaml",
]
