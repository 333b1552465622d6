"""One `.safetensors` file that holds a whole Stable Diffusion model: which family it is, and what it does not say.

Such a file has weights alone. The settings of its family are shipped in `configs/`; the tokenizer's vocabulary, which
all families share, comes from a folder beside the file, from the hub's cache, or from the hub.
"""

import json
import logging
from pathlib import Path
from typing import Any

from guidance.models import hub
from guidance.models.names import ALIASES
from utils.errors import UserError

log = logging.getLogger(__name__)

MODEL_KEY = "GuidanceParams.model_key"
CONFIGS = Path(__file__).resolve().parent / "configs"
UNET, VAE, INPUT = (
    "model.diffusion_model.",
    "first_stage_model.",
    "model.diffusion_model.input_blocks.0.0.weight",
)
TEXT = {"sd1": "cond_stage_model.transformer.", "sd2-base": "cond_stage_model.model."}
TOKENIZER_REPOSITORY = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
STATED_PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
PROBE = 999
"""The timestep at which the two kinds of prediction differ most: x_t is nearly pure noise."""


def family_of(path: Path) -> str:
    """`sd1` or `sd2-base`, by the file's own text encoder. SD 2.x of both predictions have the same weights' names.

    Raises:
        UserError: the file is damaged, lacks a part, or holds something else.
    """
    names, channels = _read_names(path)
    if any(name.startswith("conditioner.embedders.") for name in names):
        raise _not_ours(path, "an SDXL model")
    if any(".lora_" in name or name.startswith("lora_") for name in names):
        raise _not_ours(path, "a LoRA (that is GuidanceParams.LoRA_path)")
    found = {part: any(name.startswith(part) for name in names) for part in (UNET, VAE, *TEXT.values())}
    if not found[UNET]:
        raise _not_ours(path, "another architecture or a single part of a model")
    missing = [word for word, part in (("VAE", VAE),) if not found[part]]
    missing += [] if any(found[part] for part in TEXT.values()) else ["text encoder"]
    if missing:
        raise _not_ours(path, f"a model without its {' and '.join(missing)}")
    if channels != 4:
        raise _not_ours(path, f"a U-Net that reads {channels} channels (an inpainting model has 9)")
    return next(family for family, part in TEXT.items() if found[part])


def stated_prediction(path: Path) -> str | None:
    """What the file's metadata says that the U-Net predicts (the modelspec keys); None where it says nothing."""
    from utils.tensors import open_tensors

    with open_tensors(path, MODEL_KEY) as file:
        metadata = file.metadata() or {}
    stated = STATED_PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))
    if stated is None and metadata.get("modelspec.architecture", "").endswith("-768-v"):
        return "v_prediction"
    return stated


def shown_prediction(path: Path, family: str, pipeline: Any) -> str:
    """What the U-Net of a file that does not say so predicts: ε for SD 1.x, else as the U-Net itself shows."""
    if family == "sd1":
        return "epsilon"
    found = "v_prediction" if predicts_velocity(pipeline) else "epsilon"
    log.warning("%s: does not say what it predicts; its U-Net behaves like %s", path, found)
    return found


def set_prediction(pipeline: Any, prediction: str) -> None:
    """Make a pipeline of a file one of this prediction; SD 2.x of v-prediction is made for 768 px."""
    pipeline.scheduler.register_to_config(prediction_type=prediction)
    if prediction == "v_prediction" and pipeline.unet.config.use_linear_projection:
        pipeline.unet.register_to_config(sample_size=_read("sd2-v", "unet")["sample_size"])


def _read(family: str, component: str) -> dict[str, Any]:
    return json.loads((CONFIGS / family / component / "config.json").read_text(encoding="utf-8"))


def predicts_velocity(pipeline: Any) -> bool:
    """Whether a trained U-Net predicts v and not ε, by asking it once.

    At the last timestep x_t is nearly ε, so a prediction of ε is nearly x_t itself (correlation near 1), and v, nearly
    -x_0, has almost nothing of it. In float32, as half precision is slow where a file has just been read to: a CPU.
    """
    import torch

    unet, dtype = pipeline.unet, pipeline.unet.dtype
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    text, timestep = torch.zeros(1, 77, unet.config.cross_attention_dim), torch.tensor([PROBE])
    with torch.no_grad():
        prediction = unet.float()(noise, timestep, encoder_hidden_states=text, return_dict=False)[0]
    unet.to(dtype)
    return bool(torch.cosine_similarity(prediction.flatten(), noise.flatten(), dim=0) < 0.5)


def tokenizer_folder(path: Path, config: Path) -> Path:
    """A folder with CLIP's tokenizer for the file: of its settings' lender, beside it, cached, or fetched.

    Raises:
        UserError: there is none and the hub must not be, or cannot be, asked.
    """
    beside = [config / "tokenizer", path.parent / "tokenizer"]
    known = (hub.cached(each) for each in ALIASES.values())
    beside += [folder / "tokenizer" for folder in known if folder is not None]
    alone = hub.cached(TOKENIZER_REPOSITORY, "vocab.json")
    for folder in [*beside, *([alone] if alone else [])]:
        if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
            return folder
    try:
        return hub.download(TOKENIZER_REPOSITORY, TOKENIZER_FILES)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{MODEL_KEY}: {path} needs the tokenizer of {TOKENIZER_REPOSITORY}: "
            f"{hub.cause_of(error)}; or put a folder named tokenizer, of any Stable Diffusion model, beside it"
        ) from error


def _read_names(path: Path) -> tuple[list[str], int]:
    from utils.tensors import open_tensors

    with open_tensors(path, MODEL_KEY) as file:
        names = list(file.keys())
        shape = file.get_slice(INPUT).get_shape() if INPUT in names else [0, 4, 0, 0]
    if len(shape) != 4:
        raise _not_ours(path, f"a U-Net whose first weights are of shape {tuple(shape)}")
    return names, shape[1]


def _not_ours(path: Path, found: str) -> UserError:
    return UserError(
        f"{MODEL_KEY}: {path}: expected a whole Stable Diffusion 1.x or 2.x checkpoint, got {found}; use a model of "
        "these families"
    )
