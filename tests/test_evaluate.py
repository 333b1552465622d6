"""`evaluate`: runs and pictures by one protocol, references that are kept, and one line for whatever is missing."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from arguments import GenerateCamParams, GuidanceParams, HardwareParams, load, to_yaml
from dreammapping.evaluation import evaluate as evaluation
from dreammapping.evaluation.distances import distances
from dreammapping.evaluation.evaluate import Protocol, evaluate, toybox_captions
from dreammapping.evaluation.evaluate_command import main
from dreammapping.evaluation.exhibit import Exhibit
from dreammapping.evaluation.pictures import Source, in_bytes, read_pictures, ring
from dreammapping.evaluation.references import LOCK, folder_of, made_of, references, sample
from dreammapping.evaluation.table import markdown
from guidance import ScoreModel
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from tests.finished_run import field_run
from tests.pictures import true_pictures
from tests.tiny_models import save_pipeline
from tests.tolerances import NETWORK
from utils.errors import UserError
from utils.images import write_picture
from utils.own_files import alone


def make_run(folder, prompt="a blue car", seed=0, model="toybox"):
    """A run folder as training leaves it, with 50 Gaussians of 16 px."""
    settings = [f"text={prompt}", "image_w=16", "image_h=16", "ModelParams.sh_degree=0", f"model_key={model}"]
    config, _ = load([*settings, "init_num_pts=50", f"seed={seed}"])
    rng = torch.Generator().manual_seed(seed)
    points, colors = torch.rand(50, 3, generator=rng) - 0.5, torch.rand(50, 3, generator=rng)
    model = GaussianModel.from_points(points, colors, 0)
    for iteration in (5, 10):
        write_gaussians(folder / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply", model)
    (folder / "config.yaml").write_text(to_yaml(config))
    cost = {"seconds": 30.0 + seed, "peak_memory_bytes": 2_000_000_000, "method": "vdm", "seed": seed}
    evaluations = {"score_model_evaluations": {"forward": 80, "backward": 0}}
    (folder / "run.json").write_text(json.dumps(cost | evaluations))
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def pictures(tmp_path):
    """Eight true views of a red car, as files."""
    from scene.cameras import orbit

    folder = tmp_path / "pictures"
    for index, image in enumerate(
        true_pictures("a red car", orbit(8, GenerateCamParams(), polar_deg=70.0), 64).split(1)
    ):
        write_picture(folder / f"{index}.png", image)
    return folder


@pytest.fixture(scope="module")
def prior_folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture(scope="module")
def prior(prior_folder):
    params = GuidanceParams(model_key=str(prior_folder), fp16=False)
    return ScoreModel.from_pretrained(params, "cpu", HardwareParams(memory="max"))


def test_the_cameras_are_those_of_published_scores():
    cameras = ring()(GenerateCamParams())
    assert len(cameras) == 120
    torch.testing.assert_close(cameras.polar_deg, torch.full((120,), 75.0))
    torch.testing.assert_close(
        (cameras.azimuth_deg % 360.0).diff(), torch.full((119,), 3.0), rtol=0, atol=1e-3
    )


def test_ten_views_are_drawn_by_their_seed_without_repetition():
    params = GenerateCamParams()
    first, again, other = (ring(10, seed)(params).azimuth_deg for seed in (0, 0, 1))
    assert len(first.unique()) == 10
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_run_scores_as_its_own_screenshots_do(run, tmp_path):
    exhibit = Exhibit.of_run(run, ring(6), "a blue car")
    for index, image in enumerate(exhibit.render(exhibit.asset()).split(1)):
        write_picture(tmp_path / "shots" / f"{index}.png", image)
    shots = Source.open(tmp_path / "shots", "a blue car")
    rendered, seen = evaluate([Source.open(run)], Protocol(views=6)) + evaluate([shots], Protocol())
    for key in ("prompt", "pictures", "clip", "saturation"):
        assert rendered[key] == seen[key]
    assert len(rendered["clip"]["toybox"]["scores"]) == 6 and rendered["clip"]["toybox"]["captions"] > 200
    assert rendered["cost"]["seconds"] == 30.0 and seen["cost"] == {}
    assert "true_saturation" in rendered and "true_saturation" not in seen


def test_true_pictures_are_found_among_all_captions(pictures):
    (right,) = evaluate([Source.open(pictures, "a red car")], Protocol())
    (wrong,) = evaluate([Source.open(pictures, "a blue cat")], Protocol())
    assert right["clip"]["toybox"]["r_precision"] == 1.0 and wrong["clip"]["toybox"]["r_precision"] == 0.0
    assert right["clip"]["toybox"]["score"] > wrong["clip"]["toybox"]["score"]


def test_captions_of_the_user_take_the_place_of_the_toybox_s(pictures, tmp_path):
    (tmp_path / "captions.txt").write_text("a blue cat\n\n a pink boat \n", encoding="utf-8")
    captions = evaluation.read_captions(tmp_path / "captions.txt")
    assert captions == ("a blue cat", "a pink boat")
    (row,) = evaluate([Source.open(pictures, "a red car")], Protocol(captions=captions))
    assert (row["clip"]["toybox"]["captions"], row["clip"]["toybox"]["r_precision"]) == (3, 1.0)


def test_a_caption_with_a_view_word_is_not_mistaken_for_its_own_pair():
    captions = toybox_captions("A red car, side view")
    assert captions[0] == "A red car, side view" and "a red car" not in captions
    assert toybox_captions("a DSLR photo of a car") == []


def test_an_earlier_iteration_is_seen_when_it_is_asked_for(run):
    later = GaussianModel.from_points(torch.zeros(4, 3), torch.rand(4, 3), 0)
    write_gaussians(run / "point_cloud" / "iteration_10" / "point_cloud.ply", later)
    first, last = (Source.open(run, iteration=iteration).pictures(4) for iteration in (5, None))
    assert not torch.equal(first, last)


@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_a_field_is_seen_by_the_cameras_of_the_protocol_and_beside_its_true_object(tmp_path, kind):
    folder, field = field_run(tmp_path / "ball", kind, text="a red mushroom")
    source = Source.open(folder)
    exhibit = Exhibit.of_run(folder, ring(6, seed=3))
    seen = source.pictures(6, seed=3)
    assert torch.equal(seen, in_bytes(exhibit.render(field))) and source.around(4).shape == (4, 3, 40, 40)
    (row,) = evaluate([source], Protocol(views=6))
    assert row["pictures"] == 6 and row["fine_detail"] is not None and row["true_saturation"] > 0.0


def test_a_picture_run_is_scored_particle_by_particle(tmp_path):
    config, _ = load(
        ["representation=image", "ImageParams.particles=3", "text=a red car", "model_key=toybox"]
    )
    images = in_bytes(torch.rand(3, 3, 8, 8))
    write_picture(tmp_path / "picture.png", torch.cat([*images], dim=-1)[None])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert torch.equal(Source.open(tmp_path).pictures(), images)


def test_references_are_those_of_the_pipeline_of_diffusers(prior, prior_folder):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(prior_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    config = {key: value for key, value in pipeline.scheduler.config.items() if "spacing" not in key}
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
    )
    expected = pipeline(
        ["a red car"] * 2,
        num_inference_steps=6,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(seed) for seed in (4, 9)],
        output_type="pt",
    ).images
    found = sample(prior, "a red car", [4, 9], steps=6)
    # six steps, each with guidance of 7.5, which grows what rounding leaves
    torch.testing.assert_close(found, expected, rtol=0, atol=6 * 7.5 * NETWORK[torch.float32])


def test_references_are_drawn_once_and_more_of_them_begin_like_fewer(prior, tmp_path, monkeypatch):
    monkeypatch.setattr("dreammapping.evaluation.references.STEPS", 2)
    monkeypatch.setattr("dreammapping.evaluation.references.sample", lambda *given: sample(*given, steps=2))
    spent = prior.evaluations.forward
    few = references(prior, "a red car", 3, tmp_path)
    assert prior.evaluations.forward - spent == 3 * 2 * 2
    many = references(prior, "a red car", 5, tmp_path)
    assert prior.evaluations.forward - spent == 5 * 2 * 2
    assert torch.equal(many[:3], few) and len(many.unique(dim=0)) == 5
    folder = folder_of(made_of(prior, "a red car"), tmp_path)
    (folder / "000001.png").write_bytes(b"")  # as a power cut can leave it
    assert torch.equal(references(prior, "a red car", 5, tmp_path), many)
    assert references(prior, "a red car", 2, tmp_path, seed=3).equal(many[3:])
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_references_that_another_process_draws_are_waited_for(prior, tmp_path, monkeypatch):
    """And what a killed one left half written is removed, as nobody else draws there."""
    monkeypatch.setattr("dreammapping.evaluation.references.STEPS", 2)
    monkeypatch.setattr("dreammapping.evaluation.references.sample", lambda *given: sample(*given, steps=2))
    drawn = references(prior, "a red car", 2, tmp_path)
    folder = folder_of(made_of(prior, "a red car"), tmp_path)
    before = sorted(folder.iterdir())
    picture = (folder / "000001.png").read_bytes()
    (folder / "000001.png").unlink()
    (folder / ".000001.0123abcd.partial.png").write_bytes(picture[:9])
    spent = prior.evaluations.forward
    with ThreadPoolExecutor(1) as pool:
        with alone(folder, [], lock=LOCK):
            found = pool.submit(references, prior, "a red car", 2, tmp_path)
            time.sleep(0.5)
            (folder / "000001.png").write_bytes(picture)
            assert not found.done()
        assert found.result().equal(drawn) and prior.evaluations.forward == spent
    assert sorted(folder.iterdir()) == before


def test_other_weights_prompts_and_solvers_have_other_references(prior, tmp_path, monkeypatch):
    known = made_of(prior, "a red car")
    moved = prior.provenance | {"location": "elsewhere", "model_key": "another name"}
    with monkeypatch.context() as patch:  # the content of weights counts, not their place
        patch.setitem(vars(prior), "provenance", moved)
        assert made_of(prior, "a red car") == known
    folders = {folder_of(known, tmp_path), folder_of(made_of(prior, "a blue car"), tmp_path)}
    monkeypatch.setattr("dreammapping.evaluation.references.STEPS", 49)
    folders.add(folder_of(made_of(prior, "a red car"), tmp_path))
    monkeypatch.undo()
    changed = prior.provenance | {"sha256": {"unet/x.safetensors": "0" * 64}}
    monkeypatch.setitem(vars(prior), "provenance", changed)
    folders.add(folder_of(made_of(prior, "a red car"), tmp_path))
    monkeypatch.setitem(vars(prior), "provenance", changed | {"LoRA_path": changed | {"sha256": {"l": "1"}}})
    folders.add(folder_of(made_of(prior, "a red car"), tmp_path))
    assert len(folders) == 5


def test_distances_pool_the_pictures_of_all_runs_and_each_prompt_s_references_once(
    tmp_path, prior_folder, monkeypatch
):
    monkeypatch.setattr("dreammapping.evaluation.references.STEPS", 2)
    monkeypatch.setattr("dreammapping.evaluation.references.sample", lambda *given: sample(*given, steps=2))
    runs = [("a blue car", 0), ("a blue car", 1), ("a red cat", 0)]
    sources = [
        Source.open(make_run(tmp_path / f"{index}", *each, model=prior_folder))
        for index, each in enumerate(runs)
    ]
    protocol = Protocol(views=5, references=4, cache=tmp_path / "references")
    (row,) = evaluate(sources, protocol, pool=True)
    assert (row["distances"]["pictures"], row["distances"]["references"]) == (15, 8)
    score = row["clip"]["toybox"]["score"]
    values = [part["clip"]["toybox"]["score"] for part in row["parts"]]
    assert score["mean"] == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2)
    assert (score["prompts"], score["runs"]) == (2, 3) and score["low"] <= score["mean"] <= score["high"]
    assert row["cost"]["seconds"] == pytest.approx((30 + 31 + 30) / 3)
    assert row["parts"][2]["distances"]["references"] == 4
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_distances_are_those_of_the_features(pictures, run):
    from dreammapping.evaluation.encoders import load_encoder

    (row,) = evaluate([Source.open(run)], Protocol(views=6, against=pictures))
    clip = load_encoder("toybox")
    seen, known = (
        clip.embed_images(each)
        for each in (Source.open(run).pictures(6), Source.open(pictures, "").pictures())
    )
    assert row["distances"] == {"features": "toybox", **distances(seen, known).as_dict()}


def sharpness(images, prompt):
    assert prompt == "a blue car"
    return images.diff(dim=-1).abs().mean(dim=(1, 2, 3))


def broken(images, prompt):
    return [1.0, float("nan")]


def test_a_score_of_the_user_is_called_with_pictures_and_prompt(run):
    name = f"{__name__}:sharpness"
    (row,) = evaluate([Source.open(run)], Protocol(views=3, scorers=(name,)))
    expected = sharpness(Source.open(run).pictures(3), "a blue car").mean().item()
    assert row["scorers"] == {name: pytest.approx(expected)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sharpness", "expected module:callable, got sharpness"),
        ("no_such_module:score", "expected a module that can be imported, got no_such_module"),
        ("json:nothing", "expected a callable nothing in json, found none"),
        (f"{__name__}:broken", "expected one finite number of .*broken, or 2, one for each picture, got"),
    ],
)
def test_a_score_that_cannot_be_used_is_named(run, name, message):
    with pytest.raises(UserError, match=message):
        evaluate([Source.open(run)], Protocol(views=2, scorers=(name,)))


def error_of(capsys, *arguments):
    """The one line that the command writes when it ends with code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_all_that_is_missing_is_named_before_anything_is_rendered(capsys, run, pictures, monkeypatch):
    monkeypatch.setattr(Exhibit, "render", lambda *_: pytest.fail("rendered"))
    monkeypatch.setattr("dreammapping.evaluation.encoders.load_encoder", lambda *_: pytest.fail("loaded"))
    words = ["--encoder", "vit-l-14", "--encoder", "no clip", "--references", 2, "--scorer", "none"]
    error = error_of(capsys, run, pictures, "--prompt", "a red car", *words)
    for part in (
        "cannot load 'vit-l-14' (openai/clip-vit-large-patch14)",
        "got no clip, which is no folder, file, alias or hub id",
        f"{pictures}: expected a prior that draws references, got none; give --model or --against",
        "expected module:callable, got none",
    ):
        assert part in error


