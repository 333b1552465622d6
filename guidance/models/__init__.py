"""Where models are: our toybox, a folder, a single file or a model hub; and what to say when one is not there.

One resolver for every model of a run, and every component of a model from that one source. Loads no weights.
`python -m guidance.models` fetches models ahead of a run.
"""

from guidance.models.hub import cached, go_offline, recorded, sha256, weight_files
from guidance.models.names import ALIASES, COMPONENTS, FORMS, HELPERS, MIRRORS, SHAPE_COMPONENTS, TOYBOX
from guidance.models.preflight import (
    addition,
    check_available,
    loading_error,
    local_folder,
    missing_models,
    shape_source,
    vae_source,
)
from guidance.models.source import ModelSource, locate, resolve

__all__ = [
    "ALIASES", "COMPONENTS", "FORMS", "HELPERS", "MIRRORS", "SHAPE_COMPONENTS", "TOYBOX", "ModelSource", "addition",
    "cached", "check_available", "go_offline", "loading_error", "local_folder", "locate", "missing_models", "recorded",
    "resolve", "sha256", "shape_source", "vae_source", "weight_files",
]  # fmt: skip
