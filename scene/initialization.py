"""The points that training starts from: a primitive, a shape of the user's, or one made from text.

Meshes and clouds are centred and scaled to a longest side of 1. Formats whose convention is y up, front +z
(.glb, .gltf, .obj) are turned to our z up, front +y; .ply and .stl are taken as they are.
"""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams
from arguments.groups.cameras import SHAP_E
from scene import ply
from scene.mesh import GREY, refuse_too_many_faces, sample_file, sample_surface, surface_of
from scene.strays import strays, warn_of_rounding, warn_of_strays
from utils.errors import UserError
from utils.paths import user_path

if TYPE_CHECKING:
    import trimesh

log = logging.getLogger(__name__)

Points = tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None]
"""Positions, and colours in [0, 1] or None for grey."""

TextToMesh = Callable[[], "trimesh.Trimesh"]
"""Makes a coloured mesh of the prompt, z up, front +y; raises UserError where it cannot."""

Y_UP_SUFFIXES = (".glb", ".gltf", ".obj")
MESH_SUFFIXES = (*Y_UP_SUFFIXES, ".stl", ".ply")


def initial_points(
    params: GenerateCamParams, rng: torch.Generator, text_to_mesh: TextToMesh | None = None
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Positions and colours in [0, 1] of `params.init_shape`, on the CPU; grey where it has no colour.

    Args:
        text_to_mesh: makes the shape where `init_shape` is one made from text.

    Raises:
        UserError: `init_path` is missing, or is no usable mesh or point cloud; or the shape made from text is missing
            and `init_fallback` is "stop".
    """
    points, colors = SHAPES[params.init_shape](params, rng, text_to_mesh)
    if colors is None:
        colors = torch.full_like(points, GREY)
    return points * params.init_scale, colors


def _uniform(shape: tuple[int, ...], rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _on_rays(radius: Float[Tensor, "N"], rng: torch.Generator) -> Float[Tensor, "N 3"]:
    """Points at distances `radius`, uniform in both angles: denser at the poles, as upstream."""
    polar = _uniform(radius.shape, rng, 0.0, math.pi)
    azimuth = _uniform(radius.shape, rng, 0.0, 2 * math.pi)
    unit = torch.stack([polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos(), polar.cos()], dim=-1)
    return radius[:, None] * unit


def _sphere(params: GenerateCamParams, rng: torch.Generator, _mesh: TextToMesh | None) -> Points:
    return _on_rays(_uniform((params.init_num_pts,), rng, 0.0, 0.5), rng), None


def _ball(params: GenerateCamParams, rng: torch.Generator, _mesh: TextToMesh | None) -> Points:
    """Uniform in the volume (DreamGaussian)."""
    directions = torch.nn.functional.normalize(torch.randn((params.init_num_pts, 3), generator=rng), dim=1)
    return 0.5 * _uniform((params.init_num_pts, 1), rng) ** (1 / 3) * directions, None


def _scene(params: GenerateCamParams, rng: torch.Generator, _mesh: TextToMesh | None) -> Points:
    """A shell around the cameras."""
    return _on_rays(_uniform((params.init_num_pts,), rng) + 3 * params.radius_range[1], rng), None


def _cuboid(*half_sides: float) -> Callable[[GenerateCamParams, torch.Generator, TextToMesh | None], Points]:
    def fill(params: GenerateCamParams, rng: torch.Generator, _mesh: TextToMesh | None) -> Points:
        return _uniform((params.init_num_pts, 3), rng, -1.0, 1.0) * torch.tensor(half_sides), None

    return fill


def _text_to_shape(
    params: GenerateCamParams, rng: torch.Generator, text_to_mesh: TextToMesh | None
) -> Points:
    """The surface of a mesh made from text; a sphere where there is none and the settings allow it."""
    where = f"GenerateCamParams.init_shape: {params.init_shape}"
    try:
        if text_to_mesh is None:
            raise UserError(
                f"{where}: expected a prompt and a model that makes shapes from text, got none; set init_shape=sphere"
            )
        mesh = text_to_mesh()
    except UserError as error:
        if params.init_fallback == "stop":
            raise
        log.warning("%s; starting from a sphere", error)
        return _sphere(params, rng, None)
    points, colors = sample_surface([surface_of(mesh)], params.init_num_pts, rng)
    # LucidDreamer's switch is for its own shape
    keep_colors = params.init_shape != "pointe" or params.use_pointe_rgb
    return _centred(points, where), colors if keep_colors else None


def _file(params: GenerateCamParams, rng: torch.Generator, _mesh: TextToMesh | None) -> Points:
    if not params.init_path:
        raise UserError(
            "GenerateCamParams.init_path: expected a mesh or point cloud for init_shape: file, got nothing; set it"
        )
    path = user_path(params.init_path, "GenerateCamParams.init_path")
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        splats = suffix in (".splat", ".spz")
        advice = "give these Gaussians as pretrained_model_path" if splats else "convert it"
        raise UserError(
            f"GenerateCamParams.init_path: expected one of {', '.join(MESH_SUFFIXES)}, got {path.name}; {advice}"
        )
    refuse_too_many_faces(path)
    if suffix == ".ply" and not ply.has_faces(path):
        points, colors = _without_strays(path, *ply.read_points(path))
        if points.dtype == torch.float32:
            warn_of_rounding(path, points)
        chosen = torch.randperm(len(points), generator=rng)[: params.init_num_pts]
        points, colors = points[chosen], None if colors is None else colors[chosen]
    else:
        points, colors = sample_file(path, params.init_num_pts, rng)
    if len(points) < 4:
        raise UserError(f"{path}: expected at least 4 points, got {len(points)}; use a file with more")
    if suffix in Y_UP_SUFFIXES:
        points = torch.stack([-points[:, 0], points[:, 2], points[:, 1]], dim=-1)
    return _centred(points, path), colors


def _without_strays(
    path: Path, points: Float[Tensor, "N 3"], colors: Float[Tensor, "N 3"] | None
) -> tuple[Float[Tensor, "M 3"], Float[Tensor, "M 3"] | None]:
    """The points that make the shape; those far beyond all others would leave it a dot."""
    far = strays(points.double())
    if not far.any():
        return points, colors
    warn_of_strays(path, int(far.sum()), len(far), "points")
    return points[~far], None if colors is None else colors[~far]


SHAPES: dict[str, Callable[[GenerateCamParams, torch.Generator, TextToMesh | None], Points]] = {
    "sphere": _sphere,
    "ball": _ball,
    "box": _cuboid(0.5, 0.5, 0.5),
    "rectangle_x": _cuboid(0.3, 0.6, 0.25),
    "rectangle_z": _cuboid(0.4, 0.3, 0.6),
    "scene": _scene,
    "file": _file,
    **dict.fromkeys(SHAP_E, _text_to_shape),
}


def _centred(points: Float[Tensor, "N 3"], path: Path | str) -> Float[Tensor, "N 3"]:
    """As float32, which cannot tell points apart that lie where surveyors count from: so they are centred before."""
    points = points.double()
    low, high = points.amin(dim=0), points.amax(dim=0)
    side = (high - low).max()
    if not (side.isfinite() and side > torch.finfo(side.dtype).tiny):  # below it numbers lose their digits
        raise UserError(
            f"{path}: expected a shape of finite size, got a longest side of {side:g}; use another shape"
        )
    # from the corner: where the numbers are far larger than the shape, their middle is rounded, and differences are not
    return ((points - low - (high - low) / 2) / side).float()
