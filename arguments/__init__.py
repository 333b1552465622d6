"""Typed settings: what can be set, its default, unit, range and meaning; reading, checking and writing it.

Imports no torch, so that `--help` and every mistake in the settings answer at once.
"""

from arguments.config import Config, to_yaml
from arguments.flags import Command
from arguments.groups import (
    ASDParams,
    Consistent3DParams,
    CSDParams,
    DreamFlowParams,
    FieldParams,
    GenerateCamParams,
    GuidanceParams,
    HardwareParams,
    ImageParams,
    LMCParams,
    LODSParams,
    LoRAParams,
    ModelParams,
    NFSDParams,
    OptimizationParams,
    PipelineParams,
    SSDParams,
    VDMParams,
)
from arguments.load import PLACE, differences, load

__all__ = [
    "PLACE", "ASDParams", "CSDParams", "Command", "Config", "Consistent3DParams", "DreamFlowParams", "FieldParams",
    "GenerateCamParams", "GuidanceParams", "HardwareParams", "ImageParams", "LMCParams", "LODSParams", "LoRAParams",
    "ModelParams", "NFSDParams", "OptimizationParams", "PipelineParams", "SSDParams", "VDMParams",
    "differences", "load", "to_yaml",
]  # fmt: skip
