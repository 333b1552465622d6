"""Damaged models and additions: read, or refused in one line."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from arguments import GuidanceParams
from guidance import ScoreModel, models
from guidance.models import single_file
from guidance.prior import personalization
from tests.faults.fuzz import fuzz, long_form
from tests.small_models import narrow_configs, save_family
from tests.tiny_models import save_pipeline

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
WORDS = (
    "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F4", "C64", "I64", "U8", "BOOL", "shape", "data_offsets", "<embed>",
    "emb_params", "clip_l", "lora_A", "lora_down", "alpha", "lora_magnitude_vector", "hada_w1_a", "a",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("fuzz") / "model")


def additions():
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    kohya = "lora_unet_" + LAYER.replace(".", "_")
    return {
        "inversion_web.safetensors": save({"emb_params": torch.ones(2, 32)}),
        "inversion_named.safetensors": save({"<toy>": torch.ones(32)}),
        "lora_words.safetensors": save({"<toy>": torch.ones(32)}, {"<toy>": "<embed>"}),
        "lora_kohya.safetensors": save(
            {
                f"{kohya}.lora_down.weight": down,
                f"{kohya}.lora_up.weight": up,
                f"{kohya}.alpha": torch.tensor(2.0),
            }
        ),
        "lora_stated.safetensors": save(
            {f"unet.{LAYER}.lora_A.weight": down, f"unet.{LAYER}.lora_B.weight": up},
            {
                "lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.r": 2, "unet.alpha_pattern": {"to_q": 3}}'
            },
        ),
        "lora_magnitude.safetensors": save(
            {
                f"base_model.model.{LAYER}.lora_A.weight": down,
                f"base_model.model.{LAYER}.lora_B.weight": up,
                f"base_model.model.{LAYER}.lora_magnitude_vector": torch.ones(32),
            }
        ),
    }


def adds_to(folder):
    """A reader that adds a file to a fresh copy of what it changes."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    weights = {name: each.clone() for name, each in pipeline.unet.state_dict().items()}

    def add(path):
        from transformers import CLIPTokenizer

        pipeline.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        pipeline.unet.load_state_dict(weights)
        setting = "textual_inversion_path" if path.name.startswith("inversion") else "LoRA_path"
        personalization.apply(pipeline, GuidanceParams(text="a <toy>", **{setting: str(path)}))

    return add


def damages_additions(model, cases, seed, folder):
    report = fuzz(adds_to(model), additions(), cases, seed, folder, words=WORDS)
    assert report.failures == [], str(report)
    return report


def test_damaged_additions_are_refused_in_one_line(model, tmp_path):
    damages_additions(model, 75, 0, tmp_path)


@pytest.mark.slow
def test_damaged_additions_are_refused_in_one_line_at_length(model, tmp_path):
    damages_additions(model, *long_form(), tmp_path)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz_single")
    return save_family(root, narrow_configs(root / "configs"), "sd2-base")[1]


def damages_single_files(single, cases, seed, folder):
    """Headers alone, as the check before a run reads them: the weights are cut off and left as a hole."""
    content = single.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    shutil.copytree(single.parent / "tokenizer", folder / "tokenizer")

    def check(path):
        with path.open("ab") as file:
            file.truncate(path.stat().st_size + len(content) - header)
        source = models.resolve(GuidanceParams(model_key=str(path)))
        single_file.stated_prediction(Path(source.location))

    report = fuzz(check, {"model.safetensors": content[:header]}, cases, seed, folder, words=WORDS)
    assert report.failures == [], str(report)


def test_damaged_headers_of_single_files_are_refused_in_one_line(single, tmp_path):
    damages_single_files(single, 50, 0, tmp_path)


@pytest.mark.slow
def test_damaged_headers_of_single_files_are_refused_in_one_line_at_length(single, tmp_path):
    damages_single_files(single, *long_form(), tmp_path)


PARTS = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory):
    """The model with a U-Net of several files."""
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(model, tmp_path_factory.mktemp("fuzz_folder") / "model")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="2KB")
    return folder


def damages_folders(sharded, cases, seed, folder):
    """One file of a model's folder after the other; its name says where it lies."""
    seeds = {part.replace("/", "@"): (sharded / part).read_bytes() for part in PARTS}

    def load(path):
        place = sharded / path.name.replace("@", "/")
        place.write_bytes(path.read_bytes())
        try:
            params = GuidanceParams(model_key=str(sharded))
            if not models.check_available(params):
                ScoreModel.from_pretrained(params, "cpu").encode_text(["a red car"])
        finally:
            place.write_bytes(seeds[path.name])

    report = fuzz(
        load, seeds, cases, seed, folder, words=(*WORDS, "layers_per_block", "num_hidden_layers"), seconds=20
    )
    assert report.failures == [], str(report)


def test_damaged_files_of_folders_are_refused_in_one_line(sharded, tmp_path):
    damages_folders(sharded, 8, 0, tmp_path)


@pytest.mark.slow
def test_damaged_files_of_folders_are_refused_in_one_line_at_length(sharded, tmp_path):
    damages_folders(sharded, *long_form(2_000), tmp_path)
