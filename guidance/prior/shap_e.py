"""Shap-E: a prompt becomes a coloured mesh to start from (Jun and Nichol 2023, arXiv:2305.02463), through diffusers."""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arguments import GenerateCamParams
from guidance import models
from guidance.prior.learned_words import refuse_too_long
from guidance.prior.pipeline import load_networks
from utils.errors import UserError
from utils.files import atomic
from utils.srgb import linear_to_srgb

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColoredMesh:
    """Triangles in our frame: z up, front +y; within about ±1. Colours are sRGB in [0, 1]."""

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    colors: Float[Tensor, "V 3"]


def text_to_mesh(
    prompt: str,
    seed: int,
    params: GenerateCamParams,
    device: torch.device,
    *,
    cache: Path | None = None,
) -> ColoredMesh:
    """What Shap-E makes of a prompt; kept on disk, so that the same prompt, seed and settings are computed once.

    Args:
        params: `shape_model`, `shape_guidance` and `shape_steps` are read.
        cache: folder of finished meshes; default: `dreammapping/shap_e` of the user's cache.

    Raises:
        UserError: the model is not there or cannot be read, or made no surface, or the prompt is too long for it.
    """
    source = models.shape_source(params.shape_model)
    cache = cache or _user_cache()
    kept = _read(cache, _key(prompt, seed, params, source))
    if kept is None:
        kept = _generate(prompt, seed, params, device, source)
        _keep(cache, kept, _key(prompt, seed, params, source))  # a hub's model has a revision from now on
    return kept


@torch.no_grad()
def _generate(
    prompt: str,
    seed: int,
    params: GenerateCamParams,
    device: torch.device,
    source: models.ModelSource,
) -> ColoredMesh:
    with torch.random.fork_rng(devices=[]):  # loading draws weights that it then replaces
        pipeline = _load(source, device)
    refuse_too_long(prompt, len(pipeline.tokenizer(prompt).input_ids), pipeline.tokenizer.model_max_length)
    log.info("Shap-E makes %r (%d steps)", prompt, params.shape_steps)
    try:
        (mesh,) = pipeline(
            prompt,
            guidance_scale=params.shape_guidance,
            num_inference_steps=params.shape_steps,
            generator=torch.Generator().manual_seed(seed),  # on the CPU: the same on every device
            output_type="mesh",
        ).images
        faces = len(mesh.faces)
    except (ValueError, RuntimeError) as error:  # diffusers concatenates the textures of no vertex
        if "non-empty" not in str(error):
            raise
        faces = 0
    if faces == 0:
        raise UserError(
            f"{source.setting}: Shap-E made no surface for {prompt!r}; try another init_prompt or seed, "
            "or init_shape=sphere"
        )
    # Shap-E's colours are linear
    linear = torch.stack([mesh.vertex_channels[name] for name in "RGB"], dim=-1)
    return ColoredMesh(
        to_our_frame(mesh.verts.float().cpu()), mesh.faces.cpu(), linear_to_srgb(linear.float().cpu())
    )


def to_our_frame(points: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
    """From Shap-E's frame (z up, front -y) to ours (z up, front +y): half a turn about z, and no mirror image."""
    return points * torch.tensor([-1.0, -1.0, 1.0])


def _load(source: models.ModelSource, device: torch.device) -> Any:
    import diffusers

    models.silence()
    try:
        folder = models.local_folder(source, models.SHAPE_COMPONENTS)
        index = diffusers.ShapEPipeline.load_config(folder, local_files_only=True)
        networks = load_networks(folder, index, models.SHAPE_COMPONENTS, torch.float32)
        pipeline = diffusers.ShapEPipeline.from_pretrained(folder, **networks, local_files_only=True).to(
            device
        )
    except UserError:
        raise
    # Loaders raise whatever their backends do; each becomes one line that names model and cause.
    except Exception as error:
        raise models.loading_error(error, source) from error
    pipeline.set_progress_bar_config(disable=not log.isEnabledFor(logging.INFO))
    return pipeline


def _key(prompt: str, seed: int, params: GenerateCamParams, source: models.ModelSource) -> str:
    if source.kind == "folder":
        files = [file for file in sorted(Path(source.location).rglob("*")) if file.is_file()]
        state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    else:
        snapshot = models.cached(source.location)
        state = snapshot and snapshot.name  # its revision
    return json.dumps(
        {
            "prompt": prompt,
            "seed": seed,
            "guidance": params.shape_guidance,
            "steps": params.shape_steps,
            "model": source.location,
            "state": state,
        }
    )


def _user_cache() -> Path:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        base = tempfile.gettempdir()
    return Path(base) / "dreammapping" / "shap_e"


def _file(cache: Path, key: str) -> Path:
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _read(cache: Path, key: str) -> ColoredMesh | None:
    """The mesh that was kept under this very key; None for none, another's, or a damaged one."""
    path = _file(cache, key)
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return ColoredMesh(*(file.get_tensor(name) for name in ("vertices", "faces", "colors")))
    except (OSError, SafetensorError):
        return None


def _keep(cache: Path, mesh: ColoredMesh, key: str) -> None:
    tensors = {"vertices": mesh.vertices, "faces": mesh.faces, "colors": mesh.colors}
    try:
        with atomic(_file(cache, key)) as temporary:
            try:
                save_file(
                    {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"key": key}
                )
            except SafetensorError as error:
                raise OSError(str(error)) from error
    except UserError as error:
        log.warning("the start shape is not kept for later runs: %s", error)
