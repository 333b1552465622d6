"""One optimisation: Algorithm 1 of the paper, iteration by iteration, and all that a restart needs."""

import logging
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from arguments import Config
from dreammapping.memory import MAX_GAUSSIANS, gaussian_bytes
from gaussian_renderer import Views, disparity, render
from guidance import build_guidance
from guidance.models import go_offline
from guidance.prior.memory import GIB, PLANS
from guidance.prior.score_model import ScoreModel
from guidance.prior.shap_e import text_to_mesh
from guidance.prompts import ViewPrompts
from scene.augmentation import sample_augmentation, sample_flip
from scene.cameras import CameraSampler
from scene.density import DensityControl
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import build_optimizer, set_learning_rates
from scene.initialization import initial_points
from scene.ply import read_gaussians
from utils.errors import OutOfMemory, UserError
from utils.images import total_variation
from utils.optimizers import not_finite, step_unless
from utils.readback import Readback
from utils.spherical_harmonics import coefficient_count

log = logging.getLogger(__name__)

SH_DEGREE_INTERVAL = 500
"""Iterations after which one more band of spherical harmonics is used (upstream)."""
NON_FINITE_LIMIT = 10
"""Skipped steps in a row after which a run stops."""
COMPILE_FROM = 1000
"""Iterations from which compiling pays for itself."""


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UserError: the device does not exist here.
    """
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not cards and torch.version.cuda:
        log.warning("device auto: torch finds no CUDA driver or no card, so the CPU is used")
    device = torch.device(("cuda" if cards else "cpu") if name == "auto" else name)
    if device.type == "cuda" and (device.index or 0) >= cards:
        here = ", ".join(f"cuda:{index}" for index in range(cards)) or "no CUDA"
        raise UserError(
            f"device: expected one of this machine, got {name}, but there is {here} here; use device=auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: expected one of this machine, got mps, which is not here; use device=auto")
    return device


class Training:
    """The state of one optimisation.

    Args:
        config: the resolved settings.
        device: where the Gaussians and the prior live; default: the one that the settings name.

    Raises:
        UserError: a model, a start shape or a prompt of the settings cannot be used.
    """

    def __init__(self, config: Config, device: torch.device | None = None) -> None:
        if config.offline:
            go_offline()
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device or choose_device(config.device)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.noise_rng = torch.Generator().manual_seed(config.GuidanceParams.noise_seed)

        # a shape from text takes minutes and comes after all that can fail within seconds
        start = None
        if not config.starts_from_text:
            start = initial_gaussians(config, self.rng, self.device)
        self.score_model = ScoreModel.from_pretrained(
            config.GuidanceParams, self.device, config.HardwareParams
        )
        self.prompts = ViewPrompts(self.score_model, config.GuidanceParams)
        self.score_model.drop_text_encoder()
        if start is None:
            start = initial_gaussians(config, self.rng, self.device)
        torch.manual_seed(config.seed)  # whatever was loaded or cached before
        self.guidance = build_guidance(config, self.score_model)
        if self._compiles():
            self.score_model.compile()

        self.extent = config.GenerateCamParams.default_radius
        self.cameras = CameraSampler(
            config.GenerateCamParams, config.OptimizationParams, config.ModelParams.batch
        )
        self.density = DensityControl(config.OptimizationParams, self.extent, self._most_gaussians())
        self.gaussians = start.to(self.device)
        self.optimizer = build_optimizer(self.gaussians, config.OptimizationParams, self.extent)
        self.step = 0
        self.skipped = 0
        self.warm_up_seconds = 0.0
        self._changing = False
        self._checks: deque[Readback] = deque()

    def iteration(self, step: int) -> dict[str, Tensor | float]:
        """One pass of Algorithm 1 over a batch of views; returns what is worth logging.

        Raises:
            OutOfMemory: the device is full; if it says `whole`, this object is as before and can be saved.
            UserError: too many steps in a row were not finite.
        """
        before = (self.rng.get_state(), self.noise_rng.get_state(), self.cameras.state_dict())
        try:
            return self._iterate(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            whole = not self._changing
            if whole:
                self.rng.set_state(before[0])
                self.noise_rng.set_state(before[1])
                self.cameras.load_state_dict(before[2])
                for optimizer in self._optimizers():
                    optimizer.zero_grad(set_to_none=True)
            raise OutOfMemory(f"iteration {step}: {self._advice()}", whole=whole) from error

    def _iterate(self, step: int) -> dict[str, Tensor | float]:
        params, model = self.config.OptimizationParams, self.config.ModelParams
        gaussians = self.gaussians
        gaussians.active_sh_degree = max(
            gaussians.active_sh_degree, min(step // SH_DEGREE_INTERVAL, gaussians.sh_degree)
        )
        set_learning_rates(self.optimizer, params, self.extent, step)

        cameras = self.cameras.sample(self.config.GuidanceParams.C_batch_size, step, self.rng)  # c
        poses = cameras.world_to_camera.inverse().to(self.device, non_blocking=True)
        text = self.prompts(cameras.azimuth_deg, poses)  # on the host, where angles are
        cameras = cameras.to(self.device)
        views, scales = self._render(cameras, model)  # x_0 = g(θ, c)
        shapes = disparity(views, cameras)
        by_shape = step < params.geo_iter or _chance(params.as_latent_ratio, self.rng)
        images = shapes.expand(-1, 3, -1, -1) if by_shape else views.images
        if sample_flip(self.rng):
            images = images.flip(-1)

        guided = self.guidance(images, text, step, self.noise_rng)  # L_VDM and L_op
        losses = {
            **guided.losses,
            "tv": params.lambda_tv * (total_variation(views.images) + total_variation(shapes)),
            "scale": params.lambda_scale * scales.mean(),
        }
        total = torch.stack(list(losses.values())).sum()
        total.backward()  # θ and ψ receive disjoint gradients
        self._changing = True
        self._apply_gradients(total)  # ψ, then θ
        self.density.update(gaussians, self.optimizer, views.footprint, step, self.rng)
        self._changing = False
        self.step = step
        self.last = (views, shapes, guided)
        return {**{f"loss/{name}": loss.detach() for name, loss in losses.items()}, **guided.stats}

    def _render(self, cameras: Any, model: Any) -> tuple[Views, Tensor]:
        """Render with upstream's augmentations; returns the views and the scales they were drawn with."""
        gaussians = self.gaussians
        drawn = sample_augmentation(
            model, len(cameras), gaussians.sh.shape, gaussians.active_sh_degree, self.rng, self.device
        )
        scales = gaussians.scales
        if drawn.scale_factors is not None:
            scales = scales * drawn.scale_factors
        views = render(
            gaussians,
            cameras,
            drawn.backgrounds.to(self.device),
            scales=scales,
            sh=gaussians.sh if drawn.sh_factors is None else gaussians.sh * drawn.sh_factors,
            sh_degree=drawn.sh_degrees,
            backend=self.config.PipelineParams.backend,
            direct_rgb=self.config.PipelineParams.convert_SHs_python,
            debug=self.config.PipelineParams.debug,
        )
        return views, scales

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [each for each in (self.guidance.optimizer, self.optimizer) if each is not None]

    def _apply_gradients(self, total: Tensor) -> None:
        """Step every optimiser; a step with a number that is not finite is skipped and counted.

        On CUDA the decision stays on the device, and the count follows an iteration later.

        Raises:
            UserError: `NON_FINITE_LIMIT` steps in a row were skipped.
        """
        optimizers = self._optimizers()
        parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
        broken = not_finite(total, parameters)
        for optimizer in optimizers:
            step_unless(optimizer, broken)
            optimizer.zero_grad(set_to_none=True)
        self._checks.append(Readback({"broken": broken}))
        self._count_skipped(keep=1 if self.device.type == "cuda" else 0)

    def _count_skipped(self, keep: int = 0) -> None:
        """Take in which steps were skipped, all but the last `keep`."""
        while len(self._checks) > keep:
            if not self._checks.popleft().values()["broken"]:
                self.skipped = 0
                continue
            self.skipped += 1
            log.warning("iteration %d: a loss or gradient is not finite; the step is skipped", self.step + 1)
            if self.skipped >= NON_FINITE_LIMIT:
                raise UserError(
                    f"iteration {self.step + 1}: losses or gradients were not finite in {NON_FINITE_LIMIT} steps in a "
                    "row; the last checkpoint stays; lower guidance_scale or learning rates, or set fp16=false, "
                    "then --resume"
                )

    def _compiles(self) -> bool:
        wanted = self.config.HardwareParams.compile
        worth = self.device.type == "cuda" and self.config.OptimizationParams.iterations >= COMPILE_FROM
        return wanted == "always" or (wanted == "auto" and worth)

    def warm_up(self) -> None:
        """Compile what will be compiled, so that no iteration has to."""
        if self.score_model.compiled:
            params = self.config.GuidanceParams
            self.score_model.warm_up(params.C_batch_size, params.branches)

    def _most_gaussians(self) -> int | None:
        own = self.config.ModelParams.max_gaussians
        return own if own is not None else MAX_GAUSSIANS.get(self.plan_name)

    @property
    def plan_name(self) -> str:
        """The name of the memory plan in use."""
        return self.score_model.plan.name

    def memory(self) -> dict[str, int]:
        """Bytes that an iteration will need, by part, counted without running one."""
        params, images = self.config.GuidanceParams, self.config.GenerateCamParams
        views = params.C_batch_size
        # without a cap, what a run of the paper's setting grows to
        count = self._most_gaussians() or max(4 * len(self.gaussians), 500_000)
        model = self.score_model.estimate_bytes(views, params.branches)
        coefficients = coefficient_count(self.config.ModelParams.sh_degree)
        gaussians = gaussian_bytes(count, coefficients, views, images.image_h, images.image_w)
        return {"diffusion model": model, "Gaussians and their renders": gaussians}

    def _advice(self) -> str:
        """What to say and try when the device is full."""
        cameras, names, used = self.config.GenerateCamParams, list(PLANS), self.plan_name
        smaller = names[max(names.index(used) - 1, 0)]
        tries = [] if used == smaller else [f"HardwareParams.memory={smaller} (now {used})"]
        if self._most_gaussians() is None or len(self.gaussians) < self._most_gaussians():
            tries.append(f"max_gaussians={len(self.gaussians)} (the present number)")
        tries += [f"a smaller C_batch_size (now {self.config.GuidanceParams.C_batch_size})"]
        tries += [f"smaller image_w and image_h (now {cameras.image_w} x {cameras.image_h})"]
        return f"{fullness(self.device)}; try {', '.join(tries)}, then --resume"

    def pictures(self) -> list[Tensor]:
        """What the last iteration rendered and what the prior made of it: rows of a picture, a column for each view.

        The rows are image, disparity, opacity, and the prior's x̂_0 without and with guidance.
        """
        views, shapes, guided = self.last
        size = views.images.shape[-2:]
        predicted = [
            F.interpolate(image, size, mode="bilinear") for image in self.guidance.predicted_images(guided)
        ]
        return [views.images, shapes, views.alphas, *predicted]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs to go on with the same numbers."""
        self._count_skipped()
        return {
            "step": self.step,
            "skipped": self.skipped,
            "gaussians": dict(self.gaussians.named_parameters()),
            "optimizer": self.optimizer.state_dict(),
            "guidance": self.guidance.state_dict(),
            "guidance_optimizer": self.guidance.optimizer.state_dict() if self.guidance.optimizer else None,
            "density": self.density.state_dict(),
            "cameras": self.cameras.state_dict(),
            "rng": self.rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
            "evaluations": self.score_model.evaluations.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: the state belongs to other settings.
        """
        try:
            self.gaussians.replace(
                {name: tensor.to(self.device) for name, tensor in state["gaussians"].items()}
            )
            self.optimizer = build_optimizer(self.gaussians, self.config.OptimizationParams, self.extent)
            self.optimizer.load_state_dict(state["optimizer"])
            self.guidance.load_state_dict(state["guidance"])
            if self.guidance.optimizer is not None:
                self.guidance.optimizer.load_state_dict(state["guidance_optimizer"])
            self.density.load_state_dict(state["density"])
            self.cameras.load_state_dict(state["cameras"])
            self.rng.set_state(state["rng"])
            self.noise_rng.set_state(state["noise_rng"])
            self.score_model.evaluations.load_state_dict(state["evaluations"])
            self.step, self.skipped = state["step"], state["skipped"]
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise UserError(
                f"checkpoint: does not fit these settings ({error}); resume with the settings that it was made with"
            ) from error


