"""What a user's name for a model means: our toybox, a local folder, a single file, or a hub id. Loads nothing."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from arguments import GuidanceParams
from guidance.models import hub, single_file
from guidance.models.names import ALIASES, ENCODER_FORMS, FORMS, MIRRORS, PICKLES, TOYBOX
from utils.errors import UserError
from utils.paths import user_path

log = logging.getLogger(__name__)

MODEL_KEY, BASE_MODEL = single_file.MODEL_KEY, "GuidanceParams.base_model_key"
ENCODER = "--encoder"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        key: what the user wrote.
        location: a folder, a file or a hub id.
        kind: "folder", "file" or "hub".
        config: for a file, the folder or hub id that lends its settings.
        setting: the name of the setting that the user wrote it into.
    """

    key: str
    location: str
    kind: str
    config: str | None = None
    setting: str = MODEL_KEY


def resolve(params: GuidanceParams) -> ModelSource:
    """Find what `model_key` means: an alias, a local folder, a single file, or a hub id, in this order.

    An id that its publisher removed is replaced by its mirror, with a warning, unless it is a local folder or cached.

    Raises:
        UserError: `model_key` is none of these, or a kind of file that is not loaded.
    """
    key = params.model_key
    if not key:
        raise UserError(f"{MODEL_KEY}: expected a diffusion model, got none; try {forms(MODEL_KEY)}")
    if key == "toybox":
        return _folder(key, TOYBOX, MODEL_KEY, "model_index.json")
    path = user_path(key, MODEL_KEY)
    if path.suffix == ".safetensors" and not path.is_dir():
        if not path.is_file():
            raise UserError(
                f"{MODEL_KEY}: expected a file, got {key}, which does not exist; try {forms(MODEL_KEY)}"
            )
        family = single_file.family_of(path)
        lender = params.base_model_key
        config = locate(lender, BASE_MODEL).location if lender else str(single_file.CONFIGS / family)
        return ModelSource(key, str(path), "file", config)
    return locate(key, MODEL_KEY)


def locate(
    key: str, setting: str, aliases: Mapping[str, str] = ALIASES, marker: str = "model_index.json"
) -> ModelSource:
    """A folder or a hub id; `aliases` are the short names that the setting takes, `marker` a file of such a folder.

    Raises:
        UserError: `key` is neither, or a file.
    """
    path = user_path(key, setting)
    if path.is_dir():
        return _folder(key, path, setting, marker)
    if path.suffix in PICKLES:
        raise UserError(
            f"{setting}: expected a .safetensors file, got {key}, a pickle that can run code when it is read; "
            "convert it to .safetensors first"
        )
    if path.is_file() or path.suffix == ".safetensors":
        raise UserError(f"{setting}: expected {forms(setting)}, got the file {key}; correct it")
    return ModelSource(key, _hub_id(key, setting, aliases), "hub", setting=setting)


def forms(setting: str) -> str:
    """What a setting can name, for messages."""
    known = {MODEL_KEY: f"one of {FORMS}", ENCODER: f"one of {ENCODER_FORMS}"}
    return known.get(setting, "a folder in diffusers' layout, or a hub id")


def _folder(key: str, path: Path, setting: str, marker: str) -> ModelSource:
    if not (path / marker).is_file():
        layout = "transformers'" if setting == ENCODER else "diffusers'"
        raise UserError(
            f"{setting}: expected a folder in {layout} layout, got {path} without {marker}; try {forms(setting)}"
        )
    return ModelSource(key, str(path), "folder", setting=setting)


def _hub_id(key: str, setting: str, aliases: Mapping[str, str]) -> str:
    if key in aliases:
        return aliases[key]
    if not HUB_ID.fullmatch(key) or key.startswith("."):
        known = ["toybox", *aliases] if setting == MODEL_KEY else list(aliases)
        near = get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"try {forms(setting)}"
        raise UserError(
            f"{setting}: expected a model, got {key}, which is no folder, file, alias or hub id; {hint}"
        )
    if key in MIRRORS and hub.cached(key) is None:
        log.warning("%s: %s was removed by its publisher; using its mirror %s", setting, key, MIRRORS[key])
        return MIRRORS[key]
    return key
