"""Gaussians between the model and a file of any format: raw float32 values, checked, in the file's frame.

A table has `means` (N, 3), `log_scales` (N, 3), `quats` (N, 4) in the order w, x, y, z, `opacity_logits` (N, 1) and
`sh` (N, K, 3), band 0 first.
"""

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from scene.frame import turn
from scene.gaussian_model import GaussianModel
from scene.strays import strays
from utils.errors import UserError
from utils.rotations import conjugate_quaternions
from utils.spherical_harmonics import coefficient_count

log = logging.getLogger(__name__)

OPAQUE_LOGIT = 15.0
"""Stands for an infinite logit: of opacity 1, or negative of opacity 0, to 3e-7; its gradient is not quite zero."""
FLAT_LOG_SCALE = -20.0
"""Stands for the logarithm of 0: thinner than any pixel, and finite."""


def raw_table(path: Path | str, model: GaussianModel, frame: tuple[float, ...]) -> dict[str, Tensor]:
    """What a file of Gaussians holds: float32 on the CPU, quaternions normalised, turned by the quaternion `frame`.

    Raises:
        UserError: a parameter is not finite.
    """
    tensors = {name: getattr(model, name).detach().cpu().float() for name in model.parameter_names}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: expected finite Gaussians, got NaN or infinity in {name}; nothing was written"
            )
    tensors["quats"] = model.rotations.detach().cpu().float()
    tensors["sh"] = torch.cat([tensors.pop("sh_dc"), tensors.pop("sh_rest")], dim=1)
    return turn(tensors, torch.tensor(frame))


def model_of(
    path: Path | str, tensors: dict[str, Tensor], frame: tuple[float, ...] | None, sh_degree: int = 0
) -> GaussianModel:
    """The Gaussians of a file's table, turned back by the quaternion `frame`; None: the table is in our frame.

    All bands of the table are active. An opacity of exactly 0 or 1 and a scale of 0, whose raw values are infinite,
    become finite; Gaussians that are not finite otherwise are left out, with a warning. Where float64 `means` lie too
    far from the origin for float32, all are moved there, with a warning.

    Args:
        sh_degree: bands up to this degree can be learnt; those that the table does not have are zero.

    Raises:
        UserError: no Gaussian is finite.
    """
    tensors = dict(tensors)
    tensors["opacity_logits"] = tensors["opacity_logits"].nan_to_num(torch.nan, OPAQUE_LOGIT, -OPAQUE_LOGIT)
    tensors["log_scales"] = tensors["log_scales"].nan_to_num(torch.nan, torch.inf, FLAT_LOG_SCALE)
    tensors = finite_rows(path, tensors)
    tensors["means"] = _near_the_origin(path, tensors["means"])
    if frame is not None:
        tensors = turn(tensors, conjugate_quaternions(torch.tensor(frame)))
    sh = tensors.pop("sh")
    coefficients = sh.shape[1]
    missing = max(coefficient_count(sh_degree) - coefficients, 0)
    model = GaussianModel(**tensors, sh_dc=sh[:, :1], sh_rest=F.pad(sh[:, 1:], (0, 0, 0, missing)))
    model.active_sh_degree = round(coefficients**0.5) - 1
    return model


def finite_rows(path: Path | str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The Gaussians without those that float32 cannot reckon with. Raises UserError where none is left."""
    lengths = [  # as turning them needs
        tensor.float().square().flatten(1).sum(dim=1) for tensor in tensors.values()
    ]
    whole = torch.stack(lengths).isfinite().all(dim=0)
    count, broken = len(whole), int((~whole).sum())
    if broken == 0:
        return tensors
    if broken == count:
        raise UserError(f"{path}: expected finite Gaussians, got none among {count}; export it again")
    log.warning("%s: %d of %d Gaussians are not finite and are left out", path, broken, count)
    return {name: tensor[whole] for name, tensor in tensors.items()}


def _near_the_origin(path: Path | str, means: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Positions as float32; those that it would round by a thousandth of their extent are centred before.

    Of this the extent of nearly all tells: a single one far beyond them would hide that the others fall together.
    """
    if torch.equal(means.float().double(), means.double()):
        return means.float()
    near = means[~strays(means)]
    low, high = near.amin(dim=0), near.amax(dim=0)
    lost = (near - near.float().double()).abs().max()
    if lost <= 1e-3 * (high - low).max() or len(means) == 1:
        return means.float()
    middle = (low + high) / 2
    where = ", ".join(f"{x:g}" for x in middle.tolist())
    log.warning("%s: lies around (%s), too far from the origin for float32; moved to the origin", path, where)
    return (means - middle).float()
