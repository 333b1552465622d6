"""DreamMapping: text to 3D Gaussians by score distillation. Assembles the rooms, and runs Algorithm 1 of the paper.

`Training` is all that an iteration needs and all that a restart needs; `Training.iteration` is Algorithm 1;
`optimize` runs it to the end and leaves in the run folder what a user came for.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from arguments import Config, to_yaml
from gaussian_renderer import Views, disparity, render
from gaussian_renderer.outputs import Outputs
from guidance import build_guidance
from guidance.models import check_available
from guidance.prompts import ViewPrompts
from guidance.score_model import ScoreModel
from guidance.trace import predicted_images
from scene.augmentation import sample_augmentation, sample_flip
from scene.cameras import CameraSampler
from scene.density import DensityControl
from scene.gaussian_model import GaussianModel
from scene.gaussian_optimizer import build_optimizer, set_learning_rates
from scene.initialization import initial_points
from scene.ply import read_gaussians
from utils import checkpoint
from utils.errors import UserError
from utils.images import total_variation
from utils.interruption import Interruption
from utils.run import Run, peak_memory

log = logging.getLogger(__name__)

SH_DEGREE_INTERVAL = 500
"""Iterations after which one more band of spherical harmonics is used (upstream)."""
NON_FINITE_LIMIT = 10
"""Skipped steps in a row after which a run stops."""


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` is CUDA where there is one.

    Raises:
        UserError: the device does not exist here.
    """
    available = torch.cuda.is_available()
    device = torch.device(("cuda" if available else "cpu") if name == "auto" else name)
    if device.type == "cuda" and not available:
        raise UserError(f"device: expected one of this machine, got {name}, but there is no CUDA here; use device=auto")
    return device


