"""What users add to a model: learned words and LoRAs."""

from typing import Any

from arguments import GuidanceParams
from guidance.models import addition
from guidance.prior.added_lora import add_lora
from guidance.prior.learned_words import add_words, marked_words, read_words, warn_of_unused

LORA, INVERSION = "GuidanceParams.LoRA_path", "GuidanceParams.textual_inversion_path"


def apply(pipeline: Any, params: GuidanceParams) -> None:
    """Add the textual inversion and the LoRA of the settings to a pipeline, in place.

    A word that no prompt has is warned of; a LoRA file that has words marked as such adds these alone.

    Raises:
        UserError: a file is not there, cannot be read, or does not fit the model.
    """
    prompts = (params.text, params.negative, params.inverse_text)
    if params.textual_inversion_path:
        path = addition(params.textual_inversion_path, INVERSION)
        words = read_words(path, INVERSION)
        add_words(pipeline, words, path, INVERSION)
        warn_of_unused(pipeline.tokenizer, words, prompts, path, INVERSION)
    if params.LoRA_path:
        path = addition(params.LoRA_path, LORA)
        words = marked_words(path, LORA)
        if words:
            add_words(pipeline, words, path, LORA)
            warn_of_unused(pipeline.tokenizer, words, prompts, path, LORA)
        else:
            add_lora(pipeline, path)
