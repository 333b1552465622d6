"""The frozen latent diffusion model: images to latents and back, text to embeddings, x_t to ε.

The only importer of diffusers and transformers, which load when a model does.
"""

import dataclasses
import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from arguments import GuidanceParams
from guidance import models, personalization
from guidance.noise import standard_normal_like
from utils.errors import UserError

log = logging.getLogger(__name__)

PREDICTION_TYPES = ("epsilon", "v_prediction")
SMALL_MEMORY_BATCH = 4
HALF_GRADIENT_SCALE = 1024.0


@dataclasses.dataclass
class Evaluations:
    """How often the U-Net ran, counted per latent: a batch of 4 views with 2 branches is 8."""

    forward: int = 0
    backward: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.forward, self.backward = state["forward"], state["backward"]


class ScoreModel:
    """A Stable Diffusion 1.x or 2.x model, or one of its layout, whose weights never change.

    Latents and predictions are float32; the networks run in float16 on CUDA where asked, else in float32.

    Attributes:
        alphas_cumprod: ᾱ_t of its schedule, (T,) float32.
        latent_channels, latent_size: C and (h, w) of a latent.
        text_shape: L and D of an encoded text.
        image_size: (H, W) in pixels, the resolution that the model was made for.
        prediction_type: "epsilon" or "v_prediction", the U-Net's own; `predict_noise` always gives ε.
        evaluations: U-Net evaluations so far.
    """

    def __init__(
        self, pipeline: Any, source: models.ModelSource, *, device: torch.device, small_memory: bool
    ) -> None:
        from diffusers import DDIMScheduler

        self.unet, self.vae = _frozen(pipeline.unet, device), _frozen(pipeline.vae, device)
        self.text_encoder: nn.Module | None = _frozen(pipeline.text_encoder, device)
        self.text_shape = _text_shape(pipeline)
        self._tokenize = personalization.tokenizer_of(pipeline)
        self._source = source
        self.device, self.dtype = device, pipeline.unet.dtype
        if small_memory:
            self.vae.enable_gradient_checkpointing()
        self._batch_limit = SMALL_MEMORY_BATCH if small_memory else None

        schedule = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(device)
        self.prediction_type = schedule.config.prediction_type
        self.latent_channels = self.unet.config.in_channels
        self.latent_size = _pair(self.unet.config.sample_size)
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.image_size = (self.latent_size[0] * stride, self.latent_size[1] * stride)
        self._scale = self.vae.config.scaling_factor
        self._shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        self.evaluations = Evaluations()
        self._gradient_scale = HALF_GRADIENT_SCALE if self.dtype == torch.float16 else 1.0

    @classmethod
    def from_pretrained(
        cls, params: GuidanceParams, device: torch.device | str, offline: bool = False
    ) -> "ScoreModel":
        """Load the model that `model_key` names, with its textual inversion and LoRA.

        Raises:
            UserError: it cannot be found, fetched or read, or is no model of these families.
        """
        device = torch.device(device)
        if offline:
            models.go_offline()
        source = models.resolve(params)
        half = params.fp16 and device.type == "cuda"
        pipeline = _load_pipeline(source, torch.float16 if half else torch.float32, offline)
        _check_architecture(pipeline, source)
        personalization.apply(pipeline, params)
        return cls(pipeline, source, device=device, small_memory=params.vram_O)

    def encode_images(
        self, images: Float[Tensor, "B 3 H W"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]:
        """x_0 of images in [0, 1], with gradient to the images; other sizes are resized to the model's own.

        AutoencoderKL draws from its posterior with `rng`; AutoencoderTiny has none.
        """
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        encoded = self.vae.encode((2 * images - 1).to(self.dtype))
        if hasattr(encoded, "latent_dist"):
            mean, deviation = encoded.latent_dist.mean.float(), encoded.latent_dist.std.float()
            latents = mean + deviation * standard_normal_like(mean, rng)
        else:
            latents = encoded.latents.float()
        return (latents - self._shift) * self._scale

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], float32, for looking at: without gradient."""
        pixels = self.vae.decode((latents / self._scale + self._shift).to(self.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Float[Tensor, "N L D"]:
        """Embeddings of prompts; the empty one is the unconditional text.

        Raises:
            UserError: a prompt has more tokens than the model reads.
        """
        if self.text_encoder is None:
            raise RuntimeError("encode_text after drop_text_encoder")
        tokens = self._tokenize(texts)
        return self.text_encoder(tokens.to(self.device))[0]

    def drop_text_encoder(self) -> None:
        """Free the text tower once every prompt is encoded."""
        self.text_encoder = None

    @torch.no_grad()
    def predict_noise(
        self,
        noisy_latents: Float[Tensor, "M C h w"],
        timesteps: Int[Tensor, " M"],
        text: Float[Tensor, "M L D"],
    ) -> Float[Tensor, "M C h w"]:
        """ε_φ(x_t, t, y), float32, without gradient."""
        return self._predict_noise(noisy_latents, timesteps, text)

    def predict_noise_with_gradient(
        self,
        noisy_latents: Float[Tensor, "M C h w"],
        timesteps: Int[Tensor, " M"],
        text: Float[Tensor, "M L D"],
    ) -> Float[Tensor, "M C h w"]:
        """ε_φ(x_t, t, y), float32, with gradient to the text and to a LoRA; its backward is counted when it runs."""
        output = self._predict_noise(noisy_latents, timesteps, text)
        if output.requires_grad:
            output.register_hook(self._enter_backward)
        return output

    def _enter_backward(self, gradient: Tensor) -> Tensor:
        self.evaluations.backward += len(gradient)
        return gradient * self._gradient_scale

    def estimators(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Announce parameters whose gradient passes through the U-Net, before they are first used.

        In half precision small gradients would vanish on the way: they are scaled up at the U-Net's output, and
        down again, by the same power of two, where they arrive.
        """
        for parameter in parameters:
            parameter.register_hook(lambda gradient: gradient / self._gradient_scale)
        return parameters

    def build_lora(self, *, rank: int, scale: float, with_camera: bool, rng: torch.Generator) -> nn.Module:
        """A trainable twin of the U-Net (see `guidance.lora.LoRA`); at most one can live on a score model."""
        from guidance.lora import LoRA

        return LoRA(self, rank=rank, scale=scale, with_camera=with_camera, rng=rng)

    def _predict_noise(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """A v-prediction is converted: ε = √ᾱ_t v + √(1 - ᾱ_t) x_t."""
        self.evaluations.forward += len(noisy_latents)
        limit = self._batch_limit or len(noisy_latents)
        parts = zip(noisy_latents.split(limit), timesteps.split(limit), text.split(limit), strict=True)
        output = torch.cat([self._run_unet(*part) for part in parts])
        if self.prediction_type == "epsilon":
            return output
        alphas_cumprod = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt() * output + (1 - alphas_cumprod).sqrt() * noisy_latents

    def _run_unet(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        prediction = self.unet(
            noisy_latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=text.to(self.dtype),
            return_dict=False,
        )
        return prediction[0].float()

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Which weights these are: key, place, the hub's revision, and the SHA-256 of every weight file."""
        folder = models.snapshot(self._source)
        if folder is None:
            files = [Path(self._source.location)]
        else:
            files = [
                file for name in ("unet", "vae", "text_encoder") for file in models.weight_files(folder, name)
            ]
        return {
            "model_key": self._source.key,
            "location": self._source.location,
            "revision": folder.name if folder is not None and self._source.kind == "hub" else None,
            "sha256": {f"{file.parent.name}/{file.name}": _sha256(file) for file in files},
        }


def _load_pipeline(source: models.ModelSource, dtype: torch.dtype, offline: bool) -> Any:
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        if source.kind == "file":
            return diffusers.StableDiffusionPipeline.from_single_file(
                source.location, config=source.config, dtype=dtype, local_files_only=offline, **options
            )
        index = diffusers.StableDiffusionPipeline.load_config(source.location, local_files_only=offline)
        _check_components(index, source)
        return diffusers.StableDiffusionPipeline.from_pretrained(
            source.location, dtype=dtype, local_files_only=offline, **options
        )
    except UserError:
        raise
    # Loaders raise whatever their backends do; each becomes one line that names model and cause.
    except Exception as error:
        raise models.loading_error(error, source, offline) from error


def _check_components(index: dict[str, Any], source: models.ModelSource) -> None:
    missing = [name for name in models.COMPONENTS if name not in index]
    if missing or "text_encoder_2" in index:
        raise _wrong_architecture(source, f"a {index.get('_class_name', 'model')}")


def _check_architecture(pipeline: Any, source: models.ModelSource) -> None:
    unet, text_width = pipeline.unet.config, pipeline.text_encoder.config.hidden_size
    prediction = pipeline.scheduler.config.get("prediction_type", "epsilon")
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


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    # channels last is the layout that convolutions are fastest in, on the CPU (by a quarter in the VAE) as on CUDA
    return module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _text_shape(pipeline: Any) -> tuple[int, int]:
    length = min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    return length, pipeline.text_encoder.config.hidden_size


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _sha256(file: Path) -> str:
    stored = file.resolve().name  # the hub's cache names large files by this very hash
    if len(stored) == 64 and "." not in stored:
        return stored
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
