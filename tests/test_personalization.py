"""LoRAs and learned words of users: what they change, and what is refused."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from arguments import GuidanceParams
from guidance import models
from guidance.models import hub
from guidance.prior import personalization
from guidance.prior.learned_words import tokenizer_of
from tests.small_models import score_model
from tests.tiny_models import save_pipeline
from utils.errors import UserError

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
KOHYA = "down_blocks_1_attentions_0_transformer_blocks_0_attn1"
TEXT = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("personalization") / "model")


@pytest.fixture(scope="module")
def plain(folder):
    """The model without additions; tests must not change it."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)


@pytest.fixture
def add(plain):
    """Makes a pipeline with the additions of some settings."""

    def add(**settings):
        parts = {name: copy.deepcopy(getattr(plain, name)) for name in ("unet", "text_encoder", "tokenizer")}
        pipeline = SimpleNamespace(**parts)
        personalization.apply(
            pipeline, GuidanceParams(**{name: str(each) for name, each in settings.items()})
        )
        return pipeline

    return add


def refusal(add, **settings):
    """The one line with which settings are refused."""
    with pytest.raises(UserError) as error:
        add(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def encoded(pipeline, text):
    return pipeline.text_encoder(tokenizer_of(pipeline)([text])).last_hidden_state


# Learned words


def test_a_learned_word_of_a_lora_file_becomes_a_token_of_the_prompt(folder, tmp_path):
    path = tmp_path / "word.safetensors"
    save_file({"<toy>": torch.full((32,), 3.0)}, path, metadata={"<toy>": "<embed>"})
    model = score_model(folder, LoRA_path=str(path))
    table = model.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[-1], torch.full((32,), 3.0))
    known, unknown = model.encode_text(["a <toy>", "a toy"])
    assert not torch.allclose(known, unknown)
    assert len(table) == 515


@pytest.mark.parametrize("shape", [(32,), (3, 32)])
@pytest.mark.parametrize("name", ["emb_params", "string_to_param", "string_to_param.*", "*", "clip_l"])
def test_a_word_in_the_web_uis_format_is_called_as_its_file(add, tmp_path, name, shape):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({name: vectors, "string_to_token.*": torch.tensor(265)}, tmp_path / "badcat.safetensors")
    save_file({"<thing>": vectors}, tmp_path / "other.safetensors")
    found = add(textual_inversion_path=tmp_path / "badcat.safetensors", negative="a badcat here")
    expected = add(textual_inversion_path=tmp_path / "other.safetensors", text="a <thing> here")
    torch.testing.assert_close(encoded(found, "a badcat here"), encoded(expected, "a <thing> here"))
    tokens = tokenizer_of(found)(["a badcat here"])[0]
    rows = found.text_encoder.get_input_embeddings()(tokens)
    assert torch.equal(rows[2 : 2 + vectors[..., 0].numel()], vectors.view(-1, 32))


def test_a_word_is_a_word_whatever_its_case_and_no_part_of_one(add, tmp_path):
    save_file({"emb_params": torch.full((1, 32), 3.0)}, tmp_path / "BadCat.safetensors")
    pipeline = add(textual_inversion_path=tmp_path / "BadCat.safetensors", text="a badcat")
    (word,) = {pipeline.tokenizer.convert_tokens_to_ids("BadCat")}
    tokens = tokenizer_of(pipeline)(["badcat", "a BADCAT, front view", "badcats"])
    assert [word in row for row in tokens] == [True, True, False]


def test_a_word_of_many_vectors_takes_as_many_tokens(add, tmp_path):
    save_file({"<thing>": torch.ones(75, 32)}, tmp_path / "a.safetensors")
    tokenize = tokenizer_of(add(textual_inversion_path=tmp_path / "a.safetensors", text="<thing>"))
    assert len(set(tokenize(["<thing>"])[0].tolist())) == 77
    with pytest.raises(UserError, match=r"expected at most 75 tokens, got 76; shorten it by 1"):
        tokenize(["a <thing>"])


