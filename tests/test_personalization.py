"""LoRAs and learned words of users: what they change, and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from guidance import models
from guidance.models import hub
from tests.small_models import score_model
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
KOHYA = "down_blocks_1_attentions_0_transformer_blocks_0_attn1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("personalization") / "model")


@pytest.fixture(scope="module")
def plain(folder):
    """The model without additions; tests must not change it."""
    return score_model(folder)


def save_lora(path, name, width, rank=4):
    """A LoRA of one layer in diffusers' names or, where its name has underscores alone, in kohya's."""
    kinds = ("lora_down", "lora_up") if name.startswith("lora_") else ("lora_A", "lora_B")
    shapes = ((rank, width), (width, rank))
    tensors = {f"{name}.{kind}.weight": torch.ones(shape) for kind, shape in zip(kinds, shapes, strict=True)}
    if name.startswith("lora_"):
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, path)
    return path


def test_a_learned_word_becomes_a_token_of_the_prompt(folder, tmp_path):
    path = tmp_path / "word.safetensors"
    save_file({"<toy>": torch.full((32,), 3.0)}, path, metadata={"<toy>": "<embed>"})
    model = score_model(folder, LoRA_path=str(path))
    table = model.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[-1], torch.full((32,), 3.0))
    known, unknown = model.encode_text(["a <toy>", "a toy"])
    assert not torch.allclose(known, unknown)
    assert len(table) == 515


def test_a_textual_inversion_becomes_a_token_of_the_prompt(folder, plain, tmp_path):
    path = tmp_path / "inversion.safetensors"
    save_file({"<thing>": torch.full((2, 32), 3.0)}, path)
    model = score_model(folder, textual_inversion_path=str(path))
    changed, without = (each.encode_text(["a <thing>"]) for each in (model, plain))
    assert not torch.allclose(changed, without)


def test_a_lora_changes_the_prediction(folder, plain, tmp_path):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.unet.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    StableDiffusionPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipeline.unet))
    path = tmp_path / "pytorch_lora_weights.safetensors"

    rng = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 16, 16, generator=rng), torch.randn(2, 77, 32, generator=rng)
    timesteps = torch.tensor([30, 700])
    with torch.no_grad():
        expected = pipeline.unet(noisy, timesteps, encoder_hidden_states=text).sample
    found = score_model(folder, LoRA_path=str(path)).predict_noise(noisy, timesteps, text)
    assert torch.allclose(found, expected, atol=NETWORK[torch.float32])
    assert not torch.allclose(found, plain.predict_noise(noisy, timesteps, text), atol=1e-4)


@pytest.mark.parametrize("setting", ["LoRA_path", "textual_inversion_path"])
def test_what_is_added_to_a_model_must_exist_and_fit(folder, tmp_path, setting):
    with pytest.raises(
        UserError, match=rf"GuidanceParams\.{setting}: expected a .safetensors file, got .*not exist"
    ):
        score_model(folder, **{setting: str(tmp_path / "missing.safetensors")})
    path = tmp_path / "other.safetensors"
    save_file({"<toy>": torch.zeros(7)}, path, metadata={"<toy>": "<embed>"})
    with pytest.raises(UserError, match=rf"GuidanceParams\.{setting}: "):
        score_model(folder, **{setting: str(path)})


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("transformer.blocks.0.to_q", 8),
        (f"unet.{ATTENTION}.to_q", 999),
        (f"lora_unet_{KOHYA}_to_q", 999),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 768),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768),
        ("lora_unet_double_blocks_0_img_attn_qkv", 16),
    ],
)
def test_a_lora_of_another_family_is_refused(folder, tmp_path, name, width):
    path = save_lora(tmp_path / "lora.safetensors", name, width)
    with pytest.raises(UserError, match=r"LoRA_path: .*use one made for") as error:
        score_model(folder, LoRA_path=str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [f"unet.{ATTENTION}.to_q", f"lora_unet_{KOHYA}_to_q"])
def test_a_lora_of_this_family_is_added_once_and_recorded(folder, plain, tmp_path, name):
    path = save_lora(tmp_path / "lora.safetensors", name, 32)
    added = score_model(folder, LoRA_path=str(path))
    before, after = plain.unet.state_dict(), added.unet.state_dict()
    (changed,) = [key for key in before if not torch.equal(before[key], after[key])]
    torch.testing.assert_close(after[changed] - before[changed], torch.full((32, 32), 4.0))
    assert added.provenance["LoRA_path"]["sha256"] == {path.name: hub.sha256(path)}


@pytest.mark.parametrize("setting", ["LoRA_path", "textual_inversion_path"])
def test_what_is_added_to_a_model_is_a_safetensors_file(tmp_path, setting):
    with pytest.raises(UserError, match=rf"{setting}: expected a .safetensors file, got .*which is none"):
        models.addition(str(tmp_path), f"GuidanceParams.{setting}")
