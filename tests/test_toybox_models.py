"""The toybox prior: its tokenizer, architectures, losses, training loop and shipped folder."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer

from tests.tolerances import NETWORK
from toybox import dataset, models, renders, report, train, train_clip, train_unet, train_vae, training, world
from toybox.clip import PRIOR
from toybox.report import judge
from toybox.samples import load_pipeline, sample, save_grid
from toybox.speed import fastest
from toybox.train_loop import Average, Budget, Loop, learning_rate
from toybox.train_views import COLOURS, Batch, Pool, Views, jitter, pair_captions, view_index
from utils.errors import UserError
from utils.frechet import frechet_distance


@pytest.fixture(scope="module")
def tokenizer():
    return models.build_tokenizer()


@pytest.fixture(scope="module")
def clip(tokenizer):
    torch.manual_seed(0)
    return models.build_clip(tokenizer).eval()


@pytest.fixture
def cache(tmp_path):
    """Random renders of the data set's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 12), ("held_out", 12)):
        np.save(tmp_path / f"{split}_images.npy", rng.integers(0, 256, (count, 128, 128, 3), dtype=np.uint8))
        np.savez(
            tmp_path / f"{split}_labels.npz",
            object_index=rng.integers(0, len(world.OBJECTS), count).astype(np.uint8),
            colour_index=rng.integers(0, len(COLOURS), count).astype(np.uint8),
            azimuth_deg=rng.uniform(-180, 180, count).astype(np.float32),
            polar_deg=np.full(count, 80.0, np.float32),
            radius=np.full(count, 3.5, np.float32),
            fov=np.full(count, 0.5, np.float32),
        )
    return tmp_path


def test_each_word_of_a_caption_is_one_token(tokenizer):
    for view in (None, *world.VIEWS):
        for caption in pair_captions(view):
            words = caption.replace(",", " ,").split()
            assert len(tokenizer(caption).input_ids) == len(words) + 2


def test_every_process_numbers_the_words_alike(tokenizer):
    """Python starts the tokenizer's hash table anew, so that a second one here would number them by another chance."""
    words = [*world.OBJECTS, *COLOURS, *world.VIEWS]
    for _ in range(8):
        assert models.build_tokenizer().get_vocab() == tokenizer.get_vocab()
    shipped = CLIPTokenizer.from_pretrained(PRIOR / "tokenizer", local_files_only=True)
    assert [shipped(word).input_ids for word in words] == [tokenizer(word).input_ids for word in words]


def test_any_text_tokenises_within_the_vocabulary(tokenizer):
    ids = tokenizer("Ein naïve 3D-Wörtchen, 日本 🙂").input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1] and max(ids) < len(tokenizer)
    assert tokenizer("A RED car").input_ids == tokenizer("a red car").input_ids
    assert models.tokenize(tokenizer, ["word " * 100]).shape == (1, models.TEXT_LENGTH)


def test_cutting_the_padding_leaves_the_text_vector(clip, tokenizer):
    tokens = models.tokenize(tokenizer, ["a red car, front view", "a blue cat"])
    whole, cut = (clip.text_model(part).pooler_output for part in (tokens, tokens[:, :10]))
    torch.testing.assert_close(whole, cut, atol=NETWORK[torch.float32], rtol=0)


def test_the_pipelines_text_encoder_is_the_clips_text_tower(clip, tokenizer):
    tokens = models.tokenize(tokenizer, ["a red car, front view"])
    states = models.text_encoder(clip)(tokens).last_hidden_state
    torch.testing.assert_close(states, clip.text_model(tokens).last_hidden_state)
    torch.testing.assert_close(
        states, train_unet.caption_states(models.text_encoder(clip), tokenizer, ["a red car, front view"])
    )


def test_an_untrained_autoencoder_passes_colours_through():
    vae = models.build_autoencoder()
    colours = torch.rand(6, 3, 1, 1)
    with torch.no_grad():
        images = train_vae.decode(vae, train_vae.encode(vae, colours.expand(-1, -1, 64, 64)))
    inner = images[:, :, 24:40, 24:40]
    assert (inner - colours).abs().mean() < 0.06  # what the clamp of the latents and the random channels cost


