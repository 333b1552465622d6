"""A Stable Diffusion pipeline from wherever its weights are, checked: what `ScoreModel` is built around."""

from pathlib import Path
from typing import Any

import torch

from arguments import GuidanceParams
from guidance import models
from guidance.models import single_file
from guidance.prior import personalization
from utils.errors import UserError

PREDICTION_TYPES = ("epsilon", "v_prediction")
WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def load_pipeline(source: models.ModelSource, params: GuidanceParams, dtype: torch.dtype) -> Any:
    """The pipeline of a source with the VAE, textual inversion and LoRA of the settings.

    Raises:
        UserError: it cannot be found, fetched or read, or is no model of these families.
    """
    pipeline = _read(source, params, dtype)
    _check_architecture(pipeline, source)
    personalization.apply(pipeline, params)
    return pipeline


def _read(source: models.ModelSource, params: GuidanceParams, dtype: torch.dtype) -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    try:
        if source.kind == "file":
            pipeline = _load_file(source, params, dtype)
        else:
            folder = models.local_folder(source, models.COMPONENTS)
            _check_components(
                diffusers.StableDiffusionPipeline.load_config(folder, local_files_only=True), source
            )
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
                folder, dtype=dtype, local_files_only=True, **WITHOUT_CHECKER
            )
            stated = pipeline.scheduler.config.get("prediction_type", "epsilon")
            _check_prediction(stated, f"the scheduler of {source.location}", params.prediction_type)
        if params.vae_key:
            pipeline.vae = _load_vae(params, dtype)
        return pipeline
    except UserError:
        raise
    # Loaders raise whatever their backends do; each becomes one line that names model and cause.
    except Exception as error:
        raise models.loading_error(error, source) from error


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


def _load_vae(params: GuidanceParams, dtype: torch.dtype) -> Any:
    import diffusers

    source = models.vae_source(params)
    try:
        folder = models.local_folder(source, ())
        kind = diffusers.AutoencoderTiny.load_config(folder, local_files_only=True).get("_class_name")
        if kind not in ("AutoencoderKL", "AutoencoderTiny"):
            raise UserError(
                f"{source.setting}: expected an AutoencoderKL or AutoencoderTiny, got {kind} in {folder}; try taesd"
            )
        return getattr(diffusers, kind).from_pretrained(folder, dtype=dtype, local_files_only=True)
    except UserError:
        raise
    except Exception as error:
        raise models.loading_error(error, source) from error


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
    unet, text_width = pipeline.unet.config, pipeline.text_encoder.config.hidden_size
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if unet.in_channels == 9:
        raise _wrong_architecture(source, "an inpainting model")
    if unet.in_channels != pipeline.vae.config.latent_channels:
        raise _wrong_architecture(
            source,
            f"a U-Net of {unet.in_channels} channels for {pipeline.vae.config.latent_channels} of latents",
        )
    if unet.cross_attention_dim != text_width:
        raise _wrong_architecture(
            source,
            f"a U-Net that reads text of width {unet.cross_attention_dim} beside a text encoder of {text_width}",
        )
    if unet.time_cond_proj_dim or unet.addition_embed_type not in (None, "text") or unet.class_embed_type:
        raise _wrong_architecture(source, "a U-Net with further conditions (a distilled or SDXL model)")
    if prediction not in PREDICTION_TYPES:
        raise _wrong_architecture(source, f"prediction type {prediction}")


def _wrong_architecture(source: models.ModelSource, found: str) -> UserError:
    return UserError(
        "GuidanceParams.model_key: expected a text-to-image model of the Stable Diffusion 1.x or 2.x kind, got "
        f"{found} in {source.location}; try {', '.join(('toybox', *models.ALIASES))}"
    )