class Training:
    """The state of one optimisation.

    Args:
        config: the resolved settings.
        device: where the Gaussians and the prior live; default: the one that the settings name.
        offline: never ask a model hub.

    Raises:
        UserError: a model, a start shape or a prompt of the settings cannot be used.
    """

    def __init__(self, config: Config, device: torch.device | None = None, *, offline: bool = False) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device or choose_device(config.device)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.noise_rng = torch.Generator().manual_seed(config.GuidanceParams.noise_seed)

        self.score_model = ScoreModel.from_pretrained(config.GuidanceParams, self.device, offline=offline)
        self.prompts = ViewPrompts(self.score_model, config.GuidanceParams)
        self.score_model.drop_text_encoder()
        self.guidance = build_guidance(config.GuidanceParams, config.OptimizationParams, self.score_model)

        self.extent = config.GenerateCamParams.default_radius
        self.cameras = CameraSampler(config.GenerateCamParams, config.OptimizationParams, config.ModelParams.batch)
        self.density = DensityControl(config.OptimizationParams, self.extent, config.ModelParams.max_gaussians)
        self.gaussians = initial_gaussians(config, self.rng).to(self.device)
        self.optimizer = build_optimizer(self.gaussians, config.OptimizationParams, self.extent)
        self.step = 0
        self.skipped = 0

    def iteration(self, step: int) -> dict[str, Tensor | float]:
        """One pass of Algorithm 1 over a batch of views; returns what is worth logging."""
        params, model = self.config.OptimizationParams, self.config.ModelParams
        gaussians = self.gaussians
        gaussians.active_sh_degree = max(
            gaussians.active_sh_degree, min(step // SH_DEGREE_INTERVAL, gaussians.sh_degree)
        )
        set_learning_rates(self.optimizer, params, self.extent, step)

        cameras = self.cameras.sample(self.config.GuidanceParams.C_batch_size, step, self.rng).to(self.device)  # c
        views, scales = self._render(cameras, model)                                              # x_0 = g(θ, c)
        shapes = disparity(views, cameras)
        by_shape = step < params.geo_iter or _chance(params.as_latent_ratio, self.rng)
        images = shapes.expand(-1, 3, -1, -1) if by_shape else views.images
        if sample_flip(self.rng):
            images = images.flip(-1)

        text = self.prompts(cameras.azimuth_deg, cameras.world_to_camera.inverse())               # y, c
        guided = self.guidance(images, text, step, self.noise_rng)                                # L_VDM and L_op
        losses = {
            **guided.losses,
            "tv": params.lambda_tv * (total_variation(views.images) + total_variation(shapes)),
            "scale": params.lambda_scale * scales.mean(),
        }
        total = torch.stack(list(losses.values())).sum()
        total.backward()                                                  # θ and ψ receive disjoint gradients
        self._apply_gradients(total)                                                              # ψ, then θ
        self.density.update(gaussians, self.optimizer, views.footprint, step, self.rng)
        self.step = step
        self.last = (views, shapes, guided.trace)
        return {**{f"loss/{name}": loss.detach() for name, loss in losses.items()}, **guided.stats}

    def _render(self, cameras: Any, model: Any) -> tuple[Views, Tensor]:
        """Render with upstream's augmentations; returns the views and the scales they were drawn with."""
        gaussians = self.gaussians
        drawn = sample_augmentation(model, len(cameras), gaussians.sh.shape, gaussians.active_sh_degree, self.rng)
        scales = gaussians.scales
        if drawn.scale_factors is not None:
            scales = scales * drawn.scale_factors.to(self.device)
        views = render(
            gaussians,
            cameras,
            drawn.backgrounds.to(self.device),
            scales=scales,
            sh=gaussians.sh if drawn.sh_factors is None else gaussians.sh * drawn.sh_factors.to(self.device),
            sh_degree=drawn.sh_degrees,
            backend=self.config.PipelineParams.backend,
            direct_rgb=self.config.PipelineParams.convert_SHs_python,
        )
        return views, scales

    def _apply_gradients(self, total: Tensor) -> None:
        """Step every optimiser; a step with a number that is not finite is skipped and counted.

        Raises:
            UserError: `NON_FINITE_LIMIT` steps in a row were skipped.
        """
        optimizers = [each for each in (self.guidance.optimizer, self.optimizer) if each is not None]
        parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
        sums = [p.grad.sum() for p in parameters if p.grad is not None]
        if torch.stack([total.detach(), *sums]).isfinite().all():
            self.skipped = 0
            for optimizer in optimizers:
                optimizer.step()
        else:
            self.skipped += 1
            log.warning("iteration %d: a loss or gradient is not finite; the step is skipped", self.step + 1)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.skipped >= NON_FINITE_LIMIT:
            raise UserError(
                f"iteration {self.step + 1}: losses or gradients were not finite in {NON_FINITE_LIMIT} steps in a row; "
                "the last checkpoint stays; lower guidance_scale or learning rates, or set fp16=false, then --resume"
            )

    def pictures(self) -> list[Tensor]:
        """What the last iteration rendered and what the prior made of it: rows of a picture, a column for each view.

        The rows are image, disparity, opacity, and the prior's x̂_0 without and with guidance.
        """
        views, shapes, trace = self.last
        size = views.images.shape[-2:]
        predicted = [F.interpolate(image, size, mode="bilinear") for image in predicted_images(trace, self.score_model)]
        return [views.images, shapes, views.alphas, *predicted]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs to go on with the same numbers."""
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
            self.gaussians.replace({name: tensor.to(self.device) for name, tensor in state["gaussians"].items()})
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


def initial_gaussians(config: Config, rng: torch.Generator) -> GaussianModel:
    """The Gaussians that a run starts from: those of `pretrained_model_path`, or its start shape's points."""
    model, cameras = config.ModelParams, config.GenerateCamParams
    if model.pretrained_model_path:
        return read_gaussians(Path(model.pretrained_model_path))
    points, colors = initial_points(cameras, rng, cameras.init_prompt or config.GuidanceParams.text)
    return GaussianModel.from_points(points, colors, model.sh_degree)


def check_models(config: Config, *, offline: bool = False) -> None:
    """Look for everything that the run will load, before anything is loaded.

    Raises:
        UserError: something is missing; all that is missing is named at once.
    """
    problems = check_available(config.GuidanceParams, offline)
    if problems:
        raise UserError("; ".join(problems))


def dry_run(config: Config, *, offline: bool = False) -> str:
    """Load all that a run needs and pass through one iteration of it, keeping nothing.

    Returns:
        What was found and measured: the prior, the start, memory, and the time that the run would take.

    Raises:
        UserError: as `Training` and its iterations.
    """
    check_models(config, offline=offline)
    training = Training(config, offline=offline)
    training.iteration(1)
    started = time.perf_counter()
    training.iteration(2)
    seconds = time.perf_counter() - started
    on_device = torch.cuda.max_memory_allocated(training.device) if training.device.type == "cuda" else peak_memory()
    params, images = config.OptimizationParams, config.GenerateCamParams
    return (
        f"prior     {config.GuidanceParams.model_key}, {training.score_model.prediction_type}, "
        f"{' x '.join(map(str, training.score_model.image_size))} px\n"
        f"start     {len(training.gaussians)} Gaussians, rendered at {images.image_w} x {images.image_h} px "
        f"on {training.device}\n"
        f"method    {config.GuidanceParams.guidance_method}, {config.GuidanceParams.C_batch_size} views an iteration\n"
        f"memory    {on_device / 2**30:.2f} GiB at its peak so far\n"
        f"time      {seconds:.2f} s an iteration, about {seconds * params.iterations / 60:.0f} min "
        f"for {params.iterations} iterations\n"
        f"folder    {config.ModelParams.run_folder}\n"
    )


def optimize(
    config: Config,
    *,
    resume: bool = False,
    force: bool = False,
    offline: bool = False,
    quiet: bool = False,
    callback: Callable[[int, Training], None] | None = None,
) -> tuple[Path, int]:
    """Run to the last iteration and write what upstream's users expect to find (see `utils.run`).

    Args:
        resume, force: what to do with a run that the folder already holds.
        callback: called as `callback(step, training)` after every iteration.

    Returns:
        The run folder, and the exit code: 0, or 128 plus a signal's number when one ended the run early.

    Raises:
        UserError: something that the user can mend.
    """
    check_models(config, offline=offline)
    run = Run(config.ModelParams.run_folder, to_yaml(config), resume=resume, force=force)
    if run.changed_settings:
        log.warning("resuming with other settings than before: %s", ", ".join(run.changed_settings))
    training = Training(config, offline=offline)
    outputs = Outputs(config, run, training.device)
    if resume:
        training.load_state_dict(checkpoint.load(checkpoint.checkpoints(run.path("checkpoints"))[-1]))
        run.rewind_metrics(training.step)
    else:
        outputs.write_start(training.gaussians)
    run.write_manifest(**_manifest(training, finished=False))

    last = config.OptimizationParams.iterations
    progress = tqdm(
        range(training.step + 1, last + 1),
        initial=training.step,
        total=last,
        disable=quiet,
        dynamic_ncols=True,
        mininterval=0.5,
        desc=run.folder.name,
    )
    started = time.perf_counter()
    with Interruption() as interruption:
        for step in progress:
            metrics = training.iteration(step)
            if step % config.log_interval == 0 or step == last:
                line = _log_line(step, metrics, training, time.perf_counter() - started)
                started = time.perf_counter()
                run.log(line)
                progress.set_postfix(_shown(line, training.guidance.name))
            outputs.write_due(step, training.gaussians)
            outputs.write_pictures_due(step, training.pictures)
            if callback is not None:
                callback(step, training)
            if step % config.checkpoint_interval == 0 or step == last or interruption:
                checkpoint.save(run.path("checkpoints"), step, training.state_dict())
                run.write_manifest(**_manifest(training, finished=False))
            if interruption:
                break
    progress.close()
    if training.step == last:
        outputs.write_end()
        run.write_manifest(**_manifest(training, finished=True))
        return run.folder, 0
    log.warning("saved after iteration %d of %d; the same command with --resume goes on", training.step, last)
    return run.folder, interruption.exit_code


def _chance(probability: float, rng: torch.Generator) -> bool:
    return bool(torch.rand((), generator=rng) < probability)


def _manifest(training: Training, *, finished: bool) -> dict[str, Any]:
    config = training.config
    return {
        "prompt": config.GuidanceParams.text,
        "method": config.GuidanceParams.guidance_method,
        "seed": config.seed,
        "prior": training.score_model.provenance,
        "device": str(training.device),
        "iterations": training.step,
        "finished": finished,
        "gaussians": len(training.gaussians),
        "score_model_evaluations": training.score_model.evaluations.state_dict(),
    }


def _log_line(step: int, metrics: dict[str, Tensor | float], training: Training, seconds: float) -> dict[str, float]:
    values = {name: round(float(value), 6) for name, value in metrics.items()}
    line = {"step": step, **values, "gaussians": len(training.gaussians)}
    return line | {"seconds_per_iteration": round(seconds / training.config.log_interval, 4)}


def _shown(line: dict[str, float], method: str) -> dict[str, str]:
    """The numbers of the progress bar: distillation and operator loss, timestep, Gaussians."""
    names = {f"loss/{method}": method, "loss/degradation": "op", "timestep": "t", "gaussians": "n"}
    return {short: f"{line[name]:.4g}" for name, short in names.items() if name in line}