def test_an_untrained_image_tower_attends_to_neighbours(clip):
    images = torch.rand(1, 3, 16, 16).repeat_interleave(8, -1).repeat_interleave(8, -2)
    tower = clip.vision_model
    tokens = tower.pre_layrnorm(tower.embeddings(images))
    layer = tower.encoder.layers[0]
    normed = layer.layer_norm1(tokens)
    heads = (1, tokens.shape[1], layer.self_attn.num_heads, layer.self_attn.head_dim)
    queries = layer.self_attn.q_proj(normed).view(heads).transpose(1, 2)
    keys = layer.self_attn.k_proj(normed).view(heads).transpose(1, 2)
    found = (queries @ keys.transpose(2, 3))[0, :, 1 + 7 * 16 + 8].argmax(-1) - 1
    assert found.tolist() == [
        (7 + row) * 16 + 8 + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column
    ]


def test_words_stay_apart_in_the_locked_text_tower(clip, tokenizer):
    words = train_unet.caption_states(
        clip.text_model, tokenizer, [f"a red {name}" for name in world.OBJECTS]
    )[:, 3]
    likeness = torch.cosine_similarity(words[:, None], words, dim=-1) - torch.eye(len(words))
    assert likeness.max() < 0.7


def test_training_leaves_the_text_tower(clip, tokenizer, cache, tmp_path):
    torch.manual_seed(5)
    model = models.build_clip(tokenizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    views, settings = Views("train", cache), training.PRESETS["cpu"].scaled(0.125, 1.0).clip
    train_clip.train(model, tokenizer, views, settings, Budget(1.0, steps=2), tmp_path / "clip.pt")
    for key, value in model.state_dict().items():
        if key.startswith("text_model"):
            assert torch.equal(value, before[key])
    assert not torch.equal(model.text_projection.weight, before["text_projection.weight"])
    assert not torch.equal(model.visual_projection.weight, before["visual_projection.weight"])


def test_a_trained_image_tower_meets_the_captions(clip, tokenizer, cache, tmp_path):
    """At a rate that leaves the weights alone: what is found is the start of the training, not what it learnt."""
    model, views = models.build_clip(tokenizer), Views("train", cache)
    settings = dataclasses.replace(training.PRESETS["cpu"].scaled(0.125, 1.0).clip, rate=1e-9)
    train_clip.train(
        model, tokenizer, views, settings, Budget(1.0, steps=1), tmp_path / "clip.pt", start=clip
    )
    began = clip.vision_model.state_dict()
    for key, value in model.vision_model.state_dict().items():
        torch.testing.assert_close(value, began[key], atol=1e-6, rtol=0)
    with torch.no_grad():
        images = train_clip.image_vectors(model, views.pixels(torch.arange(len(views))))
        captions = train_clip.text_vectors(model, train_clip.Captions(model, tokenizer).pairs)
    assert (images @ captions.T).argmax(1).tolist() == views.pair.tolist()  # so few can be fitted exactly


def test_a_unet_starts_by_predicting_nothing_and_reads_the_text_in_every_block():
    torch.manual_seed(0)
    unet = models.build_unet()
    latents, text = torch.randn(2, 4, 32, 32), torch.randn(2, 24, models.WIDTH)
    assert unet(latents, 500, text).sample.abs().max() == 0.0
    for name, module in unet.named_modules():
        if name.endswith("conv2") or name == "conv_out":
            nn.init.normal_(module.weight, 0.0, 0.05)
    seen = []
    hook = unet.down_blocks[0].resnets[0].register_forward_hook(lambda *call: seen.append(call[-1]))
    unet(latents, 500, text)
    unet(latents, 500, text.flip(-1))
    hook.remove()
    assert (seen[0] - seen[1]).abs().max() > 1e-4  # a block above all cross-attention


def test_captions_start_apart_and_composed(tokenizer):
    model = models.build_clip(tokenizer)
    captions = train_clip.Captions(model, tokenizer)
    captions.spread(model)
    with torch.no_grad():
        vectors = train_clip.text_vectors(model, captions.pairs)
    likeness = vectors @ vectors.T - torch.eye(len(vectors))
    assert likeness.max() < 0.9
    assert likeness[0, 1] > likeness[0, len(COLOURS) + 1] + 0.2  # a shared object, against nothing shared


def test_latents_are_32_pixels_wide_and_cheap():
    vae = models.build_autoencoder()
    image = torch.zeros(1, 3, models.IMAGE_SIZE, models.IMAGE_SIZE)
    assert train_vae.encode(vae, image).shape == (1, 4, 32, 32)
    assert models.count_macs(lambda: vae.encode(image)) < 0.16
    convolution = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    counted = models.count_macs(lambda: convolution(torch.zeros(1, 3, 10, 10)))
    assert counted == pytest.approx(3 * 8 * 9 * 100 / 1e9)
    words = torch.zeros(2, 4, 50, 16)
    counted = models.count_macs(lambda: nn.functional.scaled_dot_product_attention(words, words, words))
    assert counted == pytest.approx(2 * 2 * 4 * 50 * 50 * 16 / 1e9)


def test_noise_loss_is_zero_for_the_noise_and_the_error_of_v_else():
    noise, latents = torch.randn(2, 3, 4, 8, 8)
    schedule = models.build_scheduler().alphas_cumprod
    steps = torch.tensor([20, 500, 980])
    arguments = (latents, torch.zeros(3, 2, 8), steps, noise, schedule)
    assert train_unet.noise_loss(lambda *_, **__: (noise,), *arguments) == 0.0
    off = train_unet.noise_loss(lambda *_, **__: (noise + 1.0,), *arguments)
    torch.testing.assert_close(off, torch.tensor([1 / schedule[20], 1 / schedule[500], 20.0]).mean())
    signal, rest = schedule[500].sqrt(), (1 - schedule[500]).sqrt()
    noisy = signal * latents + rest * noise
    wrong = noise + 0.1
    velocity = [signal * each - rest * (noisy - rest * each) / signal for each in (noise, wrong)]
    one = train_unet.noise_loss(
        lambda *_, **__: (wrong,), *arguments[:2], torch.full((3,), 500), noise, schedule
    )
    torch.testing.assert_close(one, (velocity[0] - velocity[1]).square().mean())


def test_held_out_pairs_are_no_false_captions(clip, tokenizer):
    captions = train_clip.Captions(clip, tokenizer)
    index = {pair: number for number, pair in enumerate((n, c) for n in world.OBJECTS for c in COLOURS)}
    assert captions.held_out.nonzero().flatten().tolist() == sorted(index[pair] for pair in world.HELD_OUT)
    name, colour = sorted(world.HELD_OUT)[0]
    vectors = train_clip.text_vectors(clip, captions.pairs)[index[name, colour]][None]
    classes = (
        torch.tensor([world.OBJECTS.index(name)]),
        torch.tensor([COLOURS.index(colour)]),
        torch.tensor([0]),
    )
    assert captions.loss(clip, vectors, *classes).isinf()  # never true in training, and never offered


def test_recolouring_keeps_shapes(clip):
    images = torch.rand(64, 1, 8, 8).expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    mixed = train_clip.recolour(images, torch.Generator().manual_seed(0))
    assert mixed.min() >= 0.0 and mixed.max() <= 1.0
    both = torch.stack((mixed, 1.0 - mixed)).sort(dim=2).values
    undone = (both - images.sort(dim=1).values).abs().amax(dim=(2, 3, 4)).amin(0)
    assert undone.max() < 1e-6
    assert len({tuple(each.mean(dim=(1, 2)).argsort().tolist()) for each in mixed}) == 6


def test_clip_loss_falls_when_vectors_tell_captions_apart(clip, tokenizer):
    images = torch.rand(4, 3, 128, 128)
    classes = torch.tensor([0, 1, 1, 3])
    model = models.build_clip(tokenizer)
    captions = train_clip.Captions(model, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = captions.loss(model, train_clip.image_vectors(model, images), classes, classes, classes % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_learning_rate_warms_up_and_ends_annealed():
    rates = [learning_rate(progress, 1e-3) for progress in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1e-3) and rates.index(max(rates)) == 2
    assert rates[-1] == pytest.approx(1e-5) and rates[2:] == sorted(rates[2:], reverse=True)


def test_budget_counts_minutes_or_steps():
    assert Budget(2.0).progress(10, 30.0) == 0.25
    assert Budget(2.0, steps=40).progress(10, 30.0) == 0.25
    assert Budget(2.0).progress(10, 1e6) == 1.0


def test_a_deadline_cuts_the_minutes_that_are_left():
    budget = Budget(10.0, deadline=time.monotonic() + 30.0).from_now(90.0)
    assert budget.progress(0, 90.0) == pytest.approx(0.75, abs=0.01)
    assert Budget(2.0, deadline=time.monotonic() + 1e6).from_now(0.0).minutes == 2.0
    assert Budget(2.0).from_now(7.0) == Budget(2.0)


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    module = nn.Linear(2, 1)
    loop = Loop("line", module, 1e-2, Budget(1.0, 3), tmp_path / "line.pt")
    scales = iter((1.0, float("nan"), 1.0))
    loop.run(lambda: next(scales) * module(torch.ones(4, 2)).square().mean())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert loop.step == 3


def test_average_follows_the_weights():
    module = nn.Linear(2, 1)
    average = Average(module, 0.5)
    start = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.add_(1.0)
    average.update(module, 1000)
    torch.testing.assert_close(average.values[0], start + 0.5)


def _fit(path, steps, generator):
    torch.manual_seed(0)
    module = nn.Linear(3, 1)
    loop = Loop("line", module, 1e-2, Budget(1.0, steps), path)
    loop.run(lambda: (module(torch.randn(8, 3, generator=generator)) - 1.0).square().mean())
    return loop


def test_a_loop_goes_on_from_its_checkpoint(tmp_path):
    path = tmp_path / "line.pt"
    first = _fit(path, 5, torch.Generator().manual_seed(0))
    again = _fit(path, 5, torch.Generator().manual_seed(0))
    assert again.step == 5
    torch.testing.assert_close(again.module.weight, first.module.weight)
    torch.testing.assert_close(again.average.values, first.average.values)
    assert _fit(path, 8, torch.Generator().manual_seed(0)).step == 8


def test_a_checkpoint_of_another_architecture_is_a_users_error(tmp_path):
    _fit(tmp_path / "line.pt", 1, torch.Generator())
    with pytest.raises(UserError, match="another"):
        Loop("line", nn.Linear(7, 2), 1e-2, Budget(1.0, 1), tmp_path / "line.pt")


@pytest.mark.parametrize("damage", [lambda whole: b"text", lambda whole: b"", lambda whole: whole[:999], len])
def test_a_damaged_checkpoint_is_a_users_error(tmp_path, damage):
    path = tmp_path / "line.pt"
    _fit(path, 1, torch.Generator())
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged) if isinstance(damaged, bytes) else torch.save({"mine": damaged}, path)
    with pytest.raises(UserError, match="another or a damaged one; move it away to start again"):
        _fit(path, 1, torch.Generator())


def test_jitter_keeps_the_range_and_differs_between_images():
    images = torch.full((4, 3, 32, 32), 0.5)
    moved = jitter(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.min() >= 0.0 and moved.max() <= 1.0
    assert moved.flatten(1).mean(1).unique().numel() == 4


def test_frechet_distance_of_gaussians_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    assert frechet_distance(unit, unit) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(unit, 3.0 * unit) == pytest.approx(3 * 4.0, rel=0.05)
    assert frechet_distance(unit, unit + 2.0) == pytest.approx(12.0, rel=1e-6)


def test_judge_counts_pairs_objects_colours_and_views():
    count = len(world.OBJECTS) * len(COLOURS)
    captions = torch.eye(count)
    views = torch.randn(count, 3, count, generator=torch.Generator().manual_seed(0))
    pairs = torch.tensor([0, 1, len(COLOURS), 5])
    shown = torch.tensor([0, 0, 0, 5])  # right; wrong colour; wrong object; right
    vectors = captions[shown]
    seen = torch.einsum("nd,nvd->nv", vectors, views[pairs]).argmax(1)
    seen[0] = (seen[0] + 1) % 3
    true = Batch(torch.empty(4, 3, 1, 1), pairs // len(COLOURS), pairs % len(COLOURS), seen)
    assert judge(vectors, true, captions, views) == {
        "pair": 0.5,
        "object": 0.75,
        "colour": 0.75,
        "view": 0.75,
    }


def test_samples_are_compared_with_as_many_renders_of_their_captions(monkeypatch):
    monkeypatch.setattr(renders, "SPLITS", {"train": None, "test": 6, "held_out": 4})
    further = report.more_renders(4, torch.device("cpu"))
    whole, labels = renders.sample_views("test", range(10), 0, models.IMAGE_SIZE)
    np.testing.assert_array_equal(further.images.permute(0, 2, 3, 1) * 255.0, whole[6:])
    words = [f"{world.view_word(angle)} view" for angle in labels[6:, 2]]
    names = [world.OBJECTS[int(kind)] for kind in labels[6:, 0]]
    assert all(word in text for word, text in zip(words, further.captions, strict=True))
    assert all(name in text for name, text in zip(names, further.captions, strict=True))


def test_perfect_samples_are_as_far_from_renders_as_renders_are():
    generator = torch.Generator().manual_seed(0)
    renders, twins = torch.randn(400, 8, generator=generator), torch.randn(100, 8, generator=generator)
    result = report.compare(twins, twins, renders)
    assert (result["samples"], result["renders"]) == (100, 400)
    assert result["samples_to_renders"] == result["renders_to_renders"] > 0.0
    assert report.compare(2.0 * twins, twins, renders)["samples_to_renders"] > 1.0


def test_the_noise_of_a_sample_is_its_own():
    """Alone or among others, with the rounding of another batch."""
    pipeline = load_pipeline(PRIOR)
    both = sample(pipeline, ["a red car", "a blue cat"], seed=3, steps=2)
    alone = sample(pipeline, ["a blue cat"], seed=4, steps=2)
    torch.testing.assert_close(alone[0], both[1], atol=50 * NETWORK[torch.float32], rtol=0)


def test_save_grid_fills_the_last_row(tmp_path):
    from PIL import Image

    save_grid(torch.zeros(3, 3, 4, 4), tmp_path / "grid.png", columns=2)
    picture = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert picture.shape == (8, 8, 3) and picture[:4].max() == 0 and picture[4:, 4:].min() == 255


def test_views_holds_images_and_classes(cache):
    views = Views("train", cache)
    assert views.pixels(torch.arange(2)).shape == (2, 3, 128, 128)
    assert (
        world.caption(world.OBJECTS[views.object[3]], COLOURS[views.colour[3]])
        == pair_captions()[views.pair[3]]
    )


def test_every_stage_trains_and_the_folder_loads_without_our_code(cache, tmp_path):
    prior = tmp_path / "prior"
    preset = dataclasses.replace(training.PRESETS["cpu"].scaled(0.1, 0.001), start=None)
    stages = training.Training(prior, cache, torch.device("cpu"), preset, steps=1)
    with pytest.raises(UserError, match="earlier stages"):
        stages.unet()
    stages.vae()
    stages.prepare()
    stages.clip()
    stages.unet()
    assert {"vae", "clip", "unet"} <= set(stages._notes())
    material = train_unet.Material(stages.source, *_parts(prior), count=40, renewed=0)
    assert material.latents.float().std().item() == pytest.approx(1.0, abs=0.05)
    _check_pipeline(prior)


@pytest.fixture
def small_card(monkeypatch):
    """The card's preset at a size that a CPU does in seconds, with the half precision that most CPUs lack left out."""
    monkeypatch.setattr(renders, "SPLITS", {"train": None, "test": 4, "held_out": 4})
    monkeypatch.setattr(report, "_SAMPLES", 4)
    monkeypatch.setattr(report, "_HELD_OUT_SAMPLES", 4)
    monkeypatch.setattr(report, "STEPS", 2)
    preset = training.PRESETS["card"].scaled(0.01, 0.0004)
    preset = dataclasses.replace(
        preset,
        minutes=0.02,
        clip=dataclasses.replace(preset.clip, compiled=False, half=False),
        unet=dataclasses.replace(preset.unet, compiled=False, half=False),
        together=False,
    )
    monkeypatch.setitem(training.PRESETS, "card", preset)
    return preset


@pytest.mark.usefixtures("small_card")
def test_the_cards_preset_makes_a_whole_prior_and_a_second_call_goes_on(tmp_path):
    output, cache = tmp_path / "prior", tmp_path / "cache"
    arguments = ["--preset", "card", "--device", "cpu", "--output", str(output), "--cache", str(cache)]
    shipped = {path: path.stat().st_mtime_ns for path in PRIOR.rglob("*")}
    assert train.main([*arguments, "--stage", "unet", "--steps", "1", "--threads", "1"]) == 0
    assert train.main([*arguments, "--threads", "1"]) == 0
    written = json.loads((output / "report.json").read_text())
    assert {"samples_train_pairs", "samples_held_out_pairs", "frechet_clip", "retrieval_test"} <= set(written)
    assert written["stages"]["unet"]["steps"] >= 1
    assert (output / "toybox_samples.png").is_file()
    _check_pipeline(output)
    largest = max(path.stat().st_size for path in output.rglob("*.safetensors"))
    assert largest <= 16 * 2**20
    before = {path: path.read_bytes() for path in output.rglob("*.pt")}
    assert (
        train.main([*arguments, "--stage", "unet", "--threads", "1"]) == 0
    )  # finished: nothing is trained again
    assert torch.load(output / "checkpoints" / "unet.pt")["step"] == written["stages"]["unet"]["steps"]
    assert len(before) == 2
    assert shipped == {path: path.stat().st_mtime_ns for path in PRIOR.rglob("*")}


@pytest.mark.usefixtures("small_card")
def test_a_cache_that_the_report_could_not_use_is_refused_before_the_training(tmp_path, capsys):
    (tmp_path / "test_images.npy").write_text("a user's")
    words = ["--preset", "card", "--device", "cpu", "--threads", "1", "--steps", "1"]
    assert train.main([*words, "--output", str(tmp_path / "prior"), "--cache", str(tmp_path)]) == 2
    assert "test_images.npy and test_labels.npz away" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_images.npy"]


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["--preset", "cpu"], PRIOR),
        (["--preset", "cpu", "--start", "none"], None),
        (["--preset", "card"], None),
        (["--preset", "card", "--start", "elsewhere"], Path("elsewhere")),
    ],
)
def test_a_cpu_goes_on_from_the_shipped_prior_and_nothing_overwrites_it_unasked(
    monkeypatch, caplog, arguments, start
):
    made = []
    monkeypatch.setattr(training.Training, "report", lambda stages: made.append(stages))
    for output in ([], ["--output", str(PRIOR)]):
        assert (
            train.main([*arguments, *output, "--stage", "report", "--device", "cpu", "--threads", "1"]) == 0
        )
    assert [stages.start for stages in made] == [start, start]
    assert made[0].output != PRIOR
    assert [
        record.message for record in caplog.records if "replaces the shipped prior" in record.message
    ] == [f"toybox train: replaces the shipped prior in {PRIOR}"]


@pytest.fixture
def at_nothing(monkeypatch, tmp_path):
    """Calls the command for a stage that would train nothing: its exit code."""
    for name in ("prepare", "vae", "clip", "unet", "report", "all"):
        monkeypatch.setattr(training.Training, name, lambda *_: None)
    words = ["--preset", "cpu", "--device", "cpu", "--threads", "1", "--output", str(tmp_path / "prior")]
    return lambda stage: train.main([*words, "--stage", stage])


@pytest.mark.parametrize(
    ("held", "refused"),
    [("clip", {"clip", "all"}), ("unet", {"unet", "vae", "all"}), ("vae", {"unet", "vae", "all"})],
)
def test_what_one_process_trains_in_a_folder_no_other_does(tmp_path, capsys, at_nothing, held, refused):
    """The U-Net's pipeline has the autoencoder in it; the CLIP is trained beside both."""
    with models.training(tmp_path / "prior", held):
        before = sorted(tmp_path.rglob("*"))
        for stage in ("vae", "clip", "unet", "report", "all"):
            assert at_nothing(stage) == (2 if stage in refused else 0)
            said = capsys.readouterr().err
            assert (
                said.count("\n")
                == ("wait until that ends, or choose another --output" in said)
                == (stage in refused)
            )
        assert sorted(tmp_path.rglob("*")) == before
    assert at_nothing("all") == 0


def test_a_training_removes_what_a_killed_one_left_half_written(tmp_path, at_nothing):
    folder = tmp_path / "prior"
    for name in ("unet", "clip", "checkpoints"):
        (folder / name).mkdir(parents=True)
    (folder / "clip" / "config.json").write_text('{"model_type": "clip", "projection_dim": 128}')
    (folder / "unet" / "config.json").write_text(json.dumps(dict(models.build_unet().config)))
    (folder / "unet" / ".all.mine.partial").write_text("theirs")
    before = sorted(folder.rglob("*"))
    for name in (".pipeline.0123abcd.partial", "clip/.all.0123abcd.partial", ".unet.0123abcd.partial"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("half")
    for name in ("checkpoints/.clip.0123abcd.partial.pt", "checkpoints/.unet.0123abcd.partial.json"):
        (folder / name).write_text("half")
    assert at_nothing("all") == 0
    assert sorted(folder.rglob("*")) == before


def test_a_report_that_is_made_again_keeps_what_is_known_of_the_training(tmp_path):
    (tmp_path / "report.json").write_text(
        json.dumps({"stages": {"clip": {"steps": 5}, "unet": {"steps": 6}}})
    )
    stages = training.Training(tmp_path, tmp_path, torch.device("cpu"), training.PRESETS["card"])
    shipped = json.loads((PRIOR / "report.json").read_text())["stages"]["vae"]
    assert stages._notes() == {"vae": shipped, "clip": {"steps": 5}, "unet": {"steps": 6}}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "unet.json").write_text('{"steps": 7}')
    assert stages._notes()["unet"] == {"steps": 7}


@pytest.fixture(scope="module")
def pool():
    return Pool(26, 16, torch.device("cpu"))


def test_a_pool_never_draws_a_held_out_pair_and_draws_all_others(pool):
    batch = pool.draw(20_000, torch.Generator().manual_seed(0))
    drawn = {
        (world.OBJECTS[pair // len(COLOURS)], COLOURS[pair % len(COLOURS)]) for pair in batch.pair.tolist()
    }
    assert drawn == set(world.train_pairs())
    assert batch.images.min() >= 0.0 and batch.images.max() <= 1.0


def test_a_pool_renews_its_oldest_views_and_keeps_its_balance():
    pool = Pool(52, 16, torch.device("cpu"))
    before = pool._layers.clone()
    pool.renew()
    assert not torch.equal(pool._layers[:2], before[:2])
    assert torch.equal(pool._layers[2:], before[2:])
    assert pool._object.bincount().tolist() == [2] * len(world.OBJECTS)


def test_a_drawn_picture_is_the_render_of_its_labels(pool):
    """White backgrounds are the commonest: against white, a drawn picture differs from no render of its paint."""
    batch = pool.draw(200, torch.Generator().manual_seed(1))
    for index in range(0, 200, 20):
        kind = int(batch.object[index])
        paint = torch.tensor(world.COLOURS[COLOURS[int(batch.colour[index])]])
        layers = pool._layers[pool._object == kind].float() / 255.0
        front = layers[:, :3] + layers[:, 3:4] * paint.view(3, 1, 1)
        inside = (layers[:, 4:] == 1.0).expand(-1, 3, -1, -1)
        off = torch.where(inside, (front - batch.images[index]).abs(), 0.0).flatten(1).amax(1)
        assert off.min() < 1e-5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unet/config.json", '{"block_out_channels": [320, 640, 1280, 1280]}'),  # Stable Diffusion's
        ("vae/mine.txt", "x"),
        ("text_encoder/mine.txt", "x"),
        ("clip/mine.py", "x"),
        ("clip/config.json", '{"model_type": "clip", "projection_dim": 512}'),
        ("tokenizer/mine.txt", "x"),
        ("scheduler/mine.txt", "x"),
        ("scheduler/scheduler_config.json", '{"_class_name": "DDIMScheduler", "beta_end": 0.02}'),
        ("model_index.json", "[]"),
        ("README.md", "# My project"),
        ("report.json", "{}"),
        ("toybox_samples.png", "x"),
        ("checkpoints/unet.json", '{"my": "notes"}'),
    ],
)
def test_nothing_else_is_trained_over(tmp_path, capsys, name, text):
    """Also `--output` in the place of `--start`, and a repository's own folder."""
    output = tmp_path / "output"
    (output / name).parent.mkdir(parents=True)
    (output / name).write_text(text)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    words = ["--preset", "cpu", "--device", "cpu", "--threads", "1", "--cache", str(tmp_path / "cache")]
    assert train.main([*words, "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {output / name.partition('/')[0]}") and "choose another --output" in error
    )
    assert error.count("\n") == 1
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_folder_of_ours_and_a_copy_of_it_are_trained_further(tmp_path):
    models.refuse_others(PRIOR)
    shutil.copytree(PRIOR, tmp_path / "copy")
    models.refuse_others(tmp_path / "copy")
    with models.reporting(tmp_path / "copy"):
        (tmp_path / "copy" / "report.json").write_text("{}")
    models.refuse_others(tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("# The toybox prior\n\nMy notes.\n")
    with pytest.raises(UserError, match=r"README\.md: expected no file, or one that this program made"):
        models.refuse_others(tmp_path / "copy")


def test_linked_weights_are_never_trained_over(tmp_path):
    (tmp_path / "clip").symlink_to(PRIOR / "clip", target_is_directory=True)
    with pytest.raises(UserError, match="found another"):
        models.refuse_others(tmp_path)


def test_a_users_files_beside_the_weights_stay(clip, tokenizer, tmp_path):
    shutil.copytree(PRIOR, tmp_path, dirs_exist_ok=True)
    mine = [tmp_path / folder / "mine.safetensors" for folder in (".", "clip", "unet", "tokenizer")]
    for path in mine:
        path.write_text("x")
    stale = tmp_path / "clip" / "model-00001-of-00003.safetensors"
    stale.write_text("what another number of shards has left")
    models.save_clip(clip, tokenizer, tmp_path / "clip")
    vae, encoder, tokenizer = _parts(PRIOR)
    models.save_pipeline(tmp_path, vae, encoder, tokenizer, models.build_unet())
    assert [path.read_text() for path in mine] == ["x"] * 4 and not stale.exists()
    models.refuse_others(tmp_path)
    _check_pipeline(tmp_path)
    names = {path.relative_to(PRIOR) for path in PRIOR.rglob("*")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == names | {
        path.relative_to(tmp_path) for path in mine
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "0"], "--threads: expected more than 0, got 0"),
        (["--minutes", "nan"], "--minutes: expected more than 0, got nan"),
        (["--steps", "-1"], "--steps: expected more than 0, got -1"),
        (["--device", "gpu"], "--device: expected cpu or cuda, got 'gpu'"),
    ],
)
def test_a_number_that_no_training_can_have_is_one_line(tmp_path, capsys, words, message):
    assert train.main([*words, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_tilde_that_no_shell_has_expanded_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    caches, trained = [], []
    monkeypatch.setattr(renders, "generate", lambda *settings: caches.append(settings[-1]))
    monkeypatch.setattr(training.Training, "report", lambda stages: trained.append(stages))
    assert dataset.main(["--cache=~/cache"]) == 0
    words = ["--output=~/prior", "--cache=~/cache", "--start=~/start", "--stage=report", "--device=cpu"]
    assert train.main([*words, "--threads=1"]) == 0
    (stages,) = trained
    assert [*caches, stages.cache, stages.output, stages.start] == [
        tmp_path / name for name in ("cache", "cache", "prior", "start")
    ]


def test_ctrl_c_is_one_line(tmp_path, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(renders, "generate", stop)
    assert dataset.main(["--cache", str(tmp_path)]) == 130
    assert (
        capsys.readouterr().err
        == "stopped; repeat the command to continue from the shards that are written\n"
    )

    monkeypatch.setattr(training, "Training", stop)
    assert train.main(["--output", str(tmp_path), "--threads", "1", "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "stopped; repeat the command to continue from the checkpoints\n"


def test_view_indices_are_those_of_the_words():
    azimuths = torch.tensor([0.0, 45.0, -45.0, 46.0, 134.0, -90.0, 270.0, 135.0, -135.0, 180.0, 540.0, 360.0])
    words = [world.VIEWS[index] for index in view_index(azimuths).tolist()]
    assert words == [world.view_word(azimuth) for azimuth in azimuths.tolist()]


def test_latents_are_renewed_in_turn(cache):
    stages = training.Training(PRIOR, cache, torch.device("cpu"), training.PRESETS["cpu"])
    material = train_unet.Material(stages.source, *_parts(PRIOR), count=6, renewed=4)
    before = material.latents.clone()
    material.renew()
    changed = (material.latents != before).flatten(1).any(1)
    assert changed.tolist() == [True] * 4 + [False] * 2
    material.renew()
    assert (material.latents != before).flatten(1).any(1).all()


def test_compilation_that_fails_leaves_the_plain_function(caplog):
    def plain(value):
        return value + 1

    def trial(function):
        raise RuntimeError("no compiler")

    assert fastest(plain, trial, True, "test") is plain
    assert "continues without compilation, which failed (no compiler)" in caplog.text
    assert fastest(plain, trial, False, "test") is plain


def test_the_shipped_prior_loads_without_our_code():
    _check_pipeline(PRIOR)
    weights = sum(path.stat().st_size for path in PRIOR.rglob("*.safetensors"))
    assert weights <= 40e6


def _parts(prior):
    pipeline = StableDiffusionPipeline.from_pretrained(prior, local_files_only=True)
    return pipeline.vae, pipeline.text_encoder, pipeline.tokenizer


def _check_pipeline(prior):
    pipeline = StableDiffusionPipeline.from_pretrained(prior, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red car, front view", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 128, 128, 3) and np.isfinite(image).all()
    clip = CLIPModel.from_pretrained(prior / "clip", local_files_only=True)
    processor = CLIPProcessor.from_pretrained(prior / "clip", local_files_only=True)
    inputs = processor(
        text=["a red car", "a cat"], images=[image[0]], return_tensors="pt", padding=True, do_rescale=False
    )
    assert clip(**inputs).logits_per_image.shape == (1, 2)


def test_the_shipped_settings_name_no_folder_of_a_machine():
    assert [path for path in PRIOR.rglob("*.json") if '": "/' in path.read_text()] == []
