"""Everything that a run will load, looked for before its first iteration; and where it lies once it is here."""

from collections.abc import Callable, Iterator
from pathlib import Path

from arguments import Config, GuidanceParams
from guidance.models import hub, single_file
from guidance.models.libraries import go_offline
from guidance.models.names import (
    COMPONENTS,
    ENCODERS,
    HELPERS,
    LENT,
    PICKLES,
    SHAPE_COMPONENTS,
    WITHOUT_WEIGHTS,
)
from guidance.models.source import BASE_MODEL, ENCODER, ModelSource, forms, locate, resolve
from utils.errors import UserError
from utils.paths import user_path

SHAPE_MODEL = "GenerateCamParams.shape_model"
TINY_VAE = "GuidanceParams.vae_key"
ADDITIONS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "learned_embeds.safetensors")
"""Names that diffusers' and PEFT's training scripts give to what they save in a folder."""


def missing_models(config: Config) -> list[str]:
    """What is missing for a run, one line each, all of it at once; empty when everything is there.

    Looks at the diffusion model, what is added to it, another autoencoder, and Shap-E where the start shape needs it
    and no sphere may take its place, or where something else is missing as well. Loads no weights;
    asks the hub only for what is not on this machine.
    """
    if config.offline:
        go_offline()
    guidance, start = config.GuidanceParams, config.GenerateCamParams
    problems = check_available(guidance)
    if guidance.vae_key:
        problems += _problems(lambda: vae_source(guidance), ())
    problems += [str(problem) for problem in _missing_additions(guidance)]
    if config.starts_from_text and (problems or start.init_fallback == "stop"):
        problems += _problems(lambda: shape_source(start.shape_model), SHAPE_COMPONENTS)
    return problems


def check_available(params: GuidanceParams) -> list[str]:
    """What is missing to load the diffusion model, one line each; empty when all is there."""
    return _problems(lambda: resolve(params), COMPONENTS)


def shape_source(key: str) -> ModelSource:
    """The Shap-E pipeline that a setting names."""
    return locate(key, SHAPE_MODEL, HELPERS)


def vae_source(params: GuidanceParams) -> ModelSource:
    """The autoencoder that takes the place of the model's own."""
    return locate(params.vae_key or "", TINY_VAE, HELPERS, marker="config.json")


def encoder_source(key: str) -> ModelSource:
    """The CLIP that scores pictures."""
    return locate(key, ENCODER, ENCODERS, marker="config.json")


def check_encoder(key: str) -> list[str]:
    """What is missing to load such a CLIP, one line each; empty when all is there."""
    return _problems(lambda: encoder_source(key), ())


def local_folder(source: ModelSource, components: tuple[str, ...]) -> Path:
    """Where a model's parts lie on this machine; what a hub has and this machine has not is fetched once.

    Raises:
        UserError: it cannot be fetched, or a file of it is damaged.
    """
    folder = Path(source.location) if source.kind == "folder" else _cached(source, components)
    if folder is None:
        _reach(source, components)
        try:
            folder = hub.fetch(source.location, components)
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError) as error:
            raise loading_error(error, source) from error
    damage = _damage(source, folder, components)
    if damage:
        raise UserError("; ".join(damage))
    return folder


def lent_settings(source: ModelSource) -> Path:
    """A folder with the settings of a single file: shipped, of the user's, or a hub's, fetched without its weights.

    Raises:
        UserError: they cannot be fetched.
    """
    lender = ModelSource(source.config or "", source.config or "", "hub", setting=BASE_MODEL)
    if Path(lender.location).is_dir():
        return Path(lender.location)
    folder = hub.cached(lender.location)
    if folder is not None and not hub.missing_parts(folder, COMPONENTS, without_weights=COMPONENTS):
        return folder
    try:
        return hub.download(lender.location, LENT)
    except (OSError, RuntimeError, ValueError) as error:
        raise loading_error(error, lender) from error


def _cached(source: ModelSource, components: tuple[str, ...]) -> Path | None:
    """A hub's model in the cache; None where a part is missing."""
    folder = hub.cached(source.location, "model_index.json" if components else "config.json")
    return None if folder is None or hub.missing_parts(folder, components, WITHOUT_WEIGHTS) else folder


def _reach(source: ModelSource, components: tuple[str, ...]) -> None:
    try:
        missing = hub.check_reachable(source.location, components)
    except (OSError, RuntimeError, ValueError) as error:
        raise loading_error(error, source) from error
    if missing:
        raise UserError(f"{source.setting}: {source.location} of the hub has {'; '.join(missing)}")


def _damage(source: ModelSource, folder: Path, components: tuple[str, ...]) -> list[str]:
    mend = "copy it again" if source.kind == "folder" else "delete it and fetch it again"
    return [
        f"{source.setting}: {file.resolve()} is damaged or half-downloaded; {mend}"
        for file in hub.damaged_files(folder, components)
    ]


def loading_error(error: BaseException, source: ModelSource) -> UserError:
    """The line to show when loading failed: model, cause and what to try."""
    return UserError(
        f"{source.setting}: cannot load {source.key!r}"
        + (f" ({source.location})" if source.location != source.key else "")
        + f": {hub.cause_of(error)}; or use {forms(source.setting)}"
    )


def _problems(find: Callable[[], ModelSource], components: tuple[str, ...]) -> list[str]:
    try:
        source = find()
        if source.kind == "file":
            single_file.tokenizer_folder(Path(source.location), lent_settings(source))
            return []
        folder = Path(source.location) if source.kind == "folder" else _cached(source, components)
        if folder is None:
            _reach(source, components)
            return []
    except UserError as error:
        return [str(error)]
    missing = [
        f"{source.setting}: {source.location} has {what}"
        for what in hub.missing_parts(folder, components, WITHOUT_WEIGHTS)
    ]
    return missing + _damage(source, folder, components)


def _missing_additions(params: GuidanceParams) -> Iterator[UserError]:
    for setting in ("LoRA_path", "textual_inversion_path"):
        name = getattr(params, setting)
        if not name:
            continue
        try:
            addition(name, f"GuidanceParams.{setting}")
        except UserError as error:
            yield error


def addition(name: str, setting: str) -> Path:
    """The file of a LoRA or a learned word, or of a folder that diffusers or PEFT saved one in.

    Raises:
        UserError: it is not there, or is of another kind.
    """
    path = user_path(name, setting)
    if path.suffix in PICKLES:
        raise UserError(
            f"{setting}: expected a .safetensors file, got {name}, a pickle that can run code when it is read; "
            "convert it to .safetensors first"
        )
    path = next((path / file for file in ADDITIONS if (path / file).is_file()), path)
    if path.suffix != ".safetensors" or not path.is_file():
        what = "which does not exist" if not path.exists() else "which is none"
        raise UserError(f"{setting}: expected a .safetensors file, got {name}, {what}; correct the path")
    return path
