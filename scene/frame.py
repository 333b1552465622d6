"""The frame of the files that a run leaves, x right, y down, z forward; the program's has z up and its front on +y."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from utils.rotations import quaternions_to_matrices

FRAME = "rdf"
"""Right, down, forward."""
FRAME_COMMENT = f"dreammapping frame={FRAME}"
"""Marks a .ply in this frame."""
WORLD_TO_FILE = (0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5))
"""Quaternion of (x, y, z) -> (-x, -z, -y): z up and front +y become y down and front -z."""


def rotation_matrix(quat: Float[Tensor, "4"]) -> Float[Tensor, "3 3"]:
    """Its matrix in float64, where that has the entries 0, 1 and -1 alone: so positions stay exact."""
    return quaternions_to_matrices(quat.double()).round()


def to_file(vectors: Float[Tensor, "*_ 3"]) -> Float[Tensor, "*_ 3"]:
    """Positions or directions of ours as the files have them; the same turn leads back."""
    return vectors @ rotation_matrix(torch.tensor(WORLD_TO_FILE)).to(vectors).T