def initial_gaussians(config: Config, rng: torch.Generator, device: torch.device) -> GaussianModel:
    """The Gaussians that a run starts from: those of `pretrained_model_path`, or its start shape's points."""
    model, cameras = config.ModelParams, config.GenerateCamParams
    if model.pretrained_model_path:
        return read_gaussians(Path(model.pretrained_model_path))
    prompt = cameras.init_prompt or config.GuidanceParams.text

    def made_from_text() -> Any:
        import trimesh

        mesh = text_to_mesh(prompt, config.seed, cameras, device)
        colors = (mesh.colors * 255).round().byte().numpy()
        return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), vertex_colors=colors, process=False)

    points, colors = initial_points(cameras, rng, made_from_text)
    return GaussianModel.from_points(points, colors, model.sh_degree)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full, on a card or on the host."""
    words = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in words or "can't allocate memory" in words or "alloc_failed" in words
    )


def fullness(device: torch.device) -> str:
    """That the memory of a device is full, and how much of it other processes hold."""
    if device.type != "cuda":
        return "this machine's memory is full"
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # too full for CUDA itself
        return "the card's memory is full: other processes hold all of it"
    ours = torch.cuda.memory_reserved(device)
    others = (total - free - ours) / GIB
    also = f", of which other processes hold {others:.1f} GiB" if others > 0.5 else ""
    return f"the card's memory is full ({total / GIB:.1f} GiB{also})"


def _chance(probability: float, rng: torch.Generator) -> bool:
    return bool(torch.rand((), generator=rng) < probability)
