"""Frames of our own renderer for a viewer's camera: exact background, harmonics, depth and opacity."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gaussian_renderer import disparity, render
from scene.cameras import Cameras
from scene.gaussian_model import GaussianModel
from utils.colormap import colored_depth
from utils.images import to_uint8
from utils.rotations import quaternions_to_matrices

CHANNELS = ("colour", "depth", "opacity")
MOST_ASPECT = 4.0
"""Of a window: a thinner one is drawn as one of this."""


@dataclass(frozen=True)
class Pose:
    """A viewer's camera.

    Attributes:
        position: in the world. wxyz: leads from the camera's axes (x right, y down, z forward) to the world's.
        fov: radians, over the height. aspect: width over height.
    """

    position: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    fov: float
    aspect: float

    def cameras(self, height: int) -> Cameras:
        """One camera whose images are `height` pixels high."""
        aspect = min(max(self.aspect, 1 / MOST_ASPECT), MOST_ASPECT)
        turn = quaternions_to_matrices(torch.tensor([self.wxyz], dtype=torch.float64)).transpose(1, 2)
        center = torch.tensor([self.position], dtype=torch.float64)
        matrices = torch.eye(4, dtype=torch.float64)[None].clone()
        matrices[:, :3, :3] = turn
        matrices[:, :3, 3] = -torch.einsum("bij,bj->bi", turn, center)
        zero = torch.zeros(1)
        return Cameras(
            world_to_camera=matrices.float(),
            fov_x=torch.tensor([2 * math.atan(math.tan(self.fov / 2) * aspect)]),
            fov_y=torch.tensor([self.fov]),
            azimuth_deg=zero,
            polar_deg=zero,
            radius=center.norm(dim=1).float(),
            width=max(round(height * aspect), 1),
            height=height,
        )


@torch.no_grad()
def frame(
    gaussians: GaussianModel,
    pose: Pose,
    height: int,
    *,
    background: float = 1.0,
    channel: str = "colour",
    sh_degree: int | None = None,
    options: dict[str, Any] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """What a camera sees.

    Args:
        background: grey from 0 to 1. sh_degree: the highest that is used; all that are active if None.
        options: of `render`: backend, direct_rgb.
    """
    cameras = pose.cameras(height).to(gaussians.means.device)
    active = gaussians.active_sh_degree
    degree = active if sh_degree is None else min(sh_degree, active)
    plain = torch.full((3,), background)
    views = render(gaussians, cameras, plain, sh_degree=degree, **(options or {}))
    if channel == "depth":
        return colored_depth(disparity(views, cameras))[0]
    return to_uint8(views.alphas if channel == "opacity" else views.images)[0]


def side_by_side(left: GaussianModel, right: GaussianModel, apart: float) -> GaussianModel:
    """Both in one, `apart` world units from each other, `left` on the left of who looks at the front."""
    degree = max(left.active_sh_degree, right.active_sh_degree)
    count = max(left.sh_rest.shape[1], right.sh_rest.shape[1])
    parts = []
    for model, x in ((left, apart / 2), (right, -apart / 2)):
        tensors = {name: getattr(model, name).detach() for name in model.parameter_names}
        tensors["means"] = tensors["means"] + tensors["means"].new_tensor([x, 0.0, 0.0])
        tensors["sh_rest"] = _padded(tensors["sh_rest"], count)
        parts.append(tensors)
    both = GaussianModel(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    both.active_sh_degree = degree
    return both


def _padded(sh_rest: Float[Tensor, "N R 3"], count: int) -> Float[Tensor, "N R2 3"]:
    return torch.nn.functional.pad(sh_rest, (0, 0, 0, count - sh_rest.shape[1]))


def covariances(gaussians: GaussianModel) -> Float[np.ndarray, "N 3 3"]:
    """Of the Gaussians, as browsers that draw splats take them."""
    axes = quaternions_to_matrices(gaussians.rotations.detach()) * gaussians.scales.detach()[:, None]
    return (axes @ axes.transpose(1, 2)).cpu().numpy()
