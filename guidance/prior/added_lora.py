"""A LoRA that users add to a frozen model: W + (alpha / r) B A for the layers that its file names (Hu et al. 2021).

Reads what diffusers, PEFT and kohya's scripts write, with or without a prefix before the layers' names. With a
magnitude for each row, the rows of that sum get these lengths (DoRA, Liu et al. 2024).
"""

import json
import logging
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.tensors import is_real, open_tensors

log = logging.getLogger(__name__)

SETTING = "GuidanceParams.LoRA_path"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""Where diffusers, in a file's metadata, keeps what PEFT keeps in a file of its own."""
OTHER_KINDS = {
    "model.diffusion_model.": "a whole checkpoint (that is model_key)",
    "hada_": "a LoHa", "lokr_": "a LoKr", "ia3_": "an IA3", ".on_input": "an IA3", "oft_": "an OFT", "vera_": "a VeRA",
    "lora_mid": "a LoCon in Tucker's form", "dora_scale": "a DoRA in LyCORIS' layout", ".diff": "whole differences",
    "lora_embedding": "a LoRA of words", "unet:": "a LoRA in cloneofsimo's layout", "lora_te2_": "a LoRA for SDXL",
    "lora_te1_": "a LoRA for SDXL", "text_encoder_2.": "a LoRA for SDXL",
    "emb_params": "a learned word (that is textual_inversion_path)",
    "string_to_param": "a learned word (that is textual_inversion_path)",
}  # fmt: skip
"""Kinds that cannot be added, by what is in their tensors' names."""

_NAME = re.compile(
    r"(?P<layer>.+?)\."
    r"(?:(?P<down>lora_A|lora_down|lora\.down|lora_linear_layer\.down)"
    r"|(?P<up>lora_B|lora_up|lora\.up|lora_linear_layer\.up)"
    r"|(?:lora\.)?(?P<alpha>alpha)|(?P<magnitude>lora_magnitude_vector))"
    r"(?:\.(?!bias)\w+)?(?:\.weight)?"
)
_PREFIX = re.compile(r"(?:base_model_model_|lora_unet_|lora_te_|unet_|text_encoder_|text_model_)*")


def add_lora(pipeline: Any, path: Path) -> None:
    """Add a LoRA to the weights of a pipeline's U-Net and text encoder, in place.

    Raises:
        UserError: the file is damaged, holds something else, or does not fit the model.
    """
    with open_tensors(path, SETTING) as file:
        names = list(file.keys())
        _refuse_other_kinds(names, path)
        layers, unknown = _layers(file, names, path)
        stated = _stated(path, file.metadata() or {})
    targets = _targets(pipeline)
    fitting = {layer: parts for layer, parts in layers.items() if _flat(layer) in targets}
    unknown += [layer for layer in layers if layer not in fitting]
    if not fitting:
        raise UserError(
            f"{SETTING}: expected a LoRA for this model, got {path}, which names no layer of it"
            + (f" (but {unknown[0]})" if unknown else "")
            + "; use one made for its family"
        )
    if unknown:
        log.warning(
            "%s: %d names in %s are of no layer of this model and are left out, the first is %s",
            SETTING, len(unknown), path, unknown[0],
        )  # fmt: skip
    changes = False
    for layer, parts in fitting.items():
        component, module = targets[_flat(layer)]
        _check(layer, parts, module.weight, path)
        alpha = _alpha(layer, parts, stated, component)
        weight = _scaled(module.weight.float() + _added(parts, module.weight, alpha), parts.get("magnitude"))
        if not weight.isfinite().all():
            raise UserError(
                f"{SETTING}: expected finite numbers, got some of {layer} that are not in {path}; copy it again, "
                "or use another"
            )
        changes = changes or not torch.equal(weight, module.weight.float())
        with torch.no_grad():
            module.weight.copy_(weight)
    if not changes:
        log.warning("%s: %s changes nothing; use one that was trained", SETTING, path)


def _refuse_other_kinds(names: list[str], path: Path) -> None:
    """Raise UserError, naming the kind, where the names of a file's tensors are those of another kind."""
    for part, kind in OTHER_KINDS.items():
        if any(part in name for name in names):
            raise UserError(
                f"{SETTING}: expected a LoRA, got {kind} in {path}; use one made for this model as a LoRA"
            )


