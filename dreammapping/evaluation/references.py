"""Pictures that the prior itself draws of a prompt: what 3D-FID compares renders with. Kept, and drawn once.

Protocol: 50 steps of DPM-Solver++ of second order, classifier-free guidance of 7.5 over the empty prompt, the raw
prompt without a view word (ProlificDreamer's, as far as it is published).
"""

import hashlib
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from guidance.prior.score_model import ScoreModel
from utils.files import write_text
from utils.images import read_picture, write_picture
from utils.own_files import alone

STEPS, GUIDANCE_SCALE = 50, 7.5
BATCH = 8
"""Pictures drawn at once, after which they are on the disk."""

RECIPE = "references.json"
"""What the pictures beside it are made of."""
LOCK = ".references.lock"
"""Held while pictures are drawn there."""

log = logging.getLogger(__name__)


@torch.no_grad()
def sample(
    prior: ScoreModel,
    prompt: str,
    seeds: list[int],
    *,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Float[Tensor, "N 3 H W"]:
    """One picture in [0, 1] of each seed, at the prior's own size; a seed's noise is drawn on the CPU from it alone.

    Raises:
        UserError: the prompt is longer than the prior reads.
    """
    from diffusers import DPMSolverMultistepScheduler

    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=len(prior.alphas_cumprod),
        trained_betas=_betas(prior.alphas_cumprod),
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="epsilon",  # what `predict_noise` gives for every prior
    )
    solver.set_timesteps(steps)
    shape = (prior.latent_channels, *prior.latent_size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    latents = torch.stack(noise).to(prior.device)
    empty, text = (each.expand(len(seeds), -1, -1) for each in prior.encode_text(["", prompt]).split(1))
    for timestep in solver.timesteps:
        times = timestep.to(prior.device).expand(2 * len(seeds))
        noise_base, noise_cond = prior.predict_noise(
            latents.repeat(2, 1, 1, 1), times, torch.cat([empty, text])
        ).chunk(2)
        guided = noise_base + guidance_scale * (noise_cond - noise_base)
        latents = solver.step(guided, timestep, latents, return_dict=False)[0]
    return prior.decode_latents(latents).cpu()


def _betas(alphas_cumprod: Float[Tensor, " T"]) -> np.ndarray:
    ratios = alphas_cumprod.cpu().double()
    ratios = ratios / torch.cat([ratios.new_ones(1), ratios[:-1]])
    return (1.0 - ratios).numpy()


def references(
    prior: ScoreModel, prompt: str, count: int, cache: Path, *, seed: int = 0
) -> Float[Tensor, "N 3 H W"]:
    """The first `count` pictures of a prompt, in 8 bits; those that the cache has are read, and the others are drawn.

    Picture i is that of seed `seed` + i, whatever the count. Each is a file of `folder_of`, written as it is drawn.
    Where another process draws there, it is waited for; what a killed one left half written is removed.

    Raises:
        UserError: the prompt is longer than the prior reads, or the cache cannot be written.
    """
    recipe = made_of(prior, prompt)
    folder = folder_of(recipe, cache)
    paths = [folder / f"{number:06d}.png" for number in range(seed, seed + count)]
    if not all(map(_is_written, paths)):
        names = [RECIPE, *(path.name for path in paths)]
        with alone(folder, names, lock=LOCK, wait=math.inf):  # who comes second finds them drawn
            if missing := [number for number, path in enumerate(paths, seed) if not _is_written(path)]:
                _draw(prior, recipe, folder, missing)
    pixels = np.stack([read_picture(path) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255.0


def _draw(prior: ScoreModel, recipe: dict[str, Any], folder: Path, missing: list[int]) -> None:
    prompt = recipe["prompt"]
    log.info("drawing %d references of %r into %s", len(missing), prompt, folder)
    write_text(folder / RECIPE, json.dumps(recipe, indent=2) + "\n")
    for first in range(0, len(missing), BATCH):
        seeds = missing[first : first + BATCH]
        for number, image in zip(seeds, sample(prior, prompt, seeds).split(1), strict=True):
            write_picture(folder / f"{number:06d}.png", image)


def _is_written(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0  # a power cut can leave an empty file


def folder_of(made_of: dict[str, Any], cache: Path) -> Path:
    """Where a prompt's references are kept: its words, and a digest of all that their pixels come from."""
    told, prompt = json.dumps(made_of, sort_keys=True), made_of["prompt"]
    slug = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:40]
    return cache / f"{slug}_{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def made_of(prior: ScoreModel, prompt: str) -> dict[str, Any]:
    """Prompt, solver, precision, and the weights by their content: where they lie changes no pixel."""
    return {
        "prompt": prompt,
        "solver": "dpmsolver++ 2M",
        "steps": STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "precision": str(prior.dtype).removeprefix("torch."),
        "prior": _weights(prior.provenance),
    }


def _weights(provenance: dict[str, Any]) -> dict[str, Any]:
    added = {name: each for name, each in provenance.items() if isinstance(each, dict) and name != "sha256"}
    further = {name: _weights(each) for name, each in added.items()}
    return {"sha256": provenance["sha256"], "revision": provenance["revision"]} | further
