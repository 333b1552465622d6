"""The parameters of N Gaussians, and what they mean once activated."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from simple_knn._C import distCUDA2
from torch import Tensor, nn

from utils.spherical_harmonics import coefficient_count, rgb_to_sh_dc

INITIAL_OPACITY = 0.1


class GaussianModel(nn.Module):
    """N anisotropic Gaussians with colour as spherical harmonics (3D Gaussian Splatting's parameters).

    Stored raw, read through properties: `scales` (standard deviations, world units) = exp(`log_scales`),
    `rotations` = normalised `quats` (w, x, y, z), `opacities` in (0, 1) = sigmoid(`opacity_logits`).
    """

    parameter_names = ("means", "log_scales", "quats", "opacity_logits", "sh_dc", "sh_rest")

    means: nn.Parameter
    log_scales: nn.Parameter
    quats: nn.Parameter
    opacity_logits: nn.Parameter
    sh_dc: nn.Parameter
    sh_rest: nn.Parameter

    def __init__(
        self,
        *,
        means: Float[Tensor, "N 3"],
        log_scales: Float[Tensor, "N 3"],
        quats: Float[Tensor, "N 4"],
        opacity_logits: Float[Tensor, "N 1"],
        sh_dc: Float[Tensor, "N 1 3"],
        sh_rest: Float[Tensor, "N R 3"],
    ) -> None:
        super().__init__()
        self.active_sh_degree = 0
        self.replace(
            {
                "means": means,
                "log_scales": log_scales,
                "quats": quats,
                "opacity_logits": opacity_logits,
                "sh_dc": sh_dc,
                "sh_rest": sh_rest,
            }
        )

    @classmethod
    def from_points(
        cls, points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"], sh_degree: int
    ) -> "GaussianModel":
        """Round Gaussians on a cloud of at least 4 points.

        Each is as wide as the root mean square distance to its 3 nearest neighbours. `colors` are in [0, 1];
        opacity starts at 0.1, bands above 0 at zero.
        """
        count = len(points)
        log_widths = 0.5 * distCUDA2(points.float().contiguous()).clamp_min(1e-7).log()
        opacity = math.log(INITIAL_OPACITY / (1 - INITIAL_OPACITY))
        return cls(
            means=points.float(),
            log_scales=log_widths[:, None].repeat(1, 3),
            quats=points.new_tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float32).repeat(count, 1),
            opacity_logits=points.new_full((count, 1), opacity, dtype=torch.float32),
            sh_dc=rgb_to_sh_dc(colors.float())[:, None],
            sh_rest=points.new_zeros((count, coefficient_count(sh_degree) - 1, 3), dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        """The highest degree that the coefficients allow; `active_sh_degree` is the one in use."""
        return math.isqrt(1 + self.sh_rest.shape[1]) - 1

    @property
    def scales(self) -> Float[Tensor, "N 3"]:
        return self.log_scales.exp()

    @property
    def rotations(self) -> Float[Tensor, "N 4"]:
        return F.normalize(self.quats, dim=-1)

    @property
    def opacities(self) -> Float[Tensor, "N 1"]:
        return self.opacity_logits.sigmoid()

    @property
    def sh(self) -> Float[Tensor, "N K 3"]:
        return torch.cat([self.sh_dc, self.sh_rest], dim=1)

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Put new parameters, without gradients, in the place of the named ones.

        They are new objects on purpose: a graph that still holds the old ones stays valid. An optimiser must
        be told (`scene.gaussian_optimizer.edit` does).
        """
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor.detach().clone()))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.active_sh_degree)

    def set_extra_state(self, state: Tensor) -> None:
        self.active_sh_degree = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the number of Gaussians from the saved state; the parameters stay the same objects."""
        for name in self.parameter_names:
            parameter, saved = getattr(self, name), state_dict.get(prefix + name)
            if saved is not None and saved.shape != parameter.shape:
                parameter.data = parameter.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