def _layers(file: Any, names: list[str], path: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """The parts of each layer (`down`, `up`, `alpha`, `magnitude`), and names that are no part of one.

    Raises:
        UserError: a layer has a part twice.
    """
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for name in names:
        # the first diffusers versions wrote attn1.processor.to_q_lora.down.weight
        found = _NAME.fullmatch(name.replace(".processor.", ".").replace("_lora.", ".lora."))
        if found is None:
            unknown.append(name)
        elif found.lastgroup in layers[found["layer"]]:
            raise UserError(
                f"{SETTING}: expected one LoRA, got several in {path}, as {name}; save each in a file of its own"
            )
        else:
            layers[found["layer"]][found.lastgroup] = file.get_tensor(name)
    return dict(layers), unknown


def _flat(layer: str) -> str:
    """A layer's name as kohya's scripts write it, without what comes before the model's own names."""
    return _PREFIX.sub("", layer.replace(".", "_"), count=1)


def _targets(pipeline: Any) -> dict[str, tuple[str, nn.Module]]:
    """Component and module of every layer that a LoRA can change, by its flat name."""
    found = {}
    for component in ("unet", "text_encoder"):
        for name, module in getattr(pipeline, component).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                found[_flat(name)] = (component, module)
    # the first diffusers versions wrote to_out for to_out.0
    return found | {name[:-2]: target for name, target in found.items() if name.endswith("to_out_0")}


def _check(layer: str, parts: dict[str, Tensor], weight: Tensor, path: Path) -> None:
    """Raise UserError unless the parts are whole and of the shapes that change this weight."""
    if not {"down", "up"} <= parts.keys():
        raise UserError(
            f"{SETTING}: {path} is not whole: its layer {layer} has no part but {', '.join(parts)}; copy it again"
        )
    down, up = parts["down"], parts["up"]
    rank = len(down) if down.dim() > 1 else 0
    fits = rank > 0 and down.numel() == rank * weight[0].numel() and down.shape[1] == weight.shape[1]
    fits = fits and up.dim() > 1 and len(up) == len(weight) and up.numel() == len(weight) * rank
    fits = fits and ("magnitude" not in parts or parts["magnitude"].numel() == len(weight))
    fits = fits and (
        "alpha" not in parts or (parts["alpha"].numel() == 1 and not parts["alpha"].is_complex())
    )
    if not fits or not all(is_real(part) for name, part in parts.items() if name != "alpha"):
        shapes = ", ".join(f"{name} of {tuple(part.shape)}" for name, part in parts.items())
        raise UserError(
            f"{SETTING}: expected {layer} to change weights of {tuple(weight.shape)}, got {shapes} in {path}; "
            "use one made for this model's family"
        )


def _added(parts: dict[str, Tensor], weight: Tensor, alpha: float) -> Tensor:
    """(alpha / r) B A, float32, in the weight's shape."""
    down, up = (parts[name].float().flatten(1).to(weight.device) for name in ("down", "up"))
    return (up @ down * (alpha / len(down))).view(weight.shape)


def _scaled(weight: Tensor, magnitude: Tensor | None) -> Tensor:
    """The weight with rows of DoRA's lengths."""
    if magnitude is None:
        return weight
    rows = weight.flatten(1)
    return (rows * (magnitude.to(rows).flatten() / rows.norm(dim=1))[:, None]).view_as(weight)


def _alpha(layer: str, parts: dict[str, Tensor], stated: dict[str, Any], component: str) -> float:
    """The numerator of the factor on B A: of the layer's own tensor, else as stated, else the rank."""
    rank = len(parts["down"])
    if "alpha" in parts:
        return float(parts["alpha"])
    own = {key.removeprefix(f"{component}."): value for key, value in stated.items()}
    patterns = own.get("alpha_pattern") or {}
    of_layer = [alpha for name, alpha in patterns.items() if layer == name or layer.endswith(f".{name}")]
    alpha = float(of_layer[0] if of_layer else own.get("lora_alpha", rank))
    return alpha * math.sqrt(rank) if own.get("use_rslora") else alpha  # alpha / √r: Kalajdzievski 2023


def _stated(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """What PEFT's file beside a LoRA, or diffusers' text in it, states.

    Raises:
        UserError: it cannot be read, or names a kind that is no LoRA.
    """
    beside = path.with_name(PEFT_CONFIG)
    from_peft = path.name == PEFT_FILE and beside.is_file()
    try:
        text = beside.read_text(encoding="utf-8") if from_peft else metadata.get(DIFFUSERS_CONFIG, "{}")
        stated = json.loads(text)
        _check_stated(stated)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{SETTING}: cannot read {beside if from_peft else f'the settings in {path}'} ({str(error)[:100]}); "
            "copy it again"
        ) from error
    kind = stated.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(
            f"{SETTING}: expected a LoRA, got the kind {kind} in {beside}; use one made as a LoRA"
        )
    return stated


def _check_stated(stated: Any) -> None:
    """Raise whatever Python does where alphas are no finite numbers."""
    for key, value in stated.items():
        alphas = list((value or {}).values()) if key.endswith("alpha_pattern") else []
        alphas += [value] if key.endswith("lora_alpha") else []
        if not all(math.isfinite(alpha) for alpha in alphas):
            raise ValueError(f"{key} is {value}")