def test_a_prior_that_is_missing_is_named_before_anything_is_rendered(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Exhibit, "render", lambda *_: pytest.fail("rendered"))
    run = make_run(tmp_path / "run", model="sd21-base")
    assert "cannot load 'sd21-base'" in error_of(capsys, run, "--references", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--views", "0"], "--views: expected 1 to 1000000, got 0"),
        (["--references", "-1"], "--references: expected 0 to 1000000, got -1"),
        (["--seed", str(2**64)], f"--seed: expected 0 to 4294967295, got {2**64}"),
        (["--scorer", ".mine:score"], "expected a module that can be imported, got .mine"),
        (["--features", "toybox"], "--features: expected --references or --against beside it"),
        (["--captions", "nowhere.txt"], "--captions: expected a text file, got nowhere.txt"),
        (["--iteration", "7"], "expected iteration 5, 10, got 7"),
        (["--against", "nowhere"], "nowhere: expected a run with its config.yaml, or pictures"),
        (["--views", "1", "--against", "{pictures}"], "expected at least 2 pictures, got 1"),
    ],
)
def test_words_that_cannot_be_used_are_named(capsys, run, pictures, words, message):
    assert message in error_of(capsys, run, *(word.replace("{pictures}", str(pictures)) for word in words))


def test_pictures_to_compare_with_are_looked_for_before_anything_is_loaded(capsys, run, monkeypatch):
    monkeypatch.setattr(evaluation.encoders, "load_encoder", lambda *_: pytest.fail("loaded"))
    assert "nowhere: expected a run" in error_of(capsys, run, "--against", "nowhere")


