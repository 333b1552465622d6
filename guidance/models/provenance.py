"""Which weights a run has loaded: for its manifest, so that "the same model" is a claim that can be checked."""

from functools import cache
from pathlib import Path
from typing import Any

from arguments import GuidanceParams
from guidance.models import hub
from guidance.models.names import SHAPE_COMPONENTS
from guidance.models.preflight import addition, shape_source, vae_source
from guidance.models.source import ModelSource
from utils.errors import UserError


def prior_provenance(source: ModelSource, params: GuidanceParams) -> dict[str, Any]:
    """The diffusion model's, and under their settings' names those of what takes its parts' place or is added to it."""
    parts = ("unet", "vae", "text_encoder") if params.vae_key is None else ("unet", "text_encoder")
    found = _provenance(source, parts)
    if params.vae_key is not None:
        found["vae_key"] = _provenance(vae_source(params), ())
    for setting in ("LoRA_path", "textual_inversion_path"):
        if name := getattr(params, setting):
            path = addition(name, f"GuidanceParams.{setting}")
            found[setting] = _provenance(ModelSource(name, str(path), "file"), ())
    return found


@cache
def shape_provenance(key: str) -> dict[str, Any] | None:
    """Shap-E's; None for a key that means no model, in whose place a run starts from a sphere."""
    try:
        return _provenance(shape_source(key), SHAPE_COMPONENTS)
    except UserError:
        return None


def _provenance(source: ModelSource, components: tuple[str, ...]) -> dict[str, Any]:
    """Key, place, the hub's revision, and the SHA-256 of every weight file, as recorded or computed."""
    if source.kind == "file":
        path = Path(source.location)
        return _described(source, None, {path.name: hub.sha256(path)})
    marker = "model_index.json" if components else "config.json"
    folder = Path(source.location) if source.kind == "folder" else hub.cached(source.location, marker)
    if folder is None:
        return _described(source, None, {})
    known = (hub.recorded(folder) or {}).get("files", {})
    names = {str(file.relative_to(folder)): file for file in hub.weight_files(folder, components)}
    hashes = {
        name: known[name]["sha256"] if name in known else hub.sha256(file) for name, file in names.items()
    }
    return _described(source, folder.name if source.kind == "hub" else None, hashes)


def _described(source: ModelSource, revision: str | None, hashes: dict[str, str]) -> dict[str, Any]:
    return {"model_key": source.key, "location": source.location, "revision": revision, "sha256": hashes}
