"""Tiny Stable Diffusion models with random weights, saved as diffusers folders, and exact stand-ins for a prior."""

from pathlib import Path

import torch
from torch import Tensor

from guidance.prior.score_model import Evaluations

FAMILIES = {"sd1": "quick_gelu", "sd2": "gelu"}
LATENT, STRIDE, TEXT_WIDTH = 16, 4, 32


def alphas_cumprod() -> Tensor:
    """ᾱ_t of Stable Diffusion, float64, from its published betas."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(dim=0)


def save_pipeline(
    folder: Path,
    *,
    family: str = "sd1",
    prediction_type: str = "epsilon",
    autoencoder: str = "kl",
    seed: int = 0,
) -> Path:
    """Write a random pipeline of a family's layout: latents 4x16x16, images 64x64, text 77x32."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_autoencoder(autoencoder),
            text_encoder=_text_encoder(FAMILIES[family]),
            tokenizer=byte_tokenizer(),
            unet=_unet(heads=4 if family == "sd1" else (2, 4), linear_projection=family == "sd2"),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
                prediction_type=prediction_type,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def _unet(heads, linear_projection):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=heads,
        use_linear_projection=linear_projection,
        norm_num_groups=4,
    )


def _autoencoder(kind):
    from diffusers import AutoencoderKL, AutoencoderTiny

    if kind == "tiny":
        return AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        )
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
    )


def _text_encoder(activation):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=TEXT_WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act=activation,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def byte_tokenizer():
    """CLIP's tokenizer without merges: a token is a byte, or a byte that ends a word; then start and end of text."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
    vocab = {token: index for index, token in enumerate([*letters, *(letter + "</w>" for letter in letters)])}
    vocab |= {"<|startoftext|>": 512, "<|endoftext|>": 513}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def save_clip(folder, activation="quick_gelu", text_layers=2, image_layers=2):
    """A random CLIP with the layers of a published one and few channels, as its publisher's folder has it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    towers = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "hidden_act": activation}
    ends = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
    model = CLIPModel(
        CLIPConfig(
            text_config={**towers, **ends, "num_hidden_layers": text_layers},
            vision_config={**towers, "num_hidden_layers": image_layers, "patch_size": 14, "image_size": 224},
            projection_dim=24,
        )
    ).eval()
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 224}).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


class LatentPrior:
    """A prior without autoencoder whose score is what `noise_of` says: images are latents, text is ignored.

    Args:
        noise_of: (noisy_latents, timesteps, text) -> ε.
    """

    text_shape = (1, 1)

    def __init__(self, noise_of, channels: int = 3, size: int = 16) -> None:
        self.alphas_cumprod = alphas_cumprod().float()
        self.latent_channels, self.latent_size = channels, (size, size)
        self.noise_of = noise_of
        self.calls: list[int] = []
        self.evaluations = Evaluations()

    def encode_images(self, images, rng):
        return images

    def decode_latents(self, latents):
        return latents

    def predict_noise(self, noisy_latents, timesteps, text):
        self.calls.append(len(noisy_latents))
        return self.noise_of(noisy_latents, timesteps, text)

    predict_noise_with_gradient = predict_noise

    def estimators(self, parameters):
        return parameters

    def build_lora(self, *, rank, scale, with_camera, rng):
        return StandIn(lambda noisy_latents, timesteps, text, poses: noisy_latents)

    def coefficients(self, timesteps):
        """√ᾱ_t and √(1 - ᾱ_t), each B 1 1 1."""
        value = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return value.sqrt(), (1 - value).sqrt()


class StandIn(torch.nn.Module):
    """A LoRA in name: a factor, 1 at the start, times what `noise_of` says of (x_t, t, text, poses)."""

    def __init__(self, noise_of) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))
        self.noise_of = noise_of

    def forward(self, noisy_latents, timesteps, text=None, poses=None):
        return self.factor * self.noise_of(noisy_latents, timesteps, text, poses)


def one_point_denoiser(point: Tensor) -> LatentPrior:
    """The exact score of a data set of one point: ε = (x_t - √ᾱ_t point) / √(1 - ᾱ_t), whatever the text."""
    prior = LatentPrior(None, channels=len(point), size=point.shape[-1])

    def noise_of(noisy_latents, timesteps, text):
        signal, sigma = prior.coefficients(timesteps)
        return (noisy_latents - signal * point) / sigma

    prior.noise_of = noise_of
    return prior
