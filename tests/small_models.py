"""Stable Diffusion 1.x, 2.x base and 2.x v in their full architecture and a small width, as folders and single files.

Every layer of the real models is there, with its name; the numbers of channels are small and the weights random.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from arguments import GuidanceParams
from benchmarks.random_model import WIDTH, build
from benchmarks.random_model import narrow_configs as narrow_configs
from guidance import ScoreModel

FAMILIES = {"sd1": "epsilon", "sd2-base": "epsilon", "sd2-v": "v_prediction"}
"""What the U-Net of each family predicts."""
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj")


def save_single_file(path: Path, pipeline: Any, metadata: dict[str, str] | None = None) -> Path:
    """A pipeline as one file in the layout that Stable Diffusion's checkpoints were published in."""
    tensors = {f"model.diffusion_model.{k}": v for k, v in _original_unet(pipeline.unet.state_dict()).items()}
    tensors |= {f"first_stage_model.{k}": v for k, v in _original_vae(pipeline.vae.state_dict()).items()}
    text = pipeline.text_encoder.state_dict()
    if pipeline.text_encoder.config.hidden_act == "quick_gelu":
        tensors |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in text.items()}
    else:
        tensors |= {f"cond_stage_model.model.{k}": v for k, v in _original_open_clip(text).items()}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, metadata)
    return path


def _original_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING

    top = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    attends = {
        int(name.split(".")[1]) for name in state if name.startswith("up_blocks") and ".attentions." in name
    }
    renamed = {}
    for name, tensor in state.items():
        block, *rest = name.split(".")
        if name in top:
            renamed[top[name]] = tensor
            continue
        if block == "mid_block":
            kind, index, tail = rest[0], int(rest[1]), ".".join(rest[2:])
            place = f"middle_block.{1 if kind == 'attentions' else 2 * index}"
        else:
            level, kind, index, tail = int(rest[0]), rest[1], int(rest[2]), ".".join(rest[3:])
            down = block == "down_blocks"
            number = 3 * level + index + (1 if down else 0)
            place = f"{'input' if down else 'output'}_blocks.{number}.{1 if kind == 'attentions' else 0}"
            if kind == "downsamplers":
                place, tail = f"input_blocks.{3 * level + 3}.0", tail.replace("conv", "op")
            if kind == "upsamplers":
                place = f"output_blocks.{3 * level + 2}.{2 if level in attends else 1}"
        if kind == "resnets":
            for ours, original in (
                ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"),
                ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
            ):  # fmt: skip
                tail = tail.replace(ours, original)
        renamed[f"{place}.{tail}"] = tensor
    return renamed


def _original_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "down_blocks" in name or "up_blocks" in name:
            side, level = parts[0], int(parts[2])
            word, level = ("down", level) if side == "encoder" else ("up", 3 - level)
            if parts[3] == "resnets":
                name = f"{side}.{word}.{level}.block.{parts[4]}.{'.'.join(parts[5:])}"
            else:
                name = f"{side}.{word}.{level}.{word}sample.{'.'.join(parts[5:])}"
        elif "mid_block.resnets" in name:
            name = f"{parts[0]}.mid.block_{int(parts[3]) + 1}.{'.'.join(parts[4:])}"
        elif "mid_block.attentions" in name:
            layer = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[
                parts[4]
            ]
            name = f"{parts[0]}.mid.attn_1.{layer}.{parts[-1]}"
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed[name] = tensor
    return renamed


def _original_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, its joined projections, and the last block, which Stable Diffusion 2 does not use."""
    layers = {int(name.split(".")[2]) for name in state if name.startswith("encoder.layers.")}
    renamed = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": torch.eye(WIDTH),
        "logit_scale": torch.tensor(1.0),
    }
    names = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    for layer in sorted(layers):
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            joined = [state[f"{ours}self_attn.{each}.{kind}"] for each in TEXT_LAYERS]
            renamed[f"{theirs}attn.in_proj_{kind}"] = torch.cat(joined)
            renamed |= {f"{theirs}{new}.{kind}": state[f"{ours}{old}.{kind}"] for old, new in names.items()}
    last = f"transformer.resblocks.{max(layers)}."
    unused = f"transformer.resblocks.{max(layers) + 1}."
    return renamed | {name.replace(last, unused): tensor for name, tensor in renamed.items() if last in name}


def save_family(root: Path, configs: Path, family: str) -> tuple[Path, Path]:
    """A family of `configs` with random weights as a folder, and as a single file beside its tokenizer."""
    from diffusers import StableDiffusionPipeline

    folder = build(root / family, configs / family)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    (root / f"{family}-file").mkdir()
    file = root / f"{family}-file" / "model.safetensors"
    stated = {"modelspec.prediction_type": FAMILIES[family].removesuffix("_prediction")}
    save_single_file(file, pipeline, stated)
    shutil.copytree(folder / "tokenizer", file.parent / "tokenizer")
    return folder, file


def score_model(key: str | Path, **settings: Any) -> ScoreModel:
    """The model that `key` names, on the CPU and without a hub."""
    return ScoreModel.from_pretrained(GuidanceParams(model_key=str(key), **settings), "cpu")


def predict(model: ScoreModel) -> Tensor:
    """What it says of one noise and prompt, the same for every model."""
    latents = torch.randn(1, 4, *model.latent_size, generator=torch.Generator().manual_seed(0))
    return model.predict_noise(latents, torch.tensor([500]), model.encode_text(["a red car"]))
