"""A radiance field as what is optimised: cameras, rays and regularisers around `field_renderer.render`."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import Config, FieldParams
from dreammapping.field_memory import field_bytes, rays_at_once, refuse_too_large
from dreammapping.gaussians import SIDES, chance, plain_background, shape_from_text
from dreammapping.subject import Shown, Subject
from field_renderer import FieldViews, Sampling, render
from gaussian_renderer import disparity
from guidance.prior.score_model import ScoreModel
from guidance.prompts import ViewPrompts
from scene.augmentation import sample_backgrounds, sample_flip
from scene.camera_sampling import CameraSampler
from scene.cameras import Cameras, orbit
from scene.field_file import read_field, write_field
from scene.field_regularizers import emptiness, entropy, facing_away, ramped, sparsity, z_variance
from scene.field_start import Solid, field_start
from scene.occupancy import Occupancy
from scene.radiance_field import (
    HashGrid,
    RadianceField,
    VoxelGrid,
    hash_cells,
    new_hash_grid,
    new_voxel_grid,
    resized,
)
from scene.regularizers import total_variation
from scene.surface import surface, write_mesh
from utils.errors import UserError
from utils.learning_rate import log_linear
from utils.optimizers import load_moments
from utils.paths import user_path

log = logging.getLogger(__name__)

FAINTEST = 0.5
"""An asset is seen if a pixel of it is more opaque than this."""
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "adamax": torch.optim.Adamax}
ASSET, MESH = "field.safetensors", "mesh.ply"


class Field(Subject):
    """A radiance field in a cube, seen by random cameras.

    Args:
        load_prior: gives the diffusion model, whose text tower encodes the prompts.
        rng: draws the start.

    Raises:
        UserError: the field would not fit; the start or the prompt cannot be used; or cameras stand within the start.
    """

    def __init__(
        self,
        config: Config,
        load_prior: Callable[[], ScoreModel],
        rng: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config, self.device, self.params = config, device, config.FieldParams
        refuse_too_large(config, device)
        # a shape from text takes minutes and comes after all that can fail within seconds
        start = None if config.starts_from_text else initial_field(config, rng, device)
        prior = load_prior()
        self.prompts = ViewPrompts(prior, config.GuidanceParams)
        prior.drop_text_encoder()
        self.field = (start or initial_field(config, rng, device)).to(device)

        self.views = config.GuidanceParams.C_batch_size
        self.chunk = self.params.ray_chunk or rays_at_once(config, prior.plan.name)
        # the prior sees squares: whatever is as wide as the renders, which their field of view spans
        square = dataclasses.replace(config.GenerateCamParams, image_h=config.GenerateCamParams.image_w)
        self.cameras = CameraSampler(square, config.OptimizationParams, config.ModelParams.batch)
        self.occupancy = Occupancy(
            self.field.bound, self.params.occupancy_resolution, self.params.occupancy_threshold, device
        )
        if self.params.occupancy_interval:
            self.occupancy.update(self.field, rng)
        self.optimizer = build_optimizer(self.field, self.params)
        self.last: tuple[FieldViews, Tensor] | None = None

    def show(self, step: int, rng: torch.Generator) -> Shown:
        params, optimization = self.params, self.config.OptimizationParams
        rate = log_linear(step, params.field_lr, params.field_lr_final, optimization.iterations)
        self.optimizer.param_groups[0]["lr"] = rate
        if isinstance(self.field, HashGrid):
            self.field.active = levels_at(step, params)

        cameras = self.cameras.sample(self.views, step, rng)
        if params.early_width is not None and step <= params.early_iter:
            cameras = dataclasses.replace(cameras, width=params.early_width, height=params.early_width)
        poses = cameras.world_to_camera.inverse().to(self.device, non_blocking=True)
        text = self.prompts(cameras.azimuth_deg, poses)  # on the host, where angles are
        backgrounds = sample_backgrounds(self.config.ModelParams, self.views, rng)
        normals = ramped(params.lambda_orient, params.ramp_iter, step) > 0
        views = self._render(cameras, backgrounds, rng=rng, chunk=self.chunk, normals=normals)
        shapes = disparity(views, cameras.to(self.device))
        by_shape = step < optimization.geo_iter or chance(optimization.as_latent_ratio, rng)
        images = shapes.expand(-1, 3, -1, -1) if by_shape else views.images
        if sample_flip(rng):
            images = images.flip(-1)
        self.last = views, shapes
        return Shown(images, text, losses=lambda: self._losses(views, shapes, step))

    def _losses(self, views: FieldViews, shapes: Tensor, step: int) -> dict[str, Tensor]:
        """The regularisers whose weight is not 0, by name."""
        params, tv = self.params, self.config.OptimizationParams.lambda_tv
        terms = {
            "sparsity": (params.lambda_sparsity, lambda: sparsity(views.alphas)),
            "opaque": (params.lambda_opaque, lambda: entropy(views.alphas)),
            "orient": (params.lambda_orient, lambda: facing_away(views.facing_away, views.alphas)),
            "z_variance": (params.lambda_z_variance, lambda: z_variance(views.variances, views.alphas)),
            "emptiness": (params.lambda_emptiness, lambda: emptiness(views.emptiness)),
            "smooth": (params.lambda_smooth, self.field.roughness),
        }
        weighed = {
            name: (weight, term)
            for name, (weights, term) in terms.items()
            if (weight := ramped(weights, params.ramp_iter, step)) > 0
        }
        losses = {name: weight * term() for name, (weight, term) in weighed.items()}
        if tv > 0:
            losses["tv"] = tv * (total_variation(views.images) + total_variation(shapes))
        return losses

    def _render(
        self,
        cameras: Cameras,
        backgrounds: Float[Tensor, "*#B 3"],
        *,
        rng: torch.Generator | None = None,
        chunk: int | None = None,
        normals: bool = False,
    ) -> FieldViews:
        sampling = Sampling(self.params.samples, self.params.importance_samples, normals)
        occupancy = self.occupancy if self.params.occupancy_interval else None
        return render(
            self.field,
            cameras.to(self.device),
            backgrounds.to(self.device),
            sampling,
            occupancy=occupancy,
            rng=rng,
            chunk=chunk,
        )

    def grow(self, step: int, rng: torch.Generator) -> None:
        if isinstance(self.field, VoxelGrid):
            wanted = resolution_at(step, self.config.iterations, self.params)
            if wanted != self.field.resolution:
                resize(self.field, self.optimizer, wanted)
        interval = self.params.occupancy_interval
        if interval and step % interval == 0:
            self.occupancy.update(self.field, rng)

    def bookmark(self) -> Callable[[], None]:
        return partial(self.cameras.load_state_dict, self.cameras.state_dict())

    def pictures(self) -> dict[str, Float[Tensor, "B _ H W"]]:
        """Image, disparity and opacity."""
        if self.last is None:
            front = orbit(1, self.config.GenerateCamParams)
            with torch.no_grad():
                views = self._render(front, plain_background(self.config), chunk=self.chunk)
            self.last = views, disparity(views, front.to(self.device))
        views, shapes = self.last
        return {"image": views.images, "disparity": shapes, "opacity": views.alphas}

    @torch.no_grad()
    def look(self, cameras: Cameras) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]]:
        """Images and disparities of `cameras` before the plain background, one view at a time."""
        occupancy = self.occupancy if self.params.occupancy_interval else None
        seen = look(self.field, cameras, plain_background(self.config), self.params, self.chunk, occupancy)
        for index, views in enumerate(seen):
            yield views.images, disparity(views, cameras[index : index + 1].to(self.device))

    @property
    def sh_degree(self) -> int:
        """A field's colours do not depend on the view."""
        return 0

    @torch.no_grad()
    def points(self) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """The middles of the cells that are not empty, and their colours in [0, 1]."""
        points = self.occupancy.middles()
        return points.t(), self.field(points)[1]

    def save(self, folder: Path, step: int) -> Path:
        """`field.safetensors`, and its surface as `mesh.ply`; the newest are kept."""
        path = folder / ASSET
        write_field(path, self.field, step, self.config.GuidanceParams.text)
        side = self.field.resolution if isinstance(self.field, VoxelGrid) else self.params.resolution_final
        mesh = surface(self.field, self.params.mesh_density, side)
        if mesh is None:
            log.warning(
                "iteration %d: the field is nowhere denser than mesh_density=%g, so it has no mesh",
                step,
                self.params.mesh_density,
            )
        else:
            write_mesh(folder / MESH, mesh)
        return path

    @torch.no_grad()
    def check(self, folder: Path, step: int) -> None:
        path = folder / ASSET
        if not path.is_file():
            self.save(folder, step)
        saved = read_field(path).to(self.device)
        around = orbit(SIDES, self.config.GenerateCamParams)
        seen = look(saved, around, plain_background(self.config), self.params, self.chunk)
        opacity = max(float(views.alphas.amax()) for views in seen)
        if not opacity > FAINTEST:
            raise UserError(
                f"{path}: expected a field that can be seen, got none in sight with an opacity over {FAINTEST} (the "
                f"most is {opacity:.4f}); start anew with a lower lambda_sparsity or guidance_scale, or a longer run"
            )

    def state_dict(self) -> dict[str, Any]:
        return {
            "field": dict(self.field.named_parameters()),
            "optimizer": self.optimizer.state_dict(),
            "occupancy": self.occupancy.state_dict(),
            "cameras": self.cameras.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in state["field"].items():
            holder, _, attribute = name.rpartition(".")
            module = self.field.get_submodule(holder)
            setattr(module, attribute, torch.nn.Parameter(tensor.to(self.device)))
        self.optimizer = build_optimizer(self.field, self.params)
        load_moments(
            self.optimizer, state["optimizer"], partly=isinstance(self.field, HashGrid)
        )  # finer levels
        self.occupancy.load_state_dict(state["occupancy"])
        self.cameras.load_state_dict(state["cameras"])

    def numbers(self) -> dict[str, int]:
        return {"parameters": sum(parameter.numel() for parameter in self.field.parameters())}

    def memory(self) -> dict[str, int]:
        return field_bytes(self.config, self.chunk)

    def savings(self) -> list[str]:
        width, rays = (
            self.config.GenerateCamParams.image_w,
            self.views * self.config.GenerateCamParams.image_w**2,
        )
        tries = [f"FieldParams.ray_chunk={min(self.chunk, rays) // 2}"]
        if self.views > 1:
            tries.append(f"a smaller C_batch_size (now {self.views})")
        return [*tries, f"a smaller image_w (now {width}) or fewer samples (now {self.params.samples})"]


@torch.no_grad()
def look(
    field: RadianceField,
    cameras: Cameras,
    background: Float[Tensor, "3"],
    params: FieldParams,
    chunk: int | None = None,
    occupancy: Occupancy | None = None,
) -> Iterator[FieldViews]:
    """Views of a field as it is, one at a time.

    Args:
        occupancy: where to look; None: what the settings' own says of this field.
    """
    device = next(field.parameters()).device
    sampling = Sampling(params.samples, params.importance_samples)
    if occupancy is None and params.occupancy_interval:
        occupancy = occupancy_of(field, params)
    for index in range(len(cameras)):
        view = cameras[index : index + 1].to(device)
        yield render(field, view, background.to(device), sampling, occupancy=occupancy, chunk=chunk)


def occupancy_of(field: RadianceField, params: FieldParams) -> Occupancy:
    """Where a field is not empty, looked for once, as the settings say."""
    device = next(field.parameters()).device
    occupancy = Occupancy(field.bound, params.occupancy_resolution, params.occupancy_threshold, device)
    occupancy.update(field, torch.Generator().manual_seed(0))
    return occupancy


def initial_field(config: Config, rng: torch.Generator, device: torch.device) -> RadianceField:
    """The field that a run starts from: that of `pretrained_model_path`, or one with the density of its start shape.

    Raises:
        UserError: the file or the start shape cannot be used, or cameras stand within it.
    """
    kind, params, cameras = config.ModelParams.representation, config.FieldParams, config.GenerateCamParams
    if config.ModelParams.pretrained_model_path:
        path = user_path(config.ModelParams.pretrained_model_path, "ModelParams.pretrained_model_path")
        field = read_field(path)
        if field.kind != kind:
            raise UserError(
                f"{path}: expected a field of kind {kind}, got {field.kind}; set representation={field.kind}"
            )
        return field
    start = field_start(params, cameras, rng, shape_from_text(config, device))
    nearest = min(cameras.radius_range[0], cameras.max_radius_range[0], cameras.default_radius)
    if nearest <= start.reach:
        raise UserError(
            f"GenerateCamParams.radius_range: expected cameras outside of the start shape, which reaches "
            f"{start.reach:.3g} from the middle, got a distance of {nearest:.3g}; raise it, or lower "
            "FieldParams.blob_std or init_scale"
        )
    if kind == "grid":
        colors = start.colors if isinstance(start, Solid) else None
        return new_voxel_grid(start, params.bound, params.density_scale, params.resolution, colors)
    field = new_hash_grid(
        start,
        params.bound,
        params.density_scale,
        cells=hash_cells(params.hash_levels, params.hash_base, params.hash_finest),
        power=params.hash_table,
        features=params.hash_features,
        width=params.hash_width,
        layers=params.hash_layers,
        smoothstep=params.hash_smoothstep,
        rng=rng,
    )
    field.active = levels_at(0, params)
    return field


def build_optimizer(field: RadianceField, params: FieldParams) -> torch.optim.Optimizer:
    """One group for the grid or the tables, and one for the network where there is one."""
    tables = [value for name, value in field.named_parameters() if name.startswith("table")]
    network = [value for name, value in field.named_parameters() if not name.startswith("table")]
    groups = [{"params": tables, "lr": params.field_lr}]
    if network:
        groups.append({"params": network, "lr": params.network_lr})
    fused = {} if params.optimizer == "adamax" else {"fused": True}
    # 1e-15: Adam shall move what few rays have met at its full rate (Instant-NGP)
    return OPTIMIZERS[params.optimizer](groups, betas=(0.9, 0.99), eps=1e-15, **fused)


def levels_at(step: int, params: FieldParams) -> int:
    """Levels of the hash grid in use: from `hash_start_levels`, one more at each step that `hash_level_iter` names."""
    if not params.hash_start_levels:
        return params.hash_levels
    first, interval = params.hash_level_iter
    more = 0 if step < first else 1 + int((step - first) // interval)
    return min(params.hash_start_levels + more, params.hash_levels)


def resolution_at(step: int, iterations: int, params: FieldParams) -> int:
    """Vertices a side of the dense grid after a step: `growths` even ones, at even steps up to `grow_until`."""
    if not params.growths:
        return params.resolution
    until = max(params.grow_until * iterations, 1.0)
    done = min(int(params.growths * step / until), params.growths)
    return params.resolution + (params.resolution_final - params.resolution) * done // params.growths


def resize(field: VoxelGrid, optimizer: torch.optim.Optimizer, resolution: int) -> None:
    """Let a grid have `resolution` vertices a side; it stays the same function, and the moments stay with it."""
    old = field.table
    field.table = torch.nn.Parameter(resized(old.detach(), resolution))
    optimizer.param_groups[0]["params"] = [field.table]
    state = optimizer.state.pop(old, None)
    if state is not None:
        optimizer.state[field.table] = {
            name: resized(moment, resolution) if moment.shape == old.shape else moment
            for name, moment in state.items()
        }
