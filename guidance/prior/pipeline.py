"""A Stable Diffusion pipeline from wherever its weights are, checked: what `ScoreModel` is built around."""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from arguments import GuidanceParams
from guidance import models
from guidance.models import single_file
from guidance.models.hub import names_in
from guidance.models.weights import WeightSet, weight_sets
from guidance.prior import personalization
from guidance.prior.learned_words import tokenizer_of
from utils.errors import UserError

log = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction")
KINDS = {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL", "AutoencoderTiny")}
"""Networks of these families."""
MOST = {"layers": 100, "blocks": 100, "timesteps": 100_000}
"""What the largest known models stay well below, by a word in a setting's name."""
MOST_LATENTS = 1024
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_pipeline(source: models.ModelSource, params: GuidanceParams, dtype: torch.dtype) -> Any:
    """The pipeline of a source with the VAE, textual inversion and LoRA of the settings.

    Raises:
        UserError: it cannot be found, fetched or read, or is no model of these families.
    """
    pipeline = _read(source, params, dtype)
    _check_architecture(pipeline, source)
    try:
        _try_out(pipeline)
    except UserError:
        raise
    # What damaged settings break, they break in the depth of a library.
    except Exception as error:
        raise models.loading_error(error, source) from error
    personalization.apply(pipeline, params)
    return pipeline


def _read(source: models.ModelSource, params: GuidanceParams, dtype: torch.dtype) -> Any:
    import diffusers

    models.silence()
    try:
        if source.kind == "file":
            pipeline = _load_file(source, params, dtype)
        else:
            folder = models.local_folder(source, models.COMPONENTS)
            index = diffusers.StableDiffusionPipeline.load_config(folder, local_files_only=True)
            _check_components(index, source)
            _check_numbers(folder)
            networks = load_networks(folder, index, models.COMPONENTS, dtype)
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                folder, **networks, local_files_only=True, **WITHOUT_CHECKER
            )
            stated = pipeline.scheduler.config.get("prediction_type", "epsilon")
            _check_prediction(stated, f"the scheduler of {source.location}", params.prediction_type)
        if params.vae_key:
            pipeline.vae = _load_vae(params, dtype, pipeline.vae)
        return pipeline
    except UserError:
        raise
    # Loaders raise whatever their backends do; each becomes one line that names model and cause.
    except Exception as error:
        raise models.loading_error(error, source) from error


def load_networks(
    folder: Path, index: dict[str, Any], components: tuple[str, ...], dtype: torch.dtype
) -> dict[str, torch.nn.Module]:
    """The components of a diffusers folder that have weights, from the files that are chosen for each.

    Args:
        index: the folder's `model_index.json`: library and class of each component.

    Raises:
        UserError: a component is of a class that no library here has.
    """
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers, "shap_e": diffusers.pipelines.shap_e}
    found = {}
    for name, chosen in weight_sets(names_in(folder), components).items():
        library, kind = (
            entry if isinstance(entry := index[name], list) and len(entry) == 2 else ("none", entry)
        )
        network = getattr(libraries.get(str(library)), str(kind), None)
        if not (isinstance(network, type) and issubclass(network, torch.nn.Module)):
            raise UserError(
                f"{folder}: expected a network as its {name}, got {kind} of {library} in model_index.json; "
                "use another model"
            )
        found[name] = _load_network(network, folder / name, chosen, dtype)
    return found


def _load_network(kind: Any, folder: Path, chosen: WeightSet, dtype: torch.dtype) -> Any:
    """A network with all of its weights; what the loader would fill with random numbers is an error here."""
    network, said = kind.from_pretrained(
        folder,
        variant=chosen.variant,
        use_safetensors=not chosen.pickled,
        dtype=dtype,
        local_files_only=True,
        output_loading_info=True,
    )
    if missing := sorted(said["missing_keys"]):
        raise UserError(
            f"{folder}: expected all weights of its config.json, got none for {missing[0]}, and {len(missing)} are "
            "missing in all; copy the whole folder again"
        )
    unexpected = sorted(name for name in said["unexpected_keys"] if not name.endswith("position_ids"))
    if unexpected:
        log.warning(
            "%s: %d weights have no place in the network of its config.json and are left out, the first is %s",
            folder, len(unexpected), unexpected[0],
        )  # fmt: skip
    return network


def _load_file(source: models.ModelSource, params: GuidanceParams, dtype: torch.dtype) -> Any:
    """A pipeline from one file, with the settings of its lender or of its family; asks no hub for them."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    path, config = Path(source.location), models.lent_settings(source)
    stated = single_file.stated_prediction(path)
    _check_prediction(stated, str(path), params.prediction_type)
    tokenizer = CLIPTokenizer.from_pretrained(single_file.tokenizer_folder(path, config))
    # whichever family lent the tokenizer: SD 2.x's text encoder, OpenCLIP, was trained with another padding
    tokenizer.pad_token = tokenizer.eos_token if single_file.family_of(path) == "sd1" else "!"
    pipeline = StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(config),
        tokenizer=tokenizer,
        dtype=dtype,
        local_files_only=True,
        **WITHOUT_CHECKER,
    )
    if params.prediction_type != "auto":
        single_file.set_prediction(pipeline, params.prediction_type)
    elif stated is not None or config.parent == single_file.CONFIGS:
        single_file.set_prediction(
            pipeline, stated or single_file.shown_prediction(path, config.name, pipeline)
        )
    return pipeline


def stride(vae: Any) -> int:
    """Pixels along a side of a latent's element."""
    config = vae.config
    return 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)


