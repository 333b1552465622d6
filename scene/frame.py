"""The frame of the files that a run leaves, x right, y down, z forward; the program's has z up and its front on +y.

Formats whose convention is another (glTF, SPZ and USD: y up, front +z) are turned from ours as well.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from utils.rotations import multiply_quaternions, quaternions_to_matrices
from utils.spherical_harmonics import rotate_sh

FRAME = "rdf"
"""Right, down, forward."""
FRAME_COMMENT = f"dreammapping frame={FRAME}"
"""Marks a .ply in this frame."""
WORLD_TO_FILE = (0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5))
"""Quaternion of (x, y, z) -> (-x, -z, -y): z up and front +y become y down and front -z."""
WORLD_TO_Y_UP = (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5))
"""Quaternion of (x, y, z) -> (-x, z, y): z up and front +y become y up and front +z, as glTF has it."""


def rotation_matrix(quat: Float[Tensor, "4"]) -> Float[Tensor, "3 3"]:
    """Its matrix in float64, where that has the entries 0, 1 and -1 alone: so positions stay exact."""
    return quaternions_to_matrices(quat.double()).round()


def to_file(vectors: Float[Tensor, "*_ 3"]) -> Float[Tensor, "*_ 3"]:
    """Positions or directions of ours as the files have them; the same turn leads back."""
    return vectors @ rotation_matrix(torch.tensor(WORLD_TO_FILE)).to(vectors).T


def to_y_up(vectors: Float[Tensor, "*_ 3"]) -> Float[Tensor, "*_ 3"]:
    """Positions or directions of ours as glTF has them; the same turn leads back."""
    return vectors @ rotation_matrix(torch.tensor(WORLD_TO_Y_UP)).to(vectors).T


def turn(tensors: dict[str, Tensor], quat: Float[Tensor, "4"]) -> dict[str, Tensor]:
    """Rotate Gaussians about the origin: their `means`, `quats` and the bands above 0 of `sh` (N, K, 3)."""
    matrix = rotation_matrix(quat)
    return tensors | {
        "means": tensors["means"] @ matrix.to(tensors["means"]).T,
        "quats": multiply_quaternions(quat, tensors["quats"]),
        "sh": rotate_sh(tensors["sh"], matrix),
    }
