"""Scores of the user's own: `--scorer module:callable`."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from utils.errors import UserError

Scorer = Callable[[Float[Tensor, "V 3 H W"], str], Any]
"""Images in [0, 1] and their prompt to one number, or one for each image."""


def load_scorer(name: str) -> Scorer:
    """What `module:callable` names.

    Raises:
        UserError: there is no such module, or nothing in it that can be called by that name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise UserError(f"--scorer: expected module:callable, got {name}; write it as my_scores:sharpness")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, TypeError) as error:  # TypeError: of a name that begins with a dot
        raise UserError(
            f"--scorer: expected a module that can be imported, got {module} ({error}); start from its folder, "
            "or set PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(
            f"--scorer: expected a callable {attribute} in {module}, found none; correct the name"
        )
    return found


def score_by(name: str, scorer: Scorer, images: Float[Tensor, "V 3 H W"], prompt: str) -> float:
    """The mean of what a user's score says of images in [0, 1].

    Raises:
        UserError: it says anything else than finite numbers, one or one for each image. What it raises itself passes.
    """
    said = scorer(images, prompt)
    try:
        values = torch.as_tensor(said, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--scorer: expected numbers of {name}, got {str(said)[:60]!r}; correct it"
        ) from error
    if len(values) not in (1, len(images)) or not values.isfinite().all():
        raise UserError(
            f"--scorer: expected one finite number of {name}, or {len(images)}, one for each picture, got "
            f"{str(values.tolist())[:60]}; correct it"
        )
    return values.mean().item()
