"""The toybox prior's architectures: tokenizer, CLIP, autoencoder, U-Net, noise schedule, and their folder.

Everything is an ordinary `transformers` or `diffusers` class, so that `StableDiffusionPipeline.from_pretrained` and
`CLIPModel.from_pretrained` read the folder without code of ours.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig

from toybox import world
from toybox.starts import convolve, keep_words_apart, pass_colour_through, start_as_identity
from utils import own_files
from utils.errors import UserError
from utils.files import TOGETHER, all_or_none, atomic
from utils.inputs import json_object, regular_file

IMAGE_SIZE, LATENT_SIZE, LATENT_CHANNELS = 128, 32, 4
TEXT_LENGTH, WIDTH = 24, 128
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_SHARD = "12MB"  # of a weight file, so that any host takes it
_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
STAGES = ("vae", "clip", "unet")
CHECKPOINTS = "checkpoints"
TITLE = "# The toybox prior"
REPORT = ("README.md", "report.json", "toybox_reconstructions.png", "toybox_samples.png")
"""The files that the report stage writes beside the weights."""
_PARTS = {
    "clip": ("clip",),
    "unet": ("pipeline", "vae", "text_encoder", "tokenizer", "unet", "scheduler", "model_index.json"),
}
"""What is written by those who train the CLIP, and the U-Net or the autoencoder that goes with it."""

PIXEL_MEAN, PIXEL_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The CLIP's pixel normalisation, of images in [0, 1]."""


def build_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's form in which each word of the captions is one token.

    Any other text falls apart into bytes. Lower-case; 24 tokens with begin and end.
    """
    words = " ".join((*world.OBJECTS, *world.COLOURS, *world.VIEWS, "a an view object ,"))
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    # Numbered beforehand, letters and ends of words break ties between merges; else the trainer's hash table would, by
    # chance, and two processes would number words differently.
    letters = sorted(set(words) - {" "})
    ends = [letter + "</w>" for letter in reversed(letters)]
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=letters + ends,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator([words] * 8, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [symbol + "</w>" for symbol in symbols]
    symbols += [first + second for first, second in merges]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys((*symbols, BEGIN, END)))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def tokenize(tokenizer: CLIPTokenizer, texts: Iterable[str]) -> Tensor:
    """Token ids (B, 24) int64, padded and cut as the pipeline does it."""
    options = {"padding": "max_length", "max_length": TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(texts), **options).input_ids


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP before training: 6 layers over 8-pixel patches, 3 locked layers of text, 128 shared dimensions."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="gelu",
        projection_dim=WIDTH,
        **special,
    )
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=8,
        hidden_act="gelu",
        projection_dim=WIDTH,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    config.text_config._attn_implementation = config.vision_config._attn_implementation = "sdpa"
    clip = CLIPModel(config)
    keep_words_apart(clip)
    convolve(clip)
    return clip


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The CLIP's text tower as the pipeline's class, sharing no memory with it."""
    encoder = CLIPTextModel(clip.config.text_config)
    state = {key.removeprefix("text_model."): value for key, value in clip.text_model.state_dict().items()}
    encoder.load_state_dict(state)
    return encoder.eval()


def build_autoencoder() -> AutoencoderTiny:
    """A deterministic autoencoder, 128 px to 4x32x32, that starts by passing block colours through."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 3),
        num_decoder_blocks=(3, 2, 0),
        latent_channels=LATENT_CHANNELS,
    )
    pass_colour_through(vae)
    return vae


def build_unet() -> UNet2DConditionModel:
    """A noise predictor before training, for latents (B, 4, 32, 32) and text states (B, L, 128).

    It reads the text twice: by cross-attention, and pooled into the time embedding, which scales and shifts
    every block.
    """
    unet = UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,  # the number of heads, by diffusers' old naming
        cross_attention_dim=WIDTH,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
    )
    start_as_identity(unet)
    return unet


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear schedule of 1000 steps."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the files of a folder for `CLIPModel` and `CLIPProcessor`; others in it stay."""
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
        "do_convert_rgb": True,
    }
    with saving(folder) as partial:
        clip.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "preprocessor_config.json").write_text(
            json.dumps(pixels, indent=2) + "\n", encoding="utf-8"
        )


