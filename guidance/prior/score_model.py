"""The frozen latent diffusion model: images to latents and back, text to embeddings, x_t to ε.

With `pipeline.py` and `shap_e.py` the only importer of diffusers and transformers, which load when a model does.
"""

import copy
import dataclasses
import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from arguments import GuidanceParams, HardwareParams
from guidance import models
from guidance.noise import noise_of_views
from guidance.prior import group_norm, learned_words
from guidance.prior.attention import set_wide_heads
from guidance.prior.channels_last import backend
from guidance.prior.compilation import keep_compiled
from guidance.prior.gradient_scale import GradientScale
from guidance.prior.memory import MemoryPlan, memory_plan, peak_bytes
from guidance.prior.pipeline import load_pipeline, stride
from utils.device import free_bytes
from utils.errors import UserError
from utils.replay import Replayed

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
COMPILED_MULTIPLE = 4
"""A compiled or recorded U-Net gets batches of multiples of this, so that there are few shapes."""
ROOM_OF_GRAPHS = 3
"""Times the tensors of an iteration: graphs keep them, the check of what they give makes them again, and pictures are
decoded beside."""
_COUNTED: dict[Any, int] = {}
"""Peaks of an iteration that were counted, by all that they depend on: counting takes half a second."""


@dataclasses.dataclass
class Evaluations:
    """How often the U-Net ran, counted per latent: a batch of 4 views with 2 branches is 8.

    `pretraining` is how many of `forward` a method spent on a training of its own, before the first iteration's loss.
    """

    forward: int = 0
    backward: int = 0
    pretraining: int = 0

    def state_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.forward, self.backward = state["forward"], state["backward"]
        self.pretraining = state["pretraining"]