def test_vectors_that_a_file_keeps_under_names_of_their_own_are_used(add, tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    save_file({name: torch.randn(32) for name in ("<toy>", "<toy>_1", "<toy>_2")}, path)
    pipeline = add(textual_inversion_path=path, text="a <toy>")
    assert "changes nothing" not in caplog.text
    (tokens,) = tokenizer_of(pipeline)(["a <toy>"])
    named = pipeline.tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1", "<toy>_2"])
    assert set(named) <= set(tokens.tolist())


@pytest.mark.parametrize("setting", ["text", "negative", "inverse_text", None])
@pytest.mark.parametrize("form", ["textual_inversion_path", "LoRA_path"])
def test_a_word_that_no_prompt_has_is_named_once(add, tmp_path, caplog, form, setting):
    path = tmp_path / "badcat.safetensors"
    save_file({"badcat": torch.ones(32)}, path, metadata={"badcat": "<embed>"})
    prompts = {} if setting is None else {setting: "one badcat."}
    with caplog.at_level(logging.WARNING):
        add(**{form: path}, **({"text": "a cat"} | prompts))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (1 if setting is None else 0)
    assert all(f"{form}: {path} teaches 'badcat', which no prompt has" in line for line in said)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"clip_g": torch.ones(1, 1280), "clip_l": torch.ones(1, 32)}, "one for SDXL"),
        ({"clip_g": torch.ones(1, 1280)}, "one for SDXL"),
        ({"t5xxl": torch.ones(1, 32)}, "several text encoders"),
        (
            {f"lora_unet_{KOHYA}_to_q.lora_down.weight": torch.ones(4, 32)},
            "a LoRA (that is GuidanceParams.LoRA_path)",
        ),
        (
            {"emb_params": torch.ones(2, 768)},
            "expected words of width 32 for this model, got 'it' of 768 (Stable Dif",
        ),
        ({"emb_params": torch.ones(1, 1024)}, "Stable Diffusion 2.x"),
        ({"<it>": torch.ones(8)}, "got '<it>' of 8 (another model)"),
        ({"<it>": torch.tensor(1.0)}, "'<it>' of shape ()"),
        ({"<it>": torch.ones(1, 1, 32)}, "'<it>' of shape (1, 1, 32)"),
        ({"<it>": torch.ones(0, 32)}, "'<it>' of shape (0, 32)"),
        ({"<it>": torch.ones(1, 32, dtype=torch.int64)}, "torch.int64"),
        ({"<it>": torch.full((1, 32), float("nan"))}, "expected finite numbers, got '<it>'"),
        ({"a": torch.ones(32)}, "expected a new word, got 'a'"),
        ({"": torch.ones(32)}, "expected a new word, got ''"),
        ({}, "got nothing"),
    ],
)
def test_a_textual_inversion_of_something_else_is_told_apart(add, tmp_path, tensors, words):
    save_file(tensors, tmp_path / "it.safetensors")
    said = refusal(add, textual_inversion_path=tmp_path / "it.safetensors")
    assert words in said
    assert said.startswith("GuidanceParams.textual_inversion_path: ") and "; " in said


def test_the_folder_of_a_training_script_stands_for_what_it_saved(add, tmp_path):
    save_file({"<toy>": torch.full((32,), 3.0)}, tmp_path / "learned_embeds.safetensors")
    assert len(add(textual_inversion_path=tmp_path).tokenizer) == 515


# LoRAs


