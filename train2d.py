"""Text to 2D on the same guidance: `python train2d.py --opt configs/image/toybox.yaml [key=value ...]`.

A program of its own, because a picture has no cameras, density control or point cloud: as a representation it would put
an `if` before most of what `train.py` does, while all that the two share, the guidance, takes latents from either.
"""

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from arguments import Config, load, to_yaml
from dreammapping import check_models
from dreammapping.training import choose_device
from guidance import build_guidance
from guidance.models import go_offline
from guidance.noise import standard_normal_like
from guidance.prior.score_model import ScoreModel
from guidance.prompts import ViewPrompts
from utils import checkpoint
from utils.errors import UserError
from utils.images import grid, write_picture
from utils.run import Run


class ImageTraining:
    """The state of one picture, or of several from one prompt.

    Args:
        config: `ImageParams` and `GuidanceParams` are read; the length of the run is `ImageParams.steps`.

    Raises:
        UserError: the model or the prompt cannot be used.
    """

    def __init__(self, config: Config) -> None:
        if config.offline:
            go_offline()
        torch.manual_seed(config.seed)
        params = config.ImageParams
        self.config, self.device = config, choose_device(config.device)
        self.score_model = ScoreModel.from_pretrained(
            config.GuidanceParams, self.device, config.HardwareParams
        )
        self.prompts = ViewPrompts(self.score_model, config.GuidanceParams, views=False)
        self.score_model.drop_text_encoder()
        self.guidance = build_guidance(config, self.score_model)
        self.noise_rng = torch.Generator().manual_seed(config.GuidanceParams.noise_seed)
        self.particles = nn.Parameter(initial_particles(config, self.score_model))
        self.optimizer = torch.optim.Adam([self.particles], lr=params.lr, betas=(0.9, 0.99))
        self.step = 0

    def iteration(self, step: int) -> dict[str, Tensor]:
        """One step of every particle; returns what is worth logging."""
        text = self.prompts(torch.zeros(len(self.particles)))
        guide = self.guidance.distill if self.config.ImageParams.particle == "latent" else self.guidance
        guided = guide(self.particles, text, step, self.noise_rng)
        total = torch.stack(list(guided.losses.values())).sum()
        total.backward()
        if not total.isfinite():
            raise UserError(f"step {step}: a loss is not finite; lower guidance_scale or ImageParams.lr")
        for optimizer in (self.guidance.optimizer, self.optimizer):
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.step, self.guided = step, guided
        return {**{f"loss/{name}": loss.detach() for name, loss in guided.losses.items()}, **guided.stats}

    @torch.no_grad()
    def images(self) -> Tensor:
        """The particles as pictures, (N, 3, H, W) in [0, 1]."""
        if self.config.ImageParams.particle == "pixel":
            return self.particles.detach().clamp(0, 1)
        return self.score_model.decode_latents(self.particles)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs to go on with the same numbers."""
        optimizer = self.guidance.optimizer
        return {
            "step": self.step,
            "particles": self.particles.detach(),
            "optimizer": self.optimizer.state_dict(),
            "guidance": self.guidance.state_dict(),
            "guidance_optimizer": optimizer.state_dict() if optimizer is not None else None,
            "noise_rng": self.noise_rng.get_state(),
            "evaluations": self.score_model.evaluations.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: the state belongs to other settings.
        """
        try:
            with torch.no_grad():
                self.particles.copy_(state["particles"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.guidance.load_state_dict(state["guidance"])
            if self.guidance.optimizer is not None:
                self.guidance.optimizer.load_state_dict(state["guidance_optimizer"])
            self.noise_rng.set_state(state["noise_rng"])
            self.score_model.evaluations.load_state_dict(state["evaluations"])
            self.step = state["step"]
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise UserError(
                f"checkpoint: does not fit these settings ({error}); resume with the settings that it was made with"
            ) from error


def initial_particles(config: Config, score_model: ScoreModel) -> Tensor:
    """Standard normal latents, or uniform pixels, drawn from the run's seed."""
    count, rng = config.ImageParams.particles, torch.Generator().manual_seed(config.seed)
    if config.ImageParams.particle == "pixel":
        return torch.rand(count, 3, *score_model.image_size, generator=rng).to(score_model.device)
    shape = torch.empty(
        count, score_model.latent_channels, *score_model.latent_size, device=score_model.device
    )
    return standard_normal_like(shape, rng)


def optimize(config: Config, *, resume: bool = False, force: bool = False, quiet: bool = False):
    """Run to the last step; writes pictures of the process, `picture.png`, `metrics.jsonl` and checkpoints.

    Returns:
        The run folder, and the training as it ended.

    Raises:
        UserError: something that the user can mend.
    """
    check_models(config)
    run = Run(config.ModelParams.run_folder, to_yaml(config), resume=resume, force=force)
    training, params = ImageTraining(config), config.ImageParams
    if resume:
        training.load_state_dict(checkpoint.load(checkpoint.checkpoints(run.path("checkpoints"))[-1]))
        run.rewind_metrics(training.step)
    started = time.perf_counter()
    for step in tqdm(range(training.step + 1, params.steps + 1), disable=quiet, desc=run.folder.name):
        metrics = training.iteration(step)
        last = step == params.steps
        if step % config.log_interval == 0 or last:
            run.log({"step": step, **{name: round(float(value), 6) for name, value in metrics.items()}})
        if step % params.picture_interval == 0 or last:
            rows = [training.images(), *training.guidance.predicted_images(training.guided)]
            write_picture(run.path("train_process", f"step_{step}.jpg"), grid(rows))
        if step % config.checkpoint_interval == 0 or last:
            checkpoint.save(run.path("checkpoints"), step, training.state_dict())
    write_picture(run.path("picture.png"), grid([training.images()]))
    run.write_manifest(
        prompt=config.GuidanceParams.text,
        method=config.GuidanceParams.guidance_method,
        seed=config.seed,
        iterations=training.step,
        finished=training.step == params.steps,
        seconds_of_optimisation=round(time.perf_counter() - started, 2),
        score_model_evaluations=training.score_model.evaluations.state_dict(),
    )
    return run.folder, training


def compare(methods: list[str], argv: list[str]) -> Path:
    """Figures 10 and 14: one picture for each method, from the same start, t and noise, side by side in one file.

    Finished runs are kept and not repeated; the file lies beside their folders.

    Raises:
        UserError: a setting or a model cannot be used.
    """
    row, times = [], {}
    for method in methods:
        name, _, scale = method.partition("@")
        words = [*argv, f"guidance={name}", *([f"guidance_scale={scale}"] if scale else [])]
        base, command = load(words)
        config, _ = load([*words, f"workspace={base.ModelParams.workspace}_{method.replace('@', '_')}"])
        folder = config.ModelParams.run_folder
        resume = any((folder / "checkpoints").glob("iteration_*"))
        folder, training = optimize(
            config,
            resume=resume,
            force=folder.exists() and not resume,
            quiet=command.quiet,
        )
        row.append(training.images()[:1].cpu())
        manifest = json.loads((folder / "run.json").read_text())
        times[method] = (manifest["seconds"], manifest["score_model_evaluations"])
    path = folder.parent / f"{base.ModelParams.workspace}_comparison.png"
    write_picture(path, grid([torch.cat(row)]))
    for method, (seconds, spent) in times.items():
        logging.info(
            "%s: %.0f s, %d forward, %d backward", method, seconds, spent["forward"], spent["backward"]
        )
    return path


def main(argv: list[str] | None = None) -> int:
    """The command line, train.py's and `--compare sds@7.5,sds@100,vsd,vdm`; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--compare" in words:
            place = words.index("--compare")
            if place + 1 == len(words):
                raise UserError(
                    "command line: --compare: expected methods such as sds@7.5,vsd,vdm, got none; name some"
                )
            methods = words[place + 1].split(",")
            logging.info("finished: %s", compare(methods, words[:place] + words[place + 2 :]))
            return 0
        config, command = load(words)
        if command.print_config:
            sys.stdout.write(to_yaml(config))
            return 0
        folder, _ = optimize(config, resume=command.resume, force=command.force, quiet=command.quiet)
        logging.info("finished: %s", folder)
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command with --resume goes on from the last checkpoint\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