class ScoreModel:
    """A Stable Diffusion 1.x or 2.x model, or one of its layout, whose weights never change.

    Latents and predictions are float32 whatever the networks' precision, and so is everything computed from them.

    Attributes:
        alphas_cumprod: ᾱ_t of its schedule, (T,) float32.
        latent_channels, latent_size: C and (h, w) of a latent.
        text_shape: L and D of an encoded text.
        image_size: (H, W) in pixels, the resolution that the model was made for.
        prediction_type: "epsilon" or "v_prediction", the U-Net's own; `predict_noise` always gives ε.
        evaluations: U-Net evaluations so far.
    """

    def __init__(
        self,
        pipeline: Any,
        source: models.ModelSource,
        *,
        device: torch.device,
        params: GuidanceParams = GuidanceParams(),  # noqa: B008, frozen
        hardware: HardwareParams = HardwareParams(memory="max"),  # noqa: B008, frozen
    ) -> None:
        from diffusers import DDIMScheduler

        self.unet, self.vae = _frozen(pipeline.unet, device), _frozen(pipeline.vae, device)
        self.text_encoder: nn.Module | None = _frozen(pipeline.text_encoder, device)
        self.text_shape = _text_shape(pipeline)
        self._tokenize = learned_words.tokenizer_of(pipeline)
        self._source, self._params, self._hardware = source, params, hardware
        self.device, self.dtype = device, pipeline.unet.dtype
        self.compiled = False
        self._replayed: dict[str, Replayed] = {}

        schedule = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.alphas_cumprod = schedule.alphas_cumprod.float().to(device)
        self.prediction_type = schedule.config.prediction_type
        self.latent_channels = self.unet.config.in_channels
        self.latent_size = _pair(self.unet.config.sample_size)
        pixels = stride(self.vae)
        self.image_size = (self.latent_size[0] * pixels, self.latent_size[1] * pixels)
        self._scale = self.vae.config.scaling_factor
        self._shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        self.evaluations = Evaluations()
        self._estimator_scale = self._gradient_scale()
        self._has_estimators = False

    @classmethod
    @torch.inference_mode(mode=False)  # gradients pass through what is loaded
    def from_pretrained(
        cls,
        params: GuidanceParams,
        device: torch.device | str,
        hardware: HardwareParams = HardwareParams(),  # noqa: B008, frozen
    ) -> "ScoreModel":
        """Load the model that `model_key` names, with its textual inversion and LoRA.

        Raises:
            UserError: it cannot be found, fetched or read, or is no model of these families.
        """
        device = torch.device(device)
        source = models.resolve(params)
        dtype = precision(params, hardware, device)
        pipeline = load_pipeline(source, params, dtype)
        return cls(pipeline, source, device=device, params=params, hardware=hardware)

    def anew(self, params: GuidanceParams, hardware: HardwareParams) -> "ScoreModel":
        """The same weights for another run, as `from_pretrained` gives them; estimators of the run before are gone.

        Args:
            params, hardware: of the other run; what is loaded by them must be the same.
        """
        if any(".estimator." in name for name, _ in self.unet.named_parameters()):
            from guidance.prior.lora import remove_adapters

            remove_adapters(self.unet)
        if self._replayed:  # what graphs hold of a card's memory is for the next run
            self._replayed.clear()
            gc.collect()
        # PyTorch remembers what it compiled, should the other run compile likewise
        self.unet._compiled_call_impl = self.vae.encoder._compiled_call_impl = None
        set_wide_heads(self.vae.encoder, fused=True)
        torch.backends.cudnn.benchmark = False
        other = copy.copy(self)
        other.__dict__.pop("plan", None)
        other.__dict__.pop("provenance", None)
        other._params, other._hardware = params, hardware
        other.evaluations = Evaluations()
        other._estimator_scale = other._gradient_scale()
        other._has_estimators = False
        other.compiled = False
        return other

    @cached_property
    def plan(self) -> MemoryPlan:
        """What is done in parts to save memory; chosen when first asked for, so that announced estimators count."""
        params = self._params
        return memory_plan(
            params,
            self._hardware,
            self.device,
            lambda plan: self.estimate_bytes(params.C_batch_size, params.branches, plan),
        )

    def compile(self) -> None:
        """Compile U-Net and image encoder in place; the first calls of each shape then take long.

        On CUDA cuDNN then also tries its algorithms on each shape, and the encoder's attention is two products of
        matrices, unless views are encoded in parts: both take memory, which is short there. What is compiled is kept
        for later runs.
        """
        if not self.compiled:
            keep_compiled()
            if self._searches():
                torch.backends.cudnn.benchmark = True
                set_wide_heads(self.vae.encoder, fused=False)
            # Inductor's own graphs would be recorded within those of `record`
            searched = self._hardware.compile == "autotune"
            self.unet.compile(backend=backend(searched=searched))
            self.vae.encoder.compile(backend=backend(searched=searched, trained=True))
            self.compiled = True

    def _searches(self) -> bool:
        """Whether there is memory to compile for speed alone."""
        return self.device.type == "cuda" and self.plan.views is None

    def warm_up(self, views: int, batches: Collection[int]) -> None:
        """Run what an iteration runs without gradient to the U-Net, so that nothing of it compiles later.

        Args:
            batches: how many latents the U-Net may get at once, as `Guidance.batches` says.
        """
        text = torch.zeros(1, *self.text_shape, device=self.device)
        for count in self._sizes(batches):
            latents = torch.zeros(count, self.latent_channels, *self.latent_size, device=self.device)
            with torch.no_grad():
                self._run_unet(
                    latents, torch.ones(count, device=self.device).long(), text.expand(count, -1, -1)
                )
        images = torch.zeros(views, 3, *self.image_size, device=self.device, requires_grad=True)
        self._posterior(images).sum().backward()

    def record(self, views: int, batches: Collection[int], *, encodes: bool = True) -> bool:
        """Let a card launch the U-Net, and in float32 the encoder, as a CUDA graph, for the batches of `warm_up`.

        Not where memory is short: a graph keeps the memory that it computes in. Not where something within the U-Net is
        trained: it is switched on and off there. Batches of other sizes are run as before.

        Args:
            batches: as for `warm_up`.
            encodes: images are encoded; False where latents themselves are optimised.

        Returns:
            Whether there is room for graphs.

        Raises:
            UserError: recording failed, see `Replayed.record`.
        """
        if self.plan.views is not None or self.plan.latents is not None:
            return False
        if free_bytes(self.device) < self._room_of_graphs(views, batches):
            return False
        if self._has_estimators:
            return True
        rng = torch.Generator(self.device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, device=self.device)

        def images() -> tuple[Tensor]:
            return (random(views, 3, *self.image_size).sigmoid().requires_grad_(),)

        unet = Replayed("the U-Net", self._evaluate)
        with torch.no_grad():
            for count in self._sizes(batches):

                def latents(count: int = count) -> tuple[Tensor, ...]:
                    noisy, text = (
                        random(count, *shape).to(self.dtype)
                        for shape in ((self.latent_channels, *self.latent_size), self.text_shape)
                    )
                    last = len(self.alphas_cumprod)
                    timesteps = torch.randint(last, (count,), generator=rng, device=self.device)
                    return noisy, timesteps, text

                if unet.record(latents):
                    self._replayed["unet"] = unet
        encoder = Replayed("the image encoder", self._encode)
        # in float16, on an H200, an iteration's gradients were not finite with its graph, and were without, although
        # it had agreed with the encoder here: what else runs between its two passes is not in this check
        if encodes and self.dtype == torch.float32 and encoder.record(images):
            self._replayed["encoder"] = encoder
        return True

    def _room_of_graphs(self, views: int, batches: Collection[int]) -> int:
        """Free bytes from which graphs are recorded."""
        branches = -(-max(batches) // views)
        return ROOM_OF_GRAPHS * (self.estimate_bytes(views, branches) - self._weight_bytes())

    def _weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for each in (self.unet, self.vae) for p in each.parameters())

    def _sizes(self, batches: Collection[int]) -> list[int]:
        """In what sizes the U-Net runs such batches: in parts as planned, and in multiples."""
        limit = self.plan.latents or max(batches)
        parts = {min(left, limit) for total in batches for left in range(total, 0, -limit)}
        return sorted({part + -part % COMPILED_MULTIPLE for part in parts})

    def encode_images(
        self, images: Float[Tensor, "B 3 H W"], rng: torch.Generator
    ) -> Float[Tensor, "B C h w"]:
        """x_0 of images in [0, 1], with gradient to the images; other sizes are resized to the model's own.

        AutoencoderKL draws from its posterior with `rng`; AutoencoderTiny has none.
        """
        if images.shape[-2:] != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bilinear", antialias=True)
        latents = self._posterior(images)
        if latents.shape[1] == 2 * self.latent_channels:  # a posterior: mean and logarithm of the variance
            mean, log_variance = latents.chunk(2, dim=1)
            deviation = (log_variance.clamp(-30.0, 20.0) / 2).exp()  # the bounds are diffusers'
            latents = mean + deviation * noise_of_views(mean, rng)
        return (latents - self._shift) * self._scale

    def _posterior(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B _ h w"]:
        """What the encoder says, in float32; by parts that are computed again in the backward pass, if planned."""
        limit = self.plan.views
        if limit is None or limit >= len(images) or not images.requires_grad:
            return self._replayed.get("encoder", self._encode)(images)
        parts = [checkpoint(self._encode, part, use_reentrant=False) for part in images.split(limit)]
        return torch.cat(parts)

    def _encode(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B _ h w"]:
        scale = self._gradient_scale()
        images = scale.shrink(2 * images - 1).to(self.dtype)
        if self.compiled:  # in one layout, whatever made them, and in that of the network's own memory
            images = images.contiguous(memory_format=torch.channels_last)
        encoded = self.vae.encode(images)
        posterior = getattr(encoded, "latent_dist", None)
        return scale.grow((encoded.latents if posterior is None else posterior.parameters).float())

    def _gradient_scale(self) -> GradientScale:
        return GradientScale(enabled=self.dtype == torch.float16)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images in [0, 1], float32, for looking at: without gradient."""
        latents = (latents / self._scale + self._shift).to(self.dtype)
        parts = latents.split(self.plan.views or len(latents))
        pixels = torch.cat([self.vae.decode(part, return_dict=False)[0] for part in parts])
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Float[Tensor, "N L D"]:
        """Embeddings of prompts; the empty one is the unconditional text.

        Raises:
            UserError: a prompt has more tokens than the model reads, or one that its text encoder does not have.
        """
        if self.text_encoder is None:
            raise RuntimeError("encode_text after drop_text_encoder")
        tokens = self._tokenize(texts)
        known = self.text_encoder.get_input_embeddings().num_embeddings
        if (largest := int(tokens.max())) >= known:
            raise UserError(
                f"{self._source.location}: expected a tokenizer of the text encoder's {known} words, got number "
                f"{largest} for one of {texts}; copy the model's folder again"
            )
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
        camera: Float[Tensor, "M E"] | None = None,
    ) -> Float[Tensor, "M C h w"]:
        """ε_φ(x_t, t, y), float32, with gradient to the text and to a LoRA; its backward is counted when it runs.

        Args:
            camera: added to the U-Net's time embedding, with gradient to it.
        """
        output = self._predict_noise(noisy_latents, timesteps, text, *_given(camera))
        if output.requires_grad:
            output.register_hook(self._count_backward)
        return self._estimator_scale.grow(output)

    def _count_backward(self, gradient: Tensor) -> None:
        self.evaluations.backward += len(gradient)

    def estimators(self, parameters: list[nn.Parameter]) -> list[nn.Parameter]:
        """Announce parameters whose gradient passes through the U-Net, before they are first used.

        A backward pass may reach them through one call of `predict_noise_with_gradient`: in float16 its gradient is
        scaled on entering the U-Net, and scaled back where it arrives at them.
        """
        self._has_estimators = True
        for parameter in parameters:
            parameter.register_hook(self._estimator_scale.restore)
        return parameters

    def build_lora(self, *, rank: int, scale: float, with_camera: bool, rng: torch.Generator) -> nn.Module:
        """A trainable twin of the U-Net (see `guidance.prior.lora.LoRA`); at most one can live on a score model."""
        from guidance.prior.lora import LoRA

        return LoRA(self, rank=rank, scale=scale, with_camera=with_camera, rng=rng)

    def _predict_noise(
        self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, *camera: Tensor
    ) -> Tensor:
        """A v-prediction is converted: ε = √ᾱ_t v + √(1 - ᾱ_t) x_t."""
        self.evaluations.forward += len(noisy_latents)
        limit = self.plan.latents or len(noisy_latents)
        parts = zip(*(each.split(limit) for each in (noisy_latents, timesteps, text, *camera)), strict=True)
        output = torch.cat([self._run_unet(*part) for part in parts])
        if self.prediction_type == "epsilon":
            return output
        alphas_cumprod = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas_cumprod.sqrt() * output + (1 - alphas_cumprod).sqrt() * noisy_latents

    def _run_unet(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, *camera: Tensor) -> Tensor:
        count = len(noisy_latents)
        inputs = (noisy_latents.to(self.dtype), timesteps, *(each.to(self.dtype) for each in (text, *camera)))
        # in one layout, whatever made them: another one would be compiled anew
        if self.compiled or "unet" in self._replayed:
            inputs = tuple(_padded(each, -count % COMPILED_MULTIPLE).contiguous() for each in inputs)
        return self._replayed.get("unet", self._evaluate)(*inputs)[:count]

    def _evaluate(self, noisy_latents: Tensor, timesteps: Tensor, text: Tensor, *camera: Tensor) -> Tensor:
        """The U-Net's output in float32."""
        with added_to(self.unet.time_embedding, *camera) if camera else nullcontext():
            output = self.unet(noisy_latents, timesteps, encoder_hidden_states=text, return_dict=False)
        return output[0].float()

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def estimate_bytes(self, views: int, branches: int, plan: MemoryPlan | None = None) -> int:
        """Memory of the frozen model and of its part in an iteration, in bytes, counted on tensors without content.

        With `estimators`, the pass that trains them counts too, with a learned text in the place of a LoRA. Once graphs
        are recorded, what each computes in is its own.

        Args:
            branches: texts of a view.
            plan: what would be done in parts; None: what is.
        """
        plan = plan or self.plan
        architecture = tuple((type(each), str(each.config)) for each in (self.unet, self.vae))
        scores = self.compiled and self._searches()
        kind = (self.dtype, self._has_estimators, bool(self._replayed), scores)
        key = (architecture, self.text_shape, kind, views, branches, plan)
        if key not in _COUNTED:
            _COUNTED[key] = self._count_peak(views, branches, plan)
        return self._weight_bytes() + _COUNTED[key]

    def _count_peak(self, views: int, branches: int, plan: MemoryPlan) -> int:
        """Bytes of an iteration's tensors, by running it without content."""
        bare = self._without_content()
        bare.plan = plan
        count = min(branches * views, plan.latents or branches * views)
        latents = torch.zeros(count, self.latent_channels, *self.latent_size, device="meta")
        timesteps = torch.ones(count, device="meta").long()
        text = torch.zeros(count, *self.text_shape, device="meta")
        images = torch.zeros(views, 3, *self.image_size, device="meta", requires_grad=True)

        @torch.no_grad()
        def predict() -> None:
            bare._run_unet(latents, timesteps, text)

        def evaluate() -> None:
            loss = bare._posterior(images).sum()
            predict()
            if self._has_estimators:
                learned = text.new_zeros(views, *self.text_shape, requires_grad=True)
                again = (each[:1].expand(views, *each.shape[1:]) for each in (latents, timesteps))
                loss = loss + bare._run_unet(*again, learned).sum()
            loss.backward()

        if self._replayed:
            return peak_bytes(lambda: bare._posterior(images).sum().backward()) + peak_bytes(predict)
        return peak_bytes(evaluate)

    def _without_content(self) -> "ScoreModel":
        bare = copy.copy(self)
        bare.compiled, bare._replayed = False, {}
        with torch.device("meta"):
            parts = [type(each).from_config(each.config) for each in (self.unet, self.vae)]
        bare.unet, bare.vae = (each.to(self.dtype).eval().requires_grad_(False) for each in parts)
        set_wide_heads(bare.vae, fused=not (self.compiled and self._searches()))
        return bare

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Which weights these are, the replaced and the added ones too: see `guidance.models.prior_provenance`."""
        return models.prior_provenance(self._source, self._params)


def precision(params: GuidanceParams, hardware: HardwareParams, device: torch.device) -> torch.dtype:
    """In what the networks compute: as set, else float16 where the device is fast in it and `fp16` allows it."""
    if hardware.precision != "auto":
        return DTYPES[hardware.precision]
    return torch.float16 if params.fp16 and device.type == "cuda" else torch.float32


def _frozen(module: nn.Module, device: torch.device) -> nn.Module:
    group_norm.adopt(module)
    # channels last is the layout that convolutions are fastest in, on the CPU (by a quarter in the VAE) as on CUDA
    return module.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _text_shape(pipeline: Any) -> tuple[int, int]:
    length = min(pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings)
    return length, pipeline.text_encoder.config.hidden_size


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _given(each: Tensor | None) -> tuple[Tensor, ...]:
    return () if each is None else (each,)


@contextmanager
def added_to(module: nn.Module, tensor: Tensor) -> Iterator[None]:
    """Within the block, a tensor is added to what a module gives."""
    handle = module.register_forward_hook(lambda _module, _inputs, output: output + tensor.to(output.dtype))
    try:
        yield
    finally:
        handle.remove()


def _padded(batch: Tensor, rows: int) -> Tensor:
    return batch if rows == 0 else torch.cat([batch, batch[-1:].expand(rows, *batch.shape[1:])])
