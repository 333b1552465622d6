"""The groups of settings, a file an owner, with LucidDreamer's names and defaults, and ours beside them.

A frozen dataclass is the only place where a setting has a default, a type, a unit, a range and a meaning.
"""

from arguments.groups.cameras import GenerateCamParams
from arguments.groups.field import FieldParams
from arguments.groups.guidance import GuidanceParams
from arguments.groups.hardware import HardwareParams
from arguments.groups.image import ImageParams
from arguments.groups.methods import (
    ASDParams,
    Consistent3DParams,
    CSDParams,
    DreamFlowParams,
    LMCParams,
    LODSParams,
    LoRAParams,
    NFSDParams,
    SSDParams,
    VDMParams,
)
from arguments.groups.optimization import OptimizationParams
from arguments.groups.renderer import PipelineParams
from arguments.groups.run import ModelParams

__all__ = [
    "ASDParams", "CSDParams", "Consistent3DParams", "DreamFlowParams", "FieldParams", "GenerateCamParams",
    "GuidanceParams", "HardwareParams", "ImageParams", "LMCParams", "LODSParams", "LoRAParams", "ModelParams",
    "NFSDParams", "OptimizationParams", "PipelineParams", "SSDParams", "VDMParams",
]  # fmt: skip
