"""Words that users teach a model (textual inversion): their files, their tokens, and the tokenizer that knows them.

A word has one or more vectors of the text encoder's width, and each of them takes a token of the prompt.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.tensors import is_real, open_tensors

log = logging.getLogger(__name__)

Words = dict[str, Tensor]
"""Each word's vectors, (K, W) once they are checked."""

MARK = "<embed>"
"""What the metadata of cloneofsimo's LoRA files say of a name that is a learned word."""
FILE_IS_THE_WORD = ("emb_params", "string_to_param", "string_to_param.*", "*", "clip_l")
"""Names under which the web UIs' files keep their vectors; the word is the file's name."""
OTHER_ENCODERS = ("clip_g", "t5xxl", "t5")
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL"}
"""Who has a text encoder of this width."""
SHOWN = (60, 30)
"""Letters of a long prompt's beginning and end that a message repeats."""


def marked_words(path: Path, setting: str) -> Words:
    """The words that a file of cloneofsimo's LoRA library marks as such; empty for other files.

    Raises:
        UserError: the file is damaged.
    """
    with open_tensors(path, setting) as file:
        marked = [word for word, kind in (file.metadata() or {}).items() if kind == MARK]
        others = [name for name in file.keys() if name not in marked]  # noqa: SIM118, no mapping
        if marked and others:
            log.warning("%s: of %s the words alone are added, not %s", setting, path, others[0])
        return {word: _as_rows(file.get_tensor(word)) for word in marked}


def read_words(path: Path, setting: str) -> Words:
    """The words of a textual inversion: named in the file, or by the file's name as in the web UIs.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    with open_tensors(path, setting) as file:
        names = list(file.keys())
        if any(name in OTHER_ENCODERS for name in names):
            raise _not_a_word(path, setting, "one for SDXL or another model of several text encoders")
        if any("lora_" in name or ".lora." in name for name in names):
            raise _not_a_word(path, setting, "a LoRA (that is GuidanceParams.LoRA_path)")
        for name in FILE_IS_THE_WORD:
            if name in names:
                return {path.stem: _as_rows(file.get_tensor(name))}
        return {name: _as_rows(file.get_tensor(name)) for name in names}


def _as_rows(vectors: Tensor) -> Tensor:
    return vectors[None] if vectors.dim() == 1 else vectors


def _not_a_word(path: Path, setting: str, found: str) -> UserError:
    return UserError(
        f"{setting}: expected a textual inversion, got {found} in {path}; use one made for this model"
    )


def add_words(pipeline: Any, words: Words, path: Path, setting: str) -> None:
    """Make tokens of words, the first of a word by its name and the others by its name and a number; in place.

    Raises:
        UserError: their vectors do not fit the model, or the model knows a word already.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    width = encoder.config.hidden_size
    if not words:
        raise _not_a_word(path, setting, "nothing")
    for word, vectors in words.items():
        _check(word, vectors, width, path, setting)
        names = [word, *(f"{word}_{index}" for index in range(1, len(vectors)))]
        if not word.strip() or not tokenizer.get_vocab().keys().isdisjoint(names):
            raise UserError(
                f"{setting}: expected a new word, got {word!r} in {path}, which the model has already; "
                "give the word, or the file that is named like it, another name"
            )
        _add_tokens(tokenizer, names)
        rows = encoder.get_input_embeddings().num_embeddings
        encoder.resize_token_embeddings(max(rows, len(tokenizer)), mean_resizing=False)
        table = encoder.get_input_embeddings().weight
        with torch.no_grad():
            table[tokenizer.convert_tokens_to_ids(names)] = vectors.to(table)


def _add_tokens(tokenizer: Any, names: list[str]) -> None:
    from transformers import AddedToken

    # "badcats" is not "badcat"; as in the web UIs, capitals are like small letters
    tokenizer.add_tokens([AddedToken(name, single_word=name.isalnum(), normalized=True) for name in names])


def _check(word: str, vectors: Tensor, width: int, path: Path, setting: str) -> None:
    shape = tuple(vectors.shape)
    if vectors.dim() != 2 or 0 in shape or not is_real(vectors):
        raise _not_a_word(path, setting, f"{word!r} of shape {shape} and {vectors.dtype}")
    if shape[1] != width:
        family = FAMILIES.get(shape[1], "another model")
        raise UserError(
            f"{setting}: expected words of width {width} for this model, got {word!r} of {shape[1]} ({family}) "
            f"in {path}; use the model that it was learned on"
        )
    if not vectors.float().isfinite().all():
        raise UserError(
            f"{setting}: expected finite numbers, got {word!r} with some that are not in {path}; copy it again, "
            "or use another"
        )


def warn_of_unused(
    tokenizer: Any, words: Iterable[str], prompts: Iterable[str], path: Path, setting: str
) -> None:
    """Say of every word that no prompt has that it changes nothing."""
    vectors = _tokens_of_words(tokenizer)
    used = {
        each
        for prompt in prompts
        for token in tokenizer(prompt).input_ids
        for each in vectors.get(token, [token])
    }
    unused = [word for word in words if tokenizer.convert_tokens_to_ids(word) not in used]
    if unused:
        log.warning(
            "%s: %s teaches %s, which no prompt has, so it changes nothing; write it into text or negative",
            setting,
            path,
            ", ".join(map(repr, unused)),
        )


def tokenizer_of(pipeline: Any) -> Callable[[list[str]], Tensor]:
    """Texts to padded tokens (N, L) for the pipeline's text encoder; a text that is too long is an error, never cut."""
    tokenizer = pipeline.tokenizer
    length = min(tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    vectors = _tokens_of_words(tokenizer)

    def tokenize(texts: list[str]) -> Tensor:
        rows = [
            [each for token in tokenizer(text).input_ids for each in vectors.get(token, [token])]
            for text in texts
        ]
        for text, row in zip(texts, rows, strict=True):
            refuse_too_long(text, len(row), length)
        return torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])

    return tokenize


def _tokens_of_words(tokenizer: Any) -> dict[int, list[int]]:
    """For the first token of a learned word, all of the word."""
    added = tokenizer.get_added_vocab()
    found = {}
    for word, first in added.items():
        tokens = [first]
        while (following := added.get(f"{word}_{len(tokens)}")) is not None:
            tokens.append(following)
        found[first] = tokens
    return found


def refuse_too_long(text: str, count: int, length: int) -> None:
    """Raise UserError where a text has `count` tokens and more than `length`, its begin and end included."""
    if count > length:
        shown = text if len(text) <= sum(SHOWN) else f"{text[: SHOWN[0]]} ... {text[-SHOWN[1] :]}"
        raise UserError(
            f"prompt {shown!r}: expected at most {length - 2} tokens, got {count - 2}; "
            f"shorten it by {count - length}"
        )
