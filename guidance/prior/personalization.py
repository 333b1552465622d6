"""What users add to a model: learned words and LoRAs; and its tokenizer, which must know the words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from arguments import GuidanceParams
from guidance.models import addition
from utils.errors import UserError

LEARNED_WORD = "<embed>"  # the mark of a learned word in the metadata of cloneofsimo's LoRA files


def apply(pipeline: Any, params: GuidanceParams) -> None:
    """Add the textual inversion and the LoRA of the settings to a pipeline, in place.

    Raises:
        UserError: a file is not there, cannot be read, or does not fit the model.
    """
    if params.textual_inversion_path:
        path = addition(params.textual_inversion_path, "GuidanceParams.textual_inversion_path")
        _load(pipeline.load_textual_inversion, path, "GuidanceParams.textual_inversion_path")
    if params.LoRA_path:
        path = addition(params.LoRA_path, "GuidanceParams.LoRA_path")
        words = _learned_words(path)
        if words:
            _add_words(pipeline, words, path)
        else:
            _load(pipeline.load_lora_weights, path, "GuidanceParams.LoRA_path")
            if not any(getattr(part, "peft_config", None) for part in (pipeline.unet, pipeline.text_encoder)):
                raise UserError(
                    f"GuidanceParams.LoRA_path: {path} names no layer of this model; use one made for its family"
                )
            pipeline.fuse_lora()
            pipeline.unload_lora_weights()


def tokenizer_of(pipeline: Any) -> Callable[[list[str]], Tensor]:
    """Texts to padded tokens (N, L) for the pipeline's text encoder; a text that is too long is an error, never cut."""
    tokenizer = pipeline.tokenizer
    length = min(tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    expand = pipeline.maybe_convert_prompt  # a learned word of several vectors is several tokens

    def tokenize(texts: list[str]) -> Tensor:
        texts = [expand(text, tokenizer) for text in texts]
        for text in texts:
            refuse_too_long(text, tokenizer, length)
        return tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids

    return tokenize


def refuse_too_long(text: str, tokenizer: Any, length: int) -> None:
    """Raise UserError where a text has more than `length` tokens, its begin and end included."""
    count = len(tokenizer(text).input_ids)
    if count > length:
        raise UserError(
            f"prompt {text!r}: expected at most {length - 2} tokens, got {count - 2}; "
            f"shorten it by {count - length}"
        )


def _load(load: Callable[[str], None], path: Path, setting: str) -> None:
    try:
        load(str(path))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{setting}: {path} cannot be added to this model ({reason}); use one made for it"
        ) from error


def _learned_words(path: Path) -> dict[str, Tensor]:
    """Vectors of the words that a file of cloneofsimo's LoRA library teaches; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {word: file.get_tensor(word) for word, kind in metadata.items() if kind == LEARNED_WORD}
    except SafetensorError as error:
        raise UserError(
            f"{path}: expected a .safetensors file, got a damaged one ({error}); copy it again"
        ) from error


def _add_words(pipeline: Any, words: dict[str, Tensor], path: Path) -> None:
    width = pipeline.text_encoder.config.hidden_size
    for word, vector in words.items():
        if vector.numel() != width:
            raise UserError(
                f"GuidanceParams.LoRA_path: expected words of width {width} for this model, got {vector.numel()} "
                f"in {path}; use the model that they were learned on"
            )
        pipeline.tokenizer.add_tokens(word)
        pipeline.text_encoder.resize_token_embeddings(len(pipeline.tokenizer))
        table = pipeline.text_encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[pipeline.tokenizer.convert_tokens_to_ids(word)] = vector.flatten().to(table)
