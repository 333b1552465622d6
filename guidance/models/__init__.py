"""Where models are: our toybox, a folder, a single file or a model hub; and what to say when one is not there.

One resolver for every model of a run, and every component of a model from that one source. Loads no weights,
and no torch until it must: Ctrl-C in that second would find no command yet that answers it.
`python -m guidance.models` fetches models ahead of a run.
"""

from guidance.models.hub import cached, recorded
from guidance.models.libraries import go_offline, kept_as_they_were, silence
from guidance.models.names import (
    ALIASES,
    COMPONENTS,
    ENCODERS,
    FORMS,
    HELPERS,
    MIRRORS,
    SHAPE_COMPONENTS,
    TOYBOX,
)
from guidance.models.preflight import (
    addition,
    check_available,
    check_encoder,
    encoder_source,
    lent_settings,
    loading_error,
    local_folder,
    missing_models,
    shape_source,
    vae_source,
)
from guidance.models.provenance import prior_provenance, shape_provenance
from guidance.models.source import ModelSource, locate, resolve

__all__ = [
    "ALIASES", "COMPONENTS", "ENCODERS", "FORMS", "HELPERS", "MIRRORS", "SHAPE_COMPONENTS", "TOYBOX", "ModelSource",
    "addition", "cached", "check_available", "check_encoder", "encoder_source", "go_offline", "kept_as_they_were",
    "lent_settings", "loading_error", "local_folder", "locate", "missing_models", "prior_provenance", "recorded",
    "resolve", "shape_provenance", "shape_source", "silence", "vae_source",
]  # fmt: skip
