"""3D Gaussians as what is optimised: cameras, augmentations, regularisers and density control around `render`."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arguments import Config
from dreammapping.memory import gaussian_bytes, most_gaussians
from dreammapping.outputs import fractions
from dreammapping.subject import Shown, Subject
from gaussian_renderer import Views, disparity, render, usable
from guidance.prior.score_model import ScoreModel
from guidance.prior.shap_e import text_to_mesh
from guidance.prompts import ViewPrompts
from scene.augmentation import sample_augmentation, sample_flip
from scene.camera_sampling import CameraSampler
from scene.cameras import Cameras, orbit
from scene.density import RESET_OPACITY, DensityControl, Footprint
from scene.frame import to_file
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import build_optimizer, set_learning_rates
from scene.initialization import initial_points
from scene.ply import read_gaussians, write_gaussians
from scene.regularizers import total_variation
from scene.splat_formats import read_any
from utils.distributed import from_first, gathered, own, processes, share
from utils.errors import UserError
from utils.files import atomic
from utils.optimizers import load_moments
from utils.paths import user_path
from utils.replay import Replayed
from utils.spherical_harmonics import coefficient_count, sh_dc_to_rgb

log = logging.getLogger(__name__)

SH_DEGREE_INTERVAL = 500
"""Iterations after which one more band of spherical harmonics is used (upstream)."""
CHUNK = 8
"""Views rendered in one call, where no gradient is wanted."""
LIGHT = 0.88
"""The light ground of test views and videos, in sRGB."""
SIDES = 4
"""Test cameras, all around, one of which must see an asset."""
FAINTEST = 2 * RESET_OPACITY
"""An asset is seen if one of its Gaussians is more opaque than this."""


class Gaussians(Subject):
    """A cloud of Gaussians, seen by random cameras.

    Args:
        load_prior: gives the diffusion model, whose text tower encodes the prompts.
        rng: draws the start shape.

    Raises:
        UserError: the device has not the backend, or the start shape or the prompt cannot be used.
    """

    replicas = True

    def __init__(
        self,
        config: Config,
        load_prior: Callable[[], ScoreModel],
        rng: torch.Generator,
        device: torch.device,
    ) -> None:
        backend = config.PipelineParams.backend
        if usable(backend, device) != backend:
            raise UserError(
                f"PipelineParams.backend: expected kernels that run on {device}, got {backend}; use backend=auto"
            )
        # a shape from text takes minutes and comes after all that can fail within seconds
        start = None if config.starts_from_text else initial_gaussians(config, rng, device)
        prior = load_prior()
        self.prompts = ViewPrompts(prior, config.GuidanceParams)
        prior.drop_text_encoder()
        if start is None:
            start = initial_gaussians(config, rng, device)

        self.config, self.device = config, device
        self.views = share(config.GuidanceParams.C_batch_size, "GuidanceParams.C_batch_size")
        self.extent = config.GenerateCamParams.default_radius
        self.most = from_first(most_gaussians(config, prior.plan))
        # the prior sees squares: whatever is as wide as the renders, which their field of view spans
        square = dataclasses.replace(config.GenerateCamParams, image_h=config.GenerateCamParams.image_w)
        self.cameras = CameraSampler(square, config.OptimizationParams, config.ModelParams.batch)
        saves = fractions(config.iterations, config.save_ratio)
        self.density = DensityControl(config.OptimizationParams, self.extent, self.most, saves)
        self.gaussians = start.to(device)
        self.optimizer = build_optimizer(self.gaussians, config.OptimizationParams, self.extent)
        self.last: tuple[Views, Tensor] | None = None
        self._roughness = Replayed("the renders' roughness", roughness)

    def show(self, step: int, rng: torch.Generator) -> Shown:
        params, gaussians = self.config.OptimizationParams, self.gaussians
        gaussians.active_sh_degree = max(
            gaussians.active_sh_degree, min(step // SH_DEGREE_INTERVAL, gaussians.sh_degree)
        )
        set_learning_rates(self.optimizer, params, self.extent, step)

        cameras = own(self.cameras.sample(self.config.GuidanceParams.C_batch_size, step, rng))
        poses = cameras.world_to_camera.inverse().to(self.device, non_blocking=True)
        text = self.prompts(cameras.azimuth_deg, poses)  # on the host, where angles are
        cameras = cameras.to(self.device)
        views, scales = self.render_augmented(cameras, rng)
        shapes = disparity(views, cameras)
        by_shape = step < params.geo_iter or chance(params.as_latent_ratio, rng)
        images = shapes.expand(-1, 3, -1, -1) if by_shape else views.images
        if sample_flip(rng):
            images = images.flip(-1)
        self.last = views, shapes

        def losses() -> dict[str, Tensor]:
            return {
                "tv": params.lambda_tv * self._roughness(views.images, shapes),
                "scale": params.lambda_scale * scales.mean(),
            }

        return Shown(images, text, losses=losses)

    def render_augmented(self, cameras: Cameras, rng: torch.Generator) -> tuple[Views, Tensor]:
        """Render with upstream's augmentations; returns the views and the scales they were drawn with."""
        gaussians = self.gaussians
        drawn = sample_augmentation(
            self.config.ModelParams,
            len(cameras) * processes(),
            gaussians.sh.shape,
            gaussians.active_sh_degree,
            rng,
            self.device,
        )
        scales = gaussians.scales
        if drawn.scale_factors is not None:
            scales = scales * own(drawn.scale_factors)
        views = render(
            gaussians,
            cameras,
            own(drawn.backgrounds).to(self.device, non_blocking=True),
            scales=scales,
            sh=gaussians.sh if drawn.sh_factors is None else gaussians.sh * drawn.sh_factors,
            sh_degree=own(drawn.sh_degrees),
            **_options(self.config),
        )
        return views, scales

    def record(self) -> None:
        rng, size = torch.Generator(self.device).manual_seed(0), self.config.GenerateCamParams.image_w

        def sample() -> tuple[Tensor, ...]:
            shapes = ((self.views, channels, size, size) for channels in (3, 1))
            return tuple(torch.rand(s, generator=rng, device=self.device).requires_grad_() for s in shapes)

        self._roughness.record(sample)

    def grow(self, step: int, rng: torch.Generator) -> None:
        if self.last is None:
            raise RuntimeError("grow before show")
        views, _ = self.last
        footprint = views.footprint
        if step < self.config.OptimizationParams.densify_until_iter:
            footprint = footprint_of_all(footprint)
        self.density.update(self.gaussians, self.optimizer, footprint, step, rng)

    def bookmark(self) -> Callable[[], None]:
        return partial(self.cameras.load_state_dict, self.cameras.state_dict())

    def pictures(self) -> dict[str, Float[Tensor, "B _ H W"]]:
        """Image, disparity and opacity."""
        if self.last is None:
            front = orbit(1, self.config.GenerateCamParams).to(self.device)
            with torch.no_grad():
                views = render(self.gaussians, front, plain_background(self.config), **_options(self.config))
            self.last = views, disparity(views, front)
        views, shapes = self.last
        return {"image": views.images, "disparity": shapes, "opacity": views.alphas}

    @torch.no_grad()
    def look(self, cameras: Cameras) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]]:
        """Images and disparities of `cameras` before the plain background, a chunk of views at a time."""
        for start in range(0, len(cameras), CHUNK):
            chunk = cameras[start : start + CHUNK].to(self.device)
            views = render(self.gaussians, chunk, plain_background(self.config), **_options(self.config))
            yield views.images, disparity(views, chunk)

    @property
    def sh_degree(self) -> int:
        """Harmonics of the files that are saved."""
        return self.gaussians.sh_degree

    def points(self) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Centres, and colours in [0, 1] without harmonics."""
        return self.gaussians.means.detach(), sh_dc_to_rgb(self.gaussians.sh_dc.detach()[:, 0])

    def save(self, folder: Path, step: int) -> Path:
        """`point_cloud/iteration_<step>/point_cloud.ply`, and centres and colours as text beside it."""
        path = _asset(folder, step)
        write_gaussians(path, self.gaussians, comments=(f"prompt {self.config.GuidanceParams.text}",))
        points, colors = (values.cpu() for values in self.points())
        with atomic(path.with_name("point_cloud_rgb.txt")) as text:
            np.savetxt(text, torch.cat([to_file(points), colors], dim=1).numpy(), fmt="%.6f")
        return path

    @torch.no_grad()
    def check(self, folder: Path, step: int) -> None:
        path = _asset(folder, step)
        if not path.is_file():
            self.save(folder, step)
        saved = read_gaussians(path).to(self.device)
        seen = in_sight(saved, self.config)
        opacity = float(saved.opacities[seen].amax()) if seen.any() else 0.0
        if not opacity > FAINTEST:
            raise UserError(
                f"{path}: expected Gaussians that can be seen, got none in sight with an opacity over {FAINTEST} (the "
                f"most is {opacity:.4f}); start anew with another start shape, a lower guidance_scale or a longer run"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "gaussians": dict(self.gaussians.named_parameters()),
            "optimizer": self.optimizer.state_dict(),
            "density": self.density.state_dict(),
            "cameras": self.cameras.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gaussians.replace({name: tensor.to(self.device) for name, tensor in state["gaussians"].items()})
        self.optimizer = build_optimizer(self.gaussians, self.config.OptimizationParams, self.extent)
        load_moments(self.optimizer, state["optimizer"])
        self.density.load_state_dict(state["density"])
        self.cameras.load_state_dict(state["cameras"])

    def numbers(self) -> dict[str, int]:
        return {"gaussians": len(self.gaussians)}

    def memory(self) -> dict[str, int]:
        images = self.config.GenerateCamParams
        # without a cap, what a run of the paper's setting grows to
        count = self.most or max(4 * len(self.gaussians), 500_000)
        coefficients = coefficient_count(self.config.ModelParams.sh_degree)
        size = gaussian_bytes(count, coefficients, self.views, images.image_w, images.image_w)
        return {"Gaussians and their renders": size}

    def savings(self) -> list[str]:
        cameras, count = self.config.GenerateCamParams, len(self.gaussians)
        tries = (
            [f"max_gaussians={count} (the present number)"] if self.most is None or count < self.most else []
        )
        tries += [f"a smaller C_batch_size (now {self.config.GuidanceParams.C_batch_size})"]
        return [*tries, f"smaller image_w and image_h (now {cameras.image_w} x {cameras.image_h})"]


def roughness(images: Float[Tensor, "B 3 H W"], shapes: Float[Tensor, "B 1 H W"]) -> Float[Tensor, ""]:
    """How little the renders are smooth: total variation of images and disparities."""
    return total_variation(images) + total_variation(shapes)


def footprint_of_all(footprint: Footprint) -> Footprint:
    """What the views of all processes saw: density is controlled by all of them, everywhere alike."""
    if processes() == 1 or footprint.means2d.grad is None:
        return footprint
    gradients = gathered(footprint.means2d.grad)
    whole = Footprint(torch.zeros_like(gradients, requires_grad=True), gathered(footprint.radii))
    whole.means2d.grad = gradients
    return whole


def initial_gaussians(config: Config, rng: torch.Generator, device: torch.device) -> GaussianModel:
    """The Gaussians that a run starts from: those of `pretrained_model_path`, or its start shape's points.

    Raises:
        UserError: the file or the start shape cannot be used.
    """
    model, cameras = config.ModelParams, config.GenerateCamParams
    if model.pretrained_model_path:
        path = user_path(model.pretrained_model_path, "ModelParams.pretrained_model_path")
        start = read_any(path, model.sh_degree)
        _refuse_out_of_sight(start.to(device), config, path)
        return start
    points, colors = initial_points(cameras, rng, shape_from_text(config, device))
    return GaussianModel.from_points(points, colors, model.sh_degree)


def _refuse_out_of_sight(gaussians: GaussianModel, config: Config, path: Path) -> None:
    """Raise UserError where no camera sees any of them, and warn where they are farther away than the cameras."""
    middle = gaussians.means.detach().median(dim=0).values
    where, radius = ", ".join(f"{x:g}" for x in middle.tolist()), config.GenerateCamParams.default_radius
    if not in_sight(gaussians, config).any():
        raise UserError(
            f"{path}: expected Gaussians around the origin, where the cameras look, got none in sight, as they lie "
            f"around ({where}); move them to the origin"
        )
    if middle.norm() > radius:
        log.warning(
            "%s: lies around (%s), and the cameras look at the origin from %g units away; move it to the origin",
            path, where, radius,
        )  # fmt: skip


@torch.no_grad()
def in_sight(gaussians: GaussianModel, config: Config) -> Bool[Tensor, " N"]:
    """Which Gaussians one of the test cameras all around draws."""
    around = orbit(SIDES, config.GenerateCamParams).to(gaussians.means.device)
    views = render(gaussians, around, plain_background(config), **_options(config))
    return (views.footprint.radii > 0).any(dim=0)


def shape_from_text(config: Config, device: torch.device) -> Callable[[], Any]:
    """What makes Shap-E's mesh of the settings' prompt, as trimesh has it."""
    cameras = config.GenerateCamParams
    prompt = cameras.init_prompt or config.GuidanceParams.text

    def made_from_text() -> Any:
        import trimesh

        mesh = text_to_mesh(prompt, config.seed, cameras, device)
        colors = (mesh.colors * 255).round().byte().numpy()
        return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colors, process=False)

    return made_from_text


def _asset(folder: Path, step: int) -> Path:
    return folder / "point_cloud" / f"iteration_{step}" / "point_cloud.ply"


def plain_background(config: Config) -> Float[Tensor, "3"]:
    """Light grey, on which a white asset is seen too, or black: what test views and videos stand before."""
    return torch.full((3,), LIGHT if config.ModelParams.white_background else 0.0)


def _options(config: Config) -> dict[str, Any]:
    params = config.PipelineParams
    return {"backend": params.backend, "direct_rgb": params.convert_SHs_python, "debug": params.debug}


def chance(probability: float, rng: torch.Generator) -> bool:
    """Whether something that happens with a probability happens now."""
    return bool(torch.rand((), generator=rng) < probability)