def parts(rank=4, out=32, into=32, seed=0):
    """A and B."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rank, into, generator=rng), torch.randn(out, rank, generator=rng)


def changed(pipeline, plain):
    """By how much the weights of a pipeline differ, of those that do."""
    found = {}
    for component in ("unet", "text_encoder"):
        before, after = (getattr(each, component).state_dict() for each in (plain, pipeline))
        found |= {n: after[n] - before[n] for n in before if not torch.equal(before[n], after[n])}
    return found


FORMS = {
    "kohya": (f"lora_unet_{KOHYA}_to_q", "lora_down.weight", "lora_up.weight"),
    "diffusers": (f"unet.{ATTENTION}.to_q", "lora_A.weight", "lora_B.weight"),
    "diffusers of 2023": (f"unet.{ATTENTION}.to_q", "lora.down.weight", "lora.up.weight"),
    "its first": (f"{ATTENTION}.processor.to_q_lora", "down.weight", "up.weight"),
    "peft": (f"base_model.model.{ATTENTION}.to_q", "lora_A.weight", "lora_B.weight"),
    "peft in training": (
        f"base_model.model.{ATTENTION}.to_q",
        "lora_A.default.weight",
        "lora_B.default.weight",
    ),
    "bare": (f"{ATTENTION}.to_q", "lora_A.weight", "lora_B.weight"),
    "bare kohya": (f"{KOHYA}_to_q", "lora_down.weight", "lora_up.weight"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_lora_adds_the_same_in_every_form_that_it_is_saved_in(add, plain, tmp_path, form):
    layer, down, up = FORMS[form]
    tensors = dict(zip((f"{layer}.{down}", f"{layer}.{up}"), parts(), strict=True))
    save_file(tensors, tmp_path / "a.safetensors")
    ((name, found),) = changed(add(LoRA_path=tmp_path / "a.safetensors"), plain).items()
    assert name == f"{ATTENTION}.to_q.weight"
    torch.testing.assert_close(found, parts()[1] @ parts()[0], atol=1e-5, rtol=1e-5)
    save_file(tensors | {f"{layer}.alpha": torch.tensor(2.0)}, tmp_path / "b.safetensors")
    half = changed(add(LoRA_path=tmp_path / "b.safetensors"), plain)[name]
    torch.testing.assert_close(half, found / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "prefix", ["lora_te_text_model_", "text_encoder.text_model.", "text_encoder.", "text_model.", ""]
)
def test_a_lora_of_the_text_encoder_is_added_to_it(add, plain, tmp_path, prefix):
    layer = prefix + (TEXT.replace(".", "_") if prefix.startswith("lora_te_") else TEXT)
    down, up = parts()
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "a.safetensors")
    ((name, found),) = changed(add(LoRA_path=tmp_path / "a.safetensors"), plain).items()
    assert name.endswith(f"{TEXT}.weight")
    torch.testing.assert_close(found, up @ down, atol=1e-5, rtol=1e-5)


def test_a_lora_of_a_convolution_is_two_convolutions(add, plain, tmp_path):
    layer = "down_blocks.0.resnets.0.conv1"
    rng = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 16, 3, 3, generator=rng), torch.randn(16, 2, 1, 1, generator=rng)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "a.safetensors")
    pipeline = add(LoRA_path=tmp_path / "a.safetensors")
    images = torch.randn(1, 16, 8, 8, generator=rng)
    convolve = torch.nn.functional.conv2d
    expected = plain.unet.get_submodule(layer)(images) + convolve(convolve(images, down, padding=1), up)
    torch.testing.assert_close(pipeline.unet.get_submodule(layer)(images), expected, atol=1e-4, rtol=1e-4)


LORAS = {
    "plain": {"r": 2, "lora_alpha": 6},
    "stable": {"r": 4, "lora_alpha": 4, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 12}, "rank_pattern": {"to_q": 3}},
    "dora": {"r": 2, "lora_alpha": 3, "use_dora": True},
}


@pytest.mark.parametrize("kind", LORAS)
def test_a_folder_that_peft_saved_adds_what_peft_adds(add, plain, tmp_path, kind):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["to_q", "conv1"], init_lora_weights=False, **LORAS[kind])
        trained = get_peft_model(copy.deepcopy(plain.unet), config)
        if kind == "dora":
            for name, parameter in trained.named_parameters():
                if "magnitude" in name:
                    parameter.data *= 1 + torch.rand_like(parameter)
    trained.save_pretrained(tmp_path)
    expected = trained.merge_and_unload().state_dict()
    found = add(LoRA_path=tmp_path).unet.state_dict()
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    assert not torch.equal(
        found[f"{ATTENTION}.to_q.weight"], plain.unet.state_dict()[f"{ATTENTION}.to_q.weight"]
    )


def test_a_lora_that_diffusers_saved_adds_what_diffusers_adds(add, plain, tmp_path):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = copy.deepcopy(plain.unet)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    rng = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(2, 4, 16, 16, generator=rng),
        torch.tensor([30, 700]),
        torch.randn(2, 77, 32, generator=rng),
    )
    with torch.no_grad():
        expected, found, without = (
            each(*inputs).sample for each in (unet, add(LoRA_path=tmp_path).unet, plain.unet)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, without, atol=1e-3)


def save_lora(path, name, width, rank=4):
    """A LoRA of one layer in diffusers' names or, where its name has underscores alone, in kohya's."""
    kinds = ("lora_down", "lora_up") if name.startswith("lora_") else ("lora_A", "lora_B")
    shapes = ((rank, width), (width, rank))
    tensors = {f"{name}.{kind}.weight": torch.ones(shape) for kind, shape in zip(kinds, shapes, strict=True)}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("transformer.blocks.0.to_q", 8),
        (f"unet.{ATTENTION}.to_q", 999),
        (f"lora_unet_{KOHYA}_to_q", 999),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 32),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768),
        ("lora_unet_double_blocks_0_img_attn_qkv", 16),
    ],
)
def test_a_lora_of_another_family_is_refused(add, tmp_path, name, width):
    said = refusal(add, LoRA_path=save_lora(tmp_path / "lora.safetensors", name, width))
    assert said.startswith("GuidanceParams.LoRA_path: expected ") and "use one made for" in said


OTHER_KINDS = {
    "hada_w1_a": "a LoHa", "lokr_w1": "a LoKr", "lokr_w2_a": "a LoKr", "on_input": "an IA3", "ia3_l": "an IA3",
    "oft_blocks": "an OFT", "lora_mid.weight": "Tucker", "dora_scale": "LyCORIS", "diff": "whole differences",
}  # fmt: skip


@pytest.mark.parametrize("part", OTHER_KINDS)
def test_a_kind_that_cannot_be_added_is_named(add, tmp_path, part):
    save_file({f"lora_unet_{KOHYA}_to_q.{part}": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    said = refusal(add, LoRA_path=tmp_path / "a.safetensors")
    assert OTHER_KINDS[part] in said and "use one made for this model as a LoRA" in said


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "IA3Config", "OFTConfig"])
def test_a_kind_that_peft_saves_and_that_cannot_be_added_is_named(add, plain, tmp_path, kind):
    import peft

    more = {"IA3Config": {"feedforward_modules": []}, "OFTConfig": {"r": 4, "oft_block_size": 0}}.get(
        kind, {}
    )
    config = getattr(peft, kind)(target_modules=["to_q"], **more)
    peft.get_peft_model(copy.deepcopy(plain.unet), config).save_pretrained(tmp_path)
    assert kind.removesuffix("Config") in refusal(add, LoRA_path=tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("emb_params", "a learned word (that is textual_inversion_path)"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint (that is model_key)"),
        ("unet:0:up", "cloneofsimo's layout"),
        ("other", "names no layer of it (but other)"),
    ],
)
def test_a_file_of_something_else_is_no_lora(add, tmp_path, name, words):
    save_file({name: torch.ones(4, 32)}, tmp_path / "a.safetensors")
    assert words in refusal(add, LoRA_path=tmp_path / "a.safetensors")


def test_what_of_a_lora_fits_no_layer_is_counted_and_named_once(add, plain, tmp_path, caplog):
    down, up = parts()
    layers = (f"{ATTENTION}.to_q", "down_blocks.7.attentions.0.to_q", "down_blocks.8.attentions.0.to_q")
    tensors = {f"{n}.lora_{k}.weight": v.clone() for n in layers for k, v in (("A", down), ("B", up))}
    save_file(tensors, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        assert len(changed(add(LoRA_path=tmp_path / "a.safetensors"), plain)) == 1
    (record,) = caplog.records
    assert "2 names" in record.getMessage() and "down_blocks.7.attentions.0.to_q" in record.getMessage()


def test_a_file_of_several_loras_is_refused(add, tmp_path):
    parts = {"lora_A": torch.ones(2, 32), "lora_B": torch.ones(32, 2)}
    path = tmp_path / "a.safetensors"
    save_file({f"unet.{ATTENTION}.to_q.{part}.{which}.weight": value.clone()
               for part, value in parts.items() for which in ("first", "second")}, path)  # fmt: skip
    assert "expected one LoRA, got several" in refusal(add, LoRA_path=path)


def test_a_lora_that_changes_nothing_is_warned_of(add, tmp_path, caplog):
    path = save_lora(tmp_path / "a.safetensors", f"{ATTENTION}.to_q", 32)
    save_file({name: torch.zeros_like(each) for name, each in load_file(path).items()}, path)
    with caplog.at_level(logging.WARNING):
        add(LoRA_path=path)
    assert [record for record in caplog.records if "changes nothing" in record.getMessage()]


WHOLE = {f"{ATTENTION}.to_q.lora_{name}.weight": each for name, each in zip("AB", parts(), strict=True)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{ATTENTION}.to_q.lora_B.weight": None}, "is not whole: its layer"),
        ({f"{ATTENTION}.to_q.lora_A.weight": torch.tensor(1.0)}, "expected down_blocks.1"),
        ({f"{ATTENTION}.to_q.lora_A.weight": torch.ones(4)}, "got down of (4,), up of (32, 4)"),
        ({f"{ATTENTION}.to_q.lora_A.weight": torch.ones(0, 32)}, "got down of (0, 32)"),
        ({f"{ATTENTION}.to_q.lora_A.weight": torch.ones(4, 32, dtype=torch.int32)}, "to change weights"),
        ({f"{ATTENTION}.to_q.lora_A.weight": torch.full((4, 32), float("inf"))}, "expected finite numbers"),
        ({f"{ATTENTION}.to_q.alpha": torch.ones(3)}, "alpha of (3,)"),
        ({f"{ATTENTION}.to_q.alpha": torch.tensor(float("nan"))}, "expected finite numbers"),
        ({f"{ATTENTION}.to_q.lora_magnitude_vector.weight": torch.ones(31)}, "magnitude of (31,)"),
    ],
)
def test_a_damaged_lora_is_refused_in_one_line(add, tmp_path, changes, words):
    tensors = {name: each for name, each in (WHOLE | changes).items() if each is not None}
    save_file(tensors, tmp_path / "a.safetensors")
    assert words in refusal(add, LoRA_path=tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        "", "[1]", "{", '{"lora_alpha": "8"}', '{"lora_alpha": NaN}', '{"lora_alpha": 1' + 400 * "0" + "}",
        '{"alpha_pattern": 1}', "[" * 100_000, '{"alpha_pattern": {"to_q": null}}', '{"lora_alpha": null}',
    ],
)  # fmt: skip
def test_damaged_settings_of_a_lora_are_refused_in_one_line(add, tmp_path, config):
    save_file(WHOLE, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(config, encoding="utf-8")
    assert "adapter_config.json" in refusal(add, LoRA_path=tmp_path)
    save_file(WHOLE, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": config})
    assert "cannot read the settings in" in refusal(add, LoRA_path=tmp_path / "a.safetensors")


# Both


def test_what_is_added_is_recorded(folder, tmp_path):
    path = save_lora(tmp_path / "lora.safetensors", f"lora_unet_{KOHYA}_to_q", 32)
    added = score_model(folder, LoRA_path=str(path))
    assert added.provenance["LoRA_path"]["sha256"] == {path.name: hub.sha256(path)}


@pytest.mark.parametrize("setting", ["LoRA_path", "textual_inversion_path"])
def test_a_damaged_file_is_called_so(add, tmp_path, setting):
    path = save_lora(tmp_path / "a.safetensors", f"unet.{ATTENTION}.to_q", 32)
    for content in (b"", b"{", path.read_bytes()[:-1], b"\xff" * 100):
        path.write_bytes(content)
        assert f"{setting}: expected a .safetensors file, got {path}, a damaged" in refusal(
            add, **{setting: path}
        )


@pytest.mark.parametrize("setting", ["LoRA_path", "textual_inversion_path"])
def test_what_is_added_to_a_model_is_a_safetensors_file(tmp_path, setting):
    with pytest.raises(UserError, match=rf"{setting}: expected a .safetensors file, got .*which is none"):
        models.addition(str(tmp_path), f"GuidanceParams.{setting}")
    with pytest.raises(UserError, match=rf"{setting}: expected a .safetensors file, got .*not exist"):
        models.addition(str(tmp_path / "missing.safetensors"), f"GuidanceParams.{setting}")
