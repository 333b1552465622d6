"""Which model a name means, what a run needs of it, and one clear line for each way that it can be missing."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arguments import Config, GenerateCamParams, GuidanceParams, HardwareParams, load
from guidance import ScoreModel, models
from guidance.models import hub, single_file, weights
from tests.small_models import FAMILIES, narrow_configs, predict, save_family, save_single_file, score_model
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return narrow_configs(tmp_path_factory.mktemp("settings") / "configs")


@pytest.fixture(scope="module")
def small(tmp_path_factory, configs):
    """Every family as a folder and as a single file beside a tokenizer: {family: (folder, file)}."""
    root = tmp_path_factory.mktemp("small")
    return {family: save_family(root, configs, family) for family in FAMILIES}


@pytest.fixture
def narrow(configs, monkeypatch):
    """The shipped settings of single files, made narrow."""
    monkeypatch.setattr(single_file, "CONFIGS", configs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_a_single_file_are_the_same_model(small, narrow, family):
    folder, file = (score_model(key) for key in small[family])
    assert file.prediction_type == folder.prediction_type == FAMILIES[family]
    assert file.image_size == folder.image_size == ((256, 256) if family == "sd2-v" else (128, 128))
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(each, part).state_dict() for each in (file, folder))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.testing.assert_close(predict(file), predict(folder), atol=NETWORK[torch.float32], rtol=0)
    images = torch.rand(1, 3, *file.image_size, generator=torch.Generator().manual_seed(0))
    drawn = [each.encode_images(images, torch.Generator().manual_seed(1)) for each in (file, folder)]
    torch.testing.assert_close(*drawn, atol=NETWORK[torch.float32], rtol=0)
    assert file.provenance["sha256"] == {"model.safetensors": hub.sha256(small[family][1])}


@pytest.mark.whole_runs
@pytest.mark.parametrize("form", [0, 1], ids=["folder", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_a_folder_and_as_a_single_file(small, narrow, tmp_path, family, form):
    from dreammapping import generate

    changes = {
        "model_key": str(small[family][form]), "workspace": "run", "output_path": str(tmp_path), "device": "cpu",
        "iterations": 2, "C_batch_size": 2, "image_w": 32, "image_h": 32, "init_num_pts": 50, "save_video": False,
        "save_process": False, "log_interval": 1, "init_shape": "sphere", "vis_interval": 100, "render_45": False,
        "test_ratio": 1,
    }  # fmt: skip
    result = generate("a red car", "configs/cat.yaml", overrides=changes, quiet=True)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss/vdm"] > 0 for line in lines)
    assert result.exit_code == 0 and len(result.gaussians) == 50
    assert result.gaussians.means.isfinite().all()


def test_the_shipped_settings_are_those_of_the_published_models():
    """Parameters of U-Net, VAE and text encoder, as published."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    published = {
        "sd1": (859_520_964, 83_653_863, 123_060_480),
        "sd2-base": (865_910_724, 83_653_863, 340_387_840),
    }
    for family, counts in (published | {"sd2-v": published["sd2-base"]}).items():
        folder = single_file.CONFIGS / family
        with torch.device("meta"):
            parts = [kind.from_config(kind.load_config(folder / part)) for kind, part in (
                (UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"),
            )]  # fmt: skip
            parts.append(CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")))
        assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == counts


def test_what_a_single_file_predicts_is_set_stated_or_asked_of_its_unet(small, narrow, tmp_path, caplog):
    from diffusers import StableDiffusionPipeline

    folder, _ = small["sd2-v"]
    silent = save_single_file(
        tmp_path / "silent.safetensors", StableDiffusionPipeline.from_pretrained(folder)
    )
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    with caplog.at_level(logging.WARNING):
        assert score_model(silent).prediction_type == "v_prediction"  # random, so not like its input
    half = ScoreModel.from_pretrained(
        GuidanceParams(model_key=str(silent)),
        "cpu",
        hardware=HardwareParams(precision="float16"),
    )
    assert (half.prediction_type, half.unet.dtype) == ("v_prediction", torch.float16)
    assert "behaves like v_prediction" in caplog.text
    told = score_model(silent, prediction_type="epsilon")
    assert (told.prediction_type, told.image_size) == ("epsilon", (128, 128))


def test_a_trained_unet_shows_what_it_predicts():
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(models.TOYBOX, safety_checker=None)
    assert not single_file.predicts_velocity(pipeline)
    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    forward = pipeline.unet.forward

    def velocity(noisy, time, **options):
        (noise,) = forward(noisy, time, **options)
        value = alphas_cumprod[time].view(-1, 1, 1, 1)
        return ((noise - (1 - value).sqrt() * noisy) / value.sqrt(),)

    pipeline.unet.forward = velocity
    assert single_file.predicts_velocity(pipeline)


@pytest.mark.parametrize("form", [0, 1], ids=["folder", "file"])
def test_a_setting_that_contradicts_what_a_model_says_of_itself_is_refused(small, narrow, form):
    with pytest.raises(
        UserError, match=r"prediction_type: expected v_prediction.*got epsilon; set it to auto"
    ):
        score_model(small["sd2-v"][form], prediction_type="epsilon")


def test_what_a_single_file_says_of_itself_counts_more_than_what_its_lender_says(small):
    file = score_model(small["sd2-v"][1], base_model_key=str(small["sd2-base"][0]))
    assert file.prediction_type == "v_prediction"


@pytest.mark.parametrize(("family", "other"), [("sd1", "sd2-base"), ("sd2-base", "sd1")])
def test_a_tokenizer_lent_by_the_other_family_pads_as_the_files_own(small, narrow, tmp_path, family, other):
    folder, file = small[family]
    (tmp_path / "model.safetensors").symlink_to(file)
    shutil.copytree(small[other][0] / "tokenizer", tmp_path / "tokenizer")
    found, expected = (score_model(key) for key in (tmp_path / "model.safetensors", folder))
    torch.testing.assert_close(found.encode_text(["a red car"]), expected.encode_text(["a red car"]))


WHOLE = {
    "model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (8,),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (8,),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditioner.embedders.0.transformer.weight": (8,)}, "an SDXL model"),
        ({"lora_unet_down_blocks_0.lora_down.weight": (8,)}, "a LoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": None}, "another architecture or a single part"),
        ({"first_stage_model.encoder.conv_in.weight": None}, "without its VAE"),
        (
            {"cond_stage_model.transformer.text_model.final_layer_norm.weight": None},
            "without its text encoder",
        ),
        ({"model.diffusion_model.input_blocks.0.0.weight": (8, 9, 3, 3)}, "an inpainting model has 9"),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": (8,)},
            "a U-Net whose first weights are of shape (8,)",
        ),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": ()},
            "a U-Net whose first weights are of shape ()",
        ),
    ],
)
def test_a_single_file_of_something_else_is_told_apart(tmp_path, changes, message):
    shapes = {name: shape for name, shape in (WHOLE | changes).items() if shape is not None}
    path = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(UserError, match="expected a whole Stable Diffusion") as error:
        models.resolve(GuidanceParams(model_key=str(path)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_half_copied_single_file_is_called_so(small, tmp_path):
    path = tmp_path / "half.safetensors"
    content = small["sd1"][1].read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged or half-copied"):
        models.resolve(GuidanceParams(model_key=str(path)))


def test_damaged_weights_are_named_before_anything_is_loaded(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    damaged = [folder / part / "diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-10])
    problems = models.check_available(GuidanceParams(model_key=str(folder)))
    for path, problem in zip(damaged, problems, strict=True):
        assert f"{path} is damaged or half-downloaded; copy it again" in problem


LARGEST = "2KB"
"""Of a shard: the small model's parts become several."""
SAVED = {
    "fp16 alone": {"variant": "fp16"},
    "non-EMA alone": {"variant": "non_ema"},
    "shards": {"max_shard_size": LARGEST},
    "shards of fp16": {"variant": "fp16", "max_shard_size": LARGEST},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One model as diffusers saves it in several forms: {form: folder}; "whole" is the usual one."""
    from diffusers import StableDiffusionPipeline

    root = tmp_path_factory.mktemp("saved")
    folders = {"whole": save_pipeline(root / "whole")}
    pipeline = StableDiffusionPipeline.from_pretrained(folders["whole"], safety_checker=None)
    for form, options in SAVED.items():
        folders[form] = root / form
        pipeline.save_pretrained(folders[form], **options)
    return folders


def weights_of(model):
    return {f"{part}.{name}": each for part in ("unet", "vae", "text_encoder")
            for name, each in getattr(model, part).state_dict().items()}  # fmt: skip


def assert_same_weights(model, expected):
    ours, theirs = weights_of(model), weights_of(expected)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("form", SAVED)
def test_a_folder_is_the_same_model_in_every_form_that_diffusers_saves(saved, form):
    assert models.check_available(GuidanceParams(model_key=str(saved[form]))) == []
    model = score_model(saved[form])
    assert_same_weights(model, score_model(saved["whole"]))
    files = [file.relative_to(saved[form]).as_posix() for file in saved[form].rglob("*.safetensors")]
    assert set(model.provenance["sha256"]) == set(files)
    assert len(files) == 3 or "shards" in form


def test_parts_of_a_folder_may_be_of_different_variants(saved, tmp_path):
    folder = shutil.copytree(saved["whole"], tmp_path / "mixed")
    for part, form in (("unet", "shards of fp16"), ("vae", "non-EMA alone")):
        shutil.rmtree(folder / part)
        shutil.copytree(saved[form] / part, folder / part)
    assert_same_weights(score_model(folder), score_model(saved["whole"]))


def test_full_precision_is_loaded_where_both_are(saved, tmp_path):
    folder = shutil.copytree(saved["whole"], tmp_path / "both")
    other = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    other.write_bytes(b"never read")
    (folder / "unet" / "diffusion_pytorch_model.non_ema-00001-of-00002.safetensors").write_bytes(b"")
    model = score_model(folder)
    assert_same_weights(model, score_model(saved["whole"]))
    assert f"unet/{other.name}" not in model.provenance["sha256"]


@pytest.mark.parametrize("form", ["shards", "shards of fp16"])
def test_a_shard_or_its_list_that_is_missing_or_damaged_is_named(saved, tmp_path, form):
    folder = shutil.copytree(saved[form], tmp_path / "model")
    first, *_ = sorted((folder / "unet").glob("*.safetensors"))
    (index,) = (folder / "unet").glob("*.index*.json")
    params = GuidanceParams(model_key=str(folder))
    for content in (
        "{",
        "[]",
        "null",
        '{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}',
        "[" * 100_000,
    ):
        whole = index.read_text(encoding="utf-8")
        index.write_text(content, encoding="utf-8")
        (problem,) = models.check_available(params)
        assert f"{index} is damaged" in problem
        index.write_text(whole, encoding="utf-8")
    for file in (first, index):
        content = file.read_bytes()
        file.unlink()
        (problem,) = models.check_available(params)
        assert "has no unet's weights but diffusion_pytorch_model" in problem and "copy the whole" in problem
        file.write_bytes(content)
    assert models.check_available(params) == []


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"])
def test_a_folder_of_pickles_alone_is_refused(tmp_path, name):
    folder, touched = save_pipeline(tmp_path / "model"), tmp_path / "touched"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"conv_in.weight": Runs(touched)}, folder / "unet" / name)
    (problem,) = models.check_available(GuidanceParams(model_key=str(folder)))
    assert f"has no unet's weights but {name}, a pickle that can run code" in problem
    with pytest.raises(UserError, match=r"model_key: .*") as error:
        score_model(folder)
    assert "\n" not in str(error.value) and not touched.exists()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}),
        ("vae/config.json", {"layers_per_block": 10**9}),
        ("unet/config.json", {"transformer_layers_per_block": [1, 10**9]}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
        ("scheduler/scheduler_config.json", {"beta_start": 10**9}),
        ("scheduler/scheduler_config.json", {"beta_end": float("nan")}),
        ("tokenizer/tokenizer_config.json", {"pad_token": None}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}),
        ("unet/config.json", {"sample_size": "x"}),
        ("unet/config.json", {"sample_size": None}),
        ("unet/config.json", {"sample_size": 10**9}),
        ("text_encoder/config.json", {"eos_token_id": None}),
        ("text_encoder/config.json", {"layer_norm_eps": None}),
        ("text_encoder/config.json", {"num_attention_heads": -1}),
    ],
)
def test_settings_of_a_folder_that_cannot_work_are_refused_in_one_line(saved, tmp_path, file, changes):
    folder = shutil.copytree(saved["whole"], tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(UserError) as error:
        score_model(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_word_that_the_text_encoder_does_not_have_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved["whole"], tmp_path / "model")
    path = folder / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    model = score_model(folder)
    number = int(model._tokenize(["a red car"])[0, 2])
    words = tree["model"]["vocab"]
    words[next(word for word, each in words.items() if each == number)] = 10**6
    path.write_text(json.dumps(tree), encoding="utf-8")
    model = score_model(folder)
    with pytest.raises(
        UserError, match=r"words, got number 1000000 for one of \['a red car'\]; copy"
    ) as error:
        model.encode_text(["a red car"])
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_pass_through_a_model_that_was_loaded_where_none_are_kept(saved, mode):
    with mode():
        model = score_model(saved["whole"])
        text = model.encode_text(["a red car"])
    latents = torch.ones(1, 4, *model.latent_size, requires_grad=True)
    model.predict_noise_with_gradient(latents, torch.tensor([500]), text).sum().backward()
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_no_weight_is_drawn_in_place_of_one_that_a_file_lacks(saved, tmp_path, part, caplog):
    folder = shutil.copytree(saved["whole"], tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[3]
    save_file({n: each for n, each in tensors.items() if n != name}, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"expected all weights of its config.json, got none for .*copy the whole"
    ):
        score_model(folder)
    save_file(tensors | {"another.weight": torch.ones(1)}, file, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING):
        score_model(folder)
    assert "1 weights have no place" in caplog.text and "another.weight" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"unet": ["diffusers", "NoSuchNetwork"]},
            "expected a network as its unet, got NoSuchNetwork of diffusers",
        ),
        ({"unet": ["os", "system"]}, "expected a network as its unet, got system of os"),
        ({"unet": ["diffusers", "DDIMScheduler"]}, "expected a network as its unet, got DDIMScheduler"),
        ({"unet": None}, "as its unet"),
        ({"unet": ["diffusers"]}, "as its unet"),
        ({"unet": [["diffusers"], {}]}, "as its unet"),
        ({"vae": ["diffusers", "UNet2DConditionModel"]}, "expected all weights of its config.json"),
    ],
)
def test_an_index_that_names_something_else_is_refused_in_one_line(saved, tmp_path, changes, words):
    folder = shutil.copytree(saved["whole"], tmp_path / "model")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(UserError) as error:
        score_model(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


class Runs:
    """A pickle that writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_single_file_without_a_tokenizer_says_where_to_get_one(small, tmp_path):
    path = tmp_path / "model.safetensors"
    path.symlink_to(small["sd1"][1])
    (problem,) = models.check_available(GuidanceParams(model_key=str(path)))
    assert "needs the tokenizer of openai/clip-vit-large-patch14" in problem
    assert "put a folder named tokenizer" in problem


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt"])
def test_pickles_are_refused_wherever_a_file_is_named(tmp_path, suffix):
    path = str(tmp_path / f"model{suffix}")
    with pytest.raises(UserError, match="a pickle that can run code"):
        models.resolve(GuidanceParams(model_key=path))
    for setting in ("LoRA_path", "textual_inversion_path"):
        with pytest.raises(UserError, match=f"{setting}: expected a .safetensors file.*pickle"):
            models.addition(path, f"GuidanceParams.{setting}")


@pytest.mark.parametrize(
    "setting", ["model_key", "base_model_key", "vae_key", "LoRA_path", "textual_inversion_path"]
)
@pytest.mark.parametrize("name", ["~no such user/a.safetensors", "a" * 5000, "a\0b", "~no such user/b"])
def test_a_name_that_no_path_can_have_is_one_line(saved, setting, name):
    key = next(saved["whole"].glob("unet/*.safetensors")) if setting == "base_model_key" else saved["whole"]
    settings = {"model_key": str(key), setting: name}
    problems = models.missing_models(Config(GuidanceParams=GuidanceParams(**settings)))
    if setting != "base_model_key":  # which a folder has no use for
        assert any(f"{setting}: expected a path, got" in problem for problem in problems)
    assert all("\n" not in problem and len(problem) < 500 for problem in problems)


@pytest.mark.parametrize("fallback", ["stop", "sphere"])
def test_everything_that_a_run_lacks_is_named_at_once(tmp_path, fallback):
    folder = save_pipeline(tmp_path / "model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    config = Config(
        GuidanceParams=GuidanceParams(
            model_key=str(folder), LoRA_path=str(tmp_path / "a.safetensors"), vae_key="nobody/vae", text="a cat",
            textual_inversion_path=str(tmp_path / "b.bin"),
        ),
        GenerateCamParams=GenerateCamParams(init_shape="shape", init_fallback=fallback, shape_model="nobody/shape"),
    )  # fmt: skip
    problems = models.missing_models(config)
    words = ["has no vae's weights", "'nobody/vae'", "a.safetensors", "b.bin", "'nobody/shape'"]
    assert len(problems) == 5
    assert all(word in problem for word, problem in zip(words, problems, strict=True))
    forgiving = models.missing_models(load(["--opt", "configs/cat.yaml", f"model_key={models.TOYBOX}"])[0])
    assert forgiving == []


def test_another_autoencoder_takes_the_place_of_the_models_own(tmp_path):
    folder = save_pipeline(tmp_path / "model")
    tiny = save_pipeline(tmp_path / "other", autoencoder="tiny") / "vae"
    model = score_model(folder, vae_key=str(tiny))
    assert type(model.vae).__name__ == "AutoencoderTiny"
    assert "vae/diffusion_pytorch_model.safetensors" not in model.provenance["sha256"]
    file = tiny / "diffusion_pytorch_model.safetensors"
    assert model.provenance["vae_key"]["sha256"] == {file.name: hub.sha256(file)}
    shutil.copytree(folder / "unet", tmp_path / "wrong")
    with pytest.raises(UserError, match="vae_key: expected an AutoencoderKL or AutoencoderTiny, got UNet2D"):
        score_model(folder, vae_key=str(tmp_path / "wrong"))


@pytest.mark.parametrize(("sides", "channels"), [(4, 4), (2, 16)])
def test_an_autoencoder_of_other_latents_is_refused(tmp_path, sides, channels):
    from diffusers import AutoencoderTiny

    folder = save_pipeline(tmp_path / "model")
    widths = (8,) * sides
    AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=(1,) * sides, num_decoder_blocks=(1,) * sides,
    ).save_pretrained(tmp_path / "other")  # fmt: skip
    pixels = 2 ** (sides - 1)
    with pytest.raises(
        UserError,
        match=f"vae_key: expected latents of 4 channels, 4 .* {channels} channels and {pixels} pixels",
    ):
        score_model(folder, vae_key=str(tmp_path / "other"))


def test_models_of_other_families_are_told_apart_from_half_copied_ones(tmp_path):
    names = [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    (problem,) = weights.missing_parts(names, models.COMPONENTS, ("tokenizer", "scheduler"))
    assert problem.startswith("no unet but a transformer, so it is of another family")
    problems = weights.missing_parts([*names[:1], *names[2:]], models.COMPONENTS, ())
    assert "no unet; copy the whole folder again" in problems


SMALL_UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (32, 64), "layers_per_block": 1,
    "norm_num_groups": 8, "attention_head_dim": 8, "cross_attention_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("UNet3DConditionModel", {}, "got UNet3DConditionModel as its unet"),
        ("UNet2DModel", {"cross_attention_dim": None}, "got UNet2DModel as its unet"),
        ("VQModel", {}, "got VQModel as its vae"),
        ("UNet2DConditionModel", {"out_channels": 8}, "got a U-Net of 4 channels that gives 8"),
        (
            "UNet2DConditionModel",
            {"encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"},
            "got a U-Net with further conditions",
        ),
    ],
)
def test_networks_of_other_kinds_are_named(saved, tmp_path, kind, changes, message):
    import diffusers

    settings = {name: value for name, value in (SMALL_UNET | changes).items() if value is not None}
    if kind != "VQModel":
        ends = {"UNet3DConditionModel": "3D"}.get(kind, "2D")
        inner = "" if kind == "UNet2DModel" else "CrossAttn"
        settings["down_block_types"] = (f"{inner}DownBlock{ends}", f"DownBlock{ends}")
        settings["up_block_types"] = (f"UpBlock{ends}", f"{inner}UpBlock{ends}")
    network = getattr(diffusers, kind)(**({"latent_channels": 4} if kind == "VQModel" else settings))
    folder, part = shutil.copytree(saved["whole"], tmp_path / "model"), "vae" if kind == "VQModel" else "unet"
    shutil.rmtree(folder / part)
    network.save_pretrained(folder / part)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps(parts | {part: ["diffusers", kind]}), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        score_model(folder)
    assert "\n" not in str(error.value)


def test_a_scheduler_without_betas_is_refused(saved, tmp_path):
    """Of flow matching, say: its model would be read as one of noise with made-up betas."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    folder = shutil.copytree(saved["whole"], tmp_path / "model")
    shutil.rmtree(folder / "scheduler")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    parts["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    index.write_text(json.dumps(parts), encoding="utf-8")
    with pytest.raises(UserError, match="kind, got a FlowMatchEulerDiscreteScheduler"):
        score_model(folder)