def _load_vae(params: GuidanceParams, dtype: torch.dtype, own: Any) -> Any:
    """The autoencoder of `vae_key`, whose latents must be of the form of the model's own."""
    import diffusers

    source = models.vae_source(params)
    try:
        folder = models.local_folder(source, ())
        kind = diffusers.AutoencoderTiny.load_config(folder, local_files_only=True).get("_class_name")
        if kind not in KINDS["vae"]:
            raise UserError(
                f"{source.setting}: expected an AutoencoderKL or AutoencoderTiny, got {kind} in {folder}; try taesd"
            )
        (chosen,) = weight_sets(names_in(folder), ()).values()
        vae = _load_network(getattr(diffusers, kind), folder, chosen, dtype)
        wanted, got = ((stride(each), each.config.latent_channels) for each in (own, vae))
        if got != wanted:
            raise UserError(
                f"{source.setting}: expected latents of {wanted[1]} channels, {wanted[0]} pixels to a side, as the "
                f"model's own autoencoder has, got {got[1]} channels and {got[0]} pixels in {folder}; leave it out"
            )
        return vae
    except UserError:
        raise
    except Exception as error:
        raise models.loading_error(error, source) from error


def _check_numbers(folder: Path) -> None:
    """Raise UserError for settings of so many layers or timesteps that building them would not end."""
    for file in (file for part in models.COMPONENTS for file in (folder / part).glob("*config.json")):
        for name, value in json.loads(file.read_text(encoding="utf-8")).items():
            most = next((most for word, most in MOST.items() if word in name), None)
            numbers = [
                each
                for each in (value if isinstance(value, list) else [value])
                if isinstance(each, int | float)
            ]
            if most is not None and any(not number <= most for number in numbers):
                raise UserError(
                    f"{file}: expected {name} of at most {most}, got {str(value)[:40]}; copy it again"
                )


def _try_out(pipeline: Any) -> None:
    """Encode one text and build the schedule, so that settings that cannot work are found where they are loaded."""
    from diffusers import DDIMScheduler

    with torch.no_grad():
        pipeline.text_encoder(tokenizer_of(pipeline)(["a"]))
    kept = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    if not (kept.isfinite() & (kept >= 0) & (kept <= 1)).all() or (kept.diff() > 0).any():
        raise ValueError("its scheduler's betas are no schedule of noise; copy it again")
    size = pipeline.unet.config.sample_size
    sides = size if isinstance(size, list | tuple) else [size]
    if not all(isinstance(side, int) and 1 <= side <= MOST_LATENTS for side in sides) or len(sides) not in (
        1,
        2,
    ):
        raise ValueError(f"its U-Net's sample_size is {str(size)[:40]}; copy it again")


def _check_prediction(stated: str | None, by: str, wanted: str) -> None:
    """Many models say what they predict; a setting that says otherwise is a mistake of one of the two."""
    if stated is not None and wanted not in ("auto", stated):
        raise UserError(
            f"GuidanceParams.prediction_type: expected {stated}, as {by} says, got {wanted}; set it to auto"
        )


def _check_components(index: dict[str, Any], source: models.ModelSource) -> None:
    missing = [name for name in models.COMPONENTS if name not in index]
    if missing or "text_encoder_2" in index:
        raise _wrong_architecture(source, f"a {index.get('_class_name', 'model')}")


def _check_architecture(pipeline: Any, source: models.ModelSource) -> None:
    for name, kinds in KINDS.items():
        kind = type(getattr(pipeline, name)).__name__
        if kind not in kinds:
            raise _wrong_architecture(source, f"{kind} as its {name}")
    for name in ("unet", "vae", "text_encoder"):
        if any(weight.is_meta for weight in getattr(pipeline, name).parameters()):
            raise _wrong_architecture(source, f"a {name} without all of its weights")
    unet, text_width = pipeline.unet.config, pipeline.text_encoder.config.hidden_size
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if unet.in_channels == 9:
        raise _wrong_architecture(source, "an inpainting model")
    if unet.in_channels != pipeline.vae.config.latent_channels:
        raise _wrong_architecture(
            source,
            f"a U-Net of {unet.in_channels} channels for {pipeline.vae.config.latent_channels} of latents",
        )
    if unet.out_channels != unet.in_channels:
        raise _wrong_architecture(
            source, f"a U-Net of {unet.in_channels} channels that gives {unet.out_channels}"
        )
    if unet.cross_attention_dim != text_width:
        raise _wrong_architecture(
            source,
            f"a U-Net that reads text of width {unet.cross_attention_dim} beside a text encoder of {text_width}",
        )
    further = (unet.time_cond_proj_dim, unet.class_embed_type, unet.encoder_hid_dim_type)
    if any(further) or unet.addition_embed_type not in (None, "text"):
        raise _wrong_architecture(source, "a U-Net with further conditions (a distilled or SDXL model)")
    if prediction not in PREDICTION_TYPES:
        raise _wrong_architecture(source, f"prediction type {prediction}")
    if not hasattr(pipeline.scheduler, "betas"):  # of flow matching, say: the betas would be made up
        raise _wrong_architecture(source, f"a {type(pipeline.scheduler).__name__}")


def _wrong_architecture(source: models.ModelSource, found: str) -> UserError:
    return UserError(
        "GuidanceParams.model_key: expected a text-to-image model of the Stable Diffusion 1.x or 2.x kind, got "
        f"{found} in {source.location}; try {', '.join(('toybox', *models.ALIASES))}"
    )
