"""Prompts that a model cannot know: said before the first iteration, not after the last."""

import logging

from arguments import GuidanceParams
from toybox.captions import nearest_captions

log = logging.getLogger(__name__)


def warn_of_unknown_prompt(params: GuidanceParams) -> None:
    """Warn once where the toybox is asked for what it was not trained on, and name captions that it knows.

    Silent where a learned word or a LoRA may have taught it more.
    """
    if params.model_key != "toybox" or params.textual_inversion_path or params.LoRA_path:
        return
    near = nearest_captions(params.text)
    if near is not None:
        log.warning(
            "GuidanceParams.text: the toybox knows only prompts of the form 'a COLOUR OBJECT', and %r is not one; "
            "try %s (python -m toybox --prompts lists all), or a larger model_key",
            params.text,
            ", ".join(map(repr, near)),
        )