def save_pipeline(
    folder: Path,
    vae: AutoencoderTiny,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> None:
    """Write the files of a `StableDiffusionPipeline` into `folder`; others in it stay."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, unet):
        part.register_to_config(
            _name_or_path=""
        )  # else a part that was loaded tells from where on this machine
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f".pipeline.{secrets.token_hex(4)}.partial"
    try:
        pipeline.save_pretrained(whole, max_shard_size=_SHARD)
        for part in sorted(whole.iterdir()):
            if part.is_dir():
                with saving(folder / part.name) as target:
                    shutil.copytree(part, target, dirs_exist_ok=True)
            else:
                with atomic(folder / part.name) as target:
                    part.rename(target)
    finally:
        shutil.rmtree(whole, ignore_errors=True)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; its files take the place of those that this program has saved in `folder`, and all
    others there stay.

    Raises:
        UserError: as `atomic`.
    """
    with (all_or_none if folder.is_dir() else atomic)(folder) as partial:
        yield partial
        saved = {path.name for path in partial.iterdir()}
    # Weights of another number of shards would be read in the place of these.
    for path in folder.iterdir():
        if _WEIGHTS.fullmatch(path.name) and path.name not in saved:
            path.unlink(missing_ok=True)


def refuse_others(folder: Path) -> None:
    """Before a folder is trained into, that nothing else lies there under a name that is written.

    Raises:
        UserError: something does.
    """
    parts = {
        "vae": (
            "config.json",
            {"encoder_block_out_channels": list(build_autoencoder().config.encoder_block_out_channels)},
        ),
        "unet": ("config.json", {"block_out_channels": list(build_unet().config.block_out_channels)}),
        "text_encoder": ("config.json", {"hidden_size": WIDTH}),
        "clip": ("config.json", {"model_type": "clip", "projection_dim": WIDTH}),
        "tokenizer": ("tokenizer_config.json", {"model_max_length": TEXT_LENGTH}),
        "scheduler": ("scheduler_config.json", _scheduler_settings(folder)),
        "model_index.json": ("", {"vae": ["diffusers", "AutoencoderTiny"]}),
    }
    for name, (file, settings) in parts.items():
        path = folder / name
        if os.path.lexists(path) and (path.is_symlink() or not _has(path / file, settings)):
            raise _found_another(path)
    for stage in STAGES:
        path = folder / CHECKPOINTS / f"{stage}.json"
        if os.path.lexists(path) and "peak_rate" not in json_object(path):
            raise _found_another(path)
    if not _is_earlier_report(folder):
        own_files.refuse_others(folder, REPORT)


@contextlib.contextmanager
def training(folder: Path, stage: str) -> Iterator[None]:
    """Within the block this process alone trains a stage in a folder: the CLIP, or the U-Net and the autoencoder. What
    killed processes left half written is removed.

    Raises:
        InUse: another process does; the message says which.
        UserError: the folder cannot be written.
    """
    kind = "clip" if stage == "clip" else "unet"
    names = [name for part in _PARTS[kind] for name in (part, f"{part}/{TOGETHER}")]
    stages = [each for each in STAGES if (each == "clip") == (kind == "clip")]
    names += [f"{CHECKPOINTS}/{each}{suffix}" for each in stages for suffix in (".pt", ".json")]
    with own_files.alone(folder, names, lock=f".{kind}.lock", wait=0.0):
        yield


@contextlib.contextmanager
def reporting(folder: Path) -> Iterator[None]:
    """Within the block the files of `REPORT` are made in a trained folder.

    Raises:
        UserError: others lie there under their names, or the folder cannot be written.
    """
    if _is_earlier_report(folder):
        own_files.adopt(folder, [name for name in REPORT if (folder / name).is_file()])
    with own_files.making(folder, REPORT):
        yield


def _is_earlier_report(folder: Path) -> bool:
    """Whether an earlier version, which kept no record of its files, wrote the report there; or it is a copy of the
    shipped one."""
    try:
        titled = regular_file(folder / "README.md").read_text(encoding="utf-8").startswith(f"{TITLE}\n")
    except (OSError, ValueError):
        return False
    unrecorded = not (folder / own_files.RECORD).exists()
    return titled and unrecorded and "stages" in json_object(folder / "report.json")


def _found_another(path: Path) -> UserError:
    return UserError(
        f"{path}: expected nothing, or what this command has trained, found another; choose another --output"
    )


def _has(path: Path, settings: dict[str, Any]) -> bool:
    found = json_object(path)
    return all(found.get(key) == value for key, value in settings.items())


def _scheduler_settings(folder: Path) -> dict[str, Any]:
    """What a folder's scheduler has to say to be ours; another release of diffusers may have written fewer settings."""
    theirs = json_object(folder / "scheduler" / "scheduler_config.json").keys() - {"_diffusers_version"}
    ours = json.loads(build_scheduler().to_json_string())
    return {key: value for key, value in ours.items() if key in theirs | {"_class_name"}}


def count_macs(forward: Callable[[], object]) -> float:
    """Giga multiply-accumulates of one call without gradients, the same on every device.

    Attention is computed step by step meanwhile: its fused kernels are counted on a card and not on a CPU.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        forward()
    return counter.get_total_flops() / 2e9