def test_a_mark_of_the_encoding_is_no_letter_of_a_prompt(tmp_path, pictures):
    """As editors of Windows write one."""
    (pictures / "prompt.txt").write_text("a red car\n", encoding="utf-8-sig")
    assert Source.open(pictures).prompt == "a red car"
    assert evaluation.read_captions(pictures / "prompt.txt") == ("a red car",)


def test_a_folder_or_a_pipe_with_the_name_of_a_picture_is_none(tmp_path, pictures):
    before = Source.open(pictures, "a red car").pictures()
    (pictures / "old.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(pictures / "pipe.png")
    assert torch.equal(Source.open(pictures, "a red car").pictures(), before)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_captions_from_a_pipe_are_not_waited_for(capsys, tmp_path, pictures):
    os.mkfifo(tmp_path / "captions")
    error = error_of(capsys, pictures, "--prompt", "a red car", "--captions", tmp_path / "captions")
    assert "--captions: expected a text file, got a pipe or device, " in error


def test_a_folder_without_pictures_or_prompt_is_named(capsys, tmp_path, pictures):
    assert "nothing: expected a run with its config.yaml, or pictures" in error_of(
        capsys, tmp_path / "nothing"
    )
    assert "expected a prompt for a folder of pictures, got none; give --prompt" in error_of(capsys, pictures)
    (pictures / "broken.png").write_bytes(b"no picture")
    assert "broken.png: expected a picture, got" in error_of(capsys, pictures, "--prompt", "a red car")
    write_picture(pictures / "broken.png", torch.zeros(1, 3, 5, 9))
    error = error_of(capsys, pictures, "--prompt", "a red car")
    assert "expected pictures of one size, got 64x64 and 9x5" in error


def test_the_command_writes_a_table_and_its_numbers(capsys, run, tmp_path):
    file = tmp_path / "scores" / "numbers.json"
    assert main([str(run), "--views", "2", "--json", str(file)]) == 0
    shown, kept = capsys.readouterr().out, json.loads(file.read_text())
    assert kept["protocol"]["views"] == 2 and kept["rows"][0]["source"] == str(run)
    score = kept["rows"][0]["clip"]["toybox"]["score"]
    heading, _, line = shown.splitlines()[:3]
    assert "CLIP score, toybox" in heading and f"| {score:.2f} |" in line and "| 80 + 0 | 2.00 |" in line
    assert "FID" not in shown
    assert main([str(run), "--views", "2", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == kept


def test_names_of_folders_are_no_markup_in_the_table(tmp_path):
    run = make_run(tmp_path / "a|b <i>")
    rows = evaluate([Source.open(run)], Protocol(views=1))
    line = markdown(rows).splitlines()[2]
    assert "a\\|b &lt;i>" in line


def test_the_table_says_what_its_numbers_stand_on(run, pictures, tmp_path):
    sources = [Source.open(run), Source.open(make_run(tmp_path / "other", seed=1))]
    text = markdown(evaluate(sources, Protocol(views=4, against=pictures), pool=True))
    assert "| 2 together | 8 |" in text and "| 8, 8 |" in text
    assert "features of toybox" in text and "FID falls as N grows" in text
    assert "95 % intervals over prompts and seeds" in text


def test_pictures_are_read_as_they_were_written(tmp_path):
    images = in_bytes(torch.rand(2, 3, 6, 7))
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, images.split(1), strict=True):
        write_picture(path, image)
    assert torch.equal(read_pictures(paths), images)


def test_a_run_that_has_lost_its_manifest_is_scored_without_its_cost(run):
    (run / "run.json").unlink()
    assert Source.open(run).cost() == {}
    shutil.rmtree(run / "point_cloud")
    with pytest.raises(UserError, match="let the run save first"):
        Source.open(run)
