"""The judge: its arithmetic in closed form, its cameras, its errors, and what it says of the truth."""

import json
import math

import pytest
import torch

from arguments import GenerateCamParams, load, to_yaml
from dreammapping.evaluation.command import main
from dreammapping.evaluation.exhibit import Exhibit, all_around
from dreammapping.evaluation.judge import judge, judge_run, score, table
from dreammapping.finished import FinishedRun
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians, write_points
from tests.tiny_models import save_clip
from tests.tolerances import NETWORK
from toybox import raycast, world
from toybox.clip import Clip
from toybox.recognition import caption_pairs, parse_caption
from utils.errors import UserError
from utils.own_files import RECORD

PAIR = ("car", "blue")
ONE_HOT = torch.eye(len(caption_pairs()))
VIEW_CAPTIONS = ONE_HOT[:3]


def named(*pairs: tuple[str, str]) -> torch.Tensor:
    """Image vectors that are nearest to the captions of these pairs."""
    return ONE_HOT[[caption_pairs().index(pair) for pair in pairs]]


class ColourBlind:
    """A CLIP for which every image is the first caption of the last list it read."""

    image_size = 16

    def embed_images(self, images):
        return torch.eye(4)[:1].expand(len(images), -1)

    def embed_texts(self, texts):
        return torch.eye(4)[[0] + [1] * (len(texts) - 1)]


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it, with 50 Gaussians of 16 px."""
    settings = ["text=a blue car", "image_w=16", "image_h=16", "ModelParams.sh_degree=0", "model_key=toybox"]
    config, _ = load([*settings, "init_num_pts=50", f"output_path={tmp_path}", "workspace=made"])
    folder = tmp_path / "made"
    points, colors = torch.rand(50, 3) - 0.5, torch.rand(50, 3)
    model = GaussianModel.from_points(points, colors, 0)
    for iteration in (5, 10):
        write_gaussians(folder / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply", model)
    write_points(folder / "init_points3d.ply", points, colors)
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


@pytest.mark.parametrize(
    ("prompt", "pair"),
    [
        ("a red car", ("car", "red")),
        ("An orange cat, side view", ("cat", "orange")),
        (" a  blue robot. ", ("robot", "blue")),
        ("a red", None),
        ("red car", None),
        ("a red zebra", None),
        ("a mauve car", None),
        ("a red car, top view", None),
        ("a DSLR photo of a red car", None),
        ("", None),
    ],
)
def test_captions_are_recognised(prompt, pair):
    assert parse_caption(prompt) == pair


def test_every_caption_of_the_world_is_recognised():
    for pair in caption_pairs():
        for view in (None, *world.VIEWS):
            assert parse_caption(world.caption(*pair, view)) == pair


def test_perfect_images_score_one():
    scores = score(named(PAIR, PAIR), ONE_HOT, VIEW_CAPTIONS, PAIR, torch.zeros(2))
    assert (scores.similarity, scores.r_precision) == (100.0, 1.0)
    assert (scores.object_accuracy, scores.colour_accuracy) == (1.0, 1.0)


def test_object_and_colour_are_counted_apart():
    images = named(PAIR, ("car", "red"), ("cat", "blue"), ("cat", "red"))
    scores = score(images, ONE_HOT, VIEW_CAPTIONS, PAIR, torch.zeros(4))
    assert (scores.r_precision, scores.object_accuracy, scores.colour_accuracy) == (0.25, 0.5, 0.5)


def test_images_of_everything_score_by_chance():
    images = ONE_HOT
    scores = score(images, ONE_HOT, VIEW_CAPTIONS, PAIR, torch.zeros(len(images)))
    assert scores.r_precision == 1 / len(images)
    assert scores.object_accuracy == 1 / len(world.OBJECTS)
    assert scores.colour_accuracy == 1 / len(world.COLOURS)


def test_similarity_is_a_hundred_times_the_cosine():
    image = 0.5 * named(PAIR) + math.sqrt(0.75) * named(("cat", "red"))
    scores = score(image, ONE_HOT, VIEW_CAPTIONS, PAIR, torch.zeros(1))
    assert scores.similarity == pytest.approx(50.0)
    assert scores.r_precision == 0.0


def test_an_asset_with_a_front_on_every_side_has_a_quarter_of_the_view_words():
    azimuths = all_around(24)(GenerateCamParams()).azimuth_deg
    scores = score(VIEW_CAPTIONS[:1].expand(24, -1), ONE_HOT, VIEW_CAPTIONS, PAIR, azimuths)
    assert scores.view_accuracy == 0.25


@pytest.mark.parametrize("views", [4, 7, 16, 24, 32])
def test_cameras_stand_evenly_around_at_two_heights(views):
    cameras = all_around(views)(GenerateCamParams())
    azimuths = cameras.azimuth_deg % 360.0
    assert len(cameras) == views
    torch.testing.assert_close(azimuths.diff(), torch.full((views - 1,), 360.0 / views), rtol=0, atol=1e-3)
    assert cameras.polar_deg.tolist() == [90.0 if index % 2 == 0 else 70.0 for index in range(views)]


@pytest.mark.parametrize("views", [16, 24, 32])
def test_no_camera_stands_between_two_view_words(views):
    azimuths = all_around(views)(GenerateCamParams()).azimuth_deg.abs()
    assert min((azimuths - border).abs().min() for border in (45.0, 135.0)) > 2.0


def test_a_white_object_is_judged_before_black(run):
    background = {
        prompt: Exhibit.of_run(run, all_around(4), prompt).background.tolist()
        for prompt in ("a white car", "a red car", "a photo")
    }
    assert background == {"a white car": [0.0] * 3, "a red car": [1.0] * 3, "a photo": [1.0] * 3}


def test_a_run_is_judged_beside_its_truth_and_its_start(run):
    result = judge_run(run, views=8, clip=ColourBlind())
    assert (result["iteration"], result["prompt"], result["gaussians"]) == (10, "a blue car", 50)
    assert result["asset"] == result["truth"] == result["start"]
    assert result["asset"]["view_accuracy"] == 0.25
    assert json.loads((run / "judge.json").read_text()) == result
    assert (run / "judge_views.png").stat().st_size > 0
    lines = table(result).splitlines()
    assert [line.split("  ")[0] for line in lines[4:]] == ["this asset", "true object", "untrained start"]


def test_a_run_of_a_card_is_judged_where_there_is_none(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("backend: auto", "backend: cuda"))
    assert FinishedRun.open(run).config.PipelineParams.backend == "cuda"
    assert judge_run(run, views=8, clip=ColourBlind())["gaussians"] == 50


KEPT = ("judge.json", "judge_views.png")


def kept(run):
    return [(run / name).read_bytes() for name in KEPT]


@pytest.mark.parametrize("name", KEPT)
def test_a_users_file_of_the_name_of_scores_stays(run, caplog, name):
    """Also beside scores that an earlier version left, without a record; and one of ours that was edited."""
    (run / name).write_text("MINE")
    judge_run(run, views=4, clip=ColourBlind())
    assert (run / name).read_text() == "MINE" and sum((run / each).exists() for each in KEPT) == 1
    assert f"{name}: expected no file, " in caplog.text and "; the scores are not kept there" in caplog.text
    (run / name).unlink()
    judge_run(run, views=4, clip=ColourBlind())
    for record in ("there", "gone"):
        (run / name).write_text("MINE")
        before = kept(run)
        if record == "gone":
            (run / RECORD).unlink()
        judge_run(run, views=8, clip=ColourBlind())
        assert kept(run) == before, record


def test_scores_are_made_again_also_where_an_earlier_version_left_them(run, caplog):
    judge_run(run, views=4, clip=ColourBlind())
    for views in (8, 6):
        judge_run(run, views=views, clip=ColourBlind())
        assert json.loads((run / "judge.json").read_text())["views"] == views
        (run / RECORD).unlink()
    assert "not kept" not in caplog.text


@pytest.mark.parametrize("asked", [{"prompt": "a green duck"}, {"iteration": 5}], ids=str)
def test_scores_of_something_else_leave_those_of_the_run(run, asked):
    judge_run(run, views=4, **asked, clip=ColourBlind())
    assert not any((run / name).exists() for name in KEPT)
    judge_run(run, views=4, prompt="a blue car", iteration=10, clip=ColourBlind())  # its own
    before = kept(run)
    judge_run(run, views=4, **asked, clip=ColourBlind())
    assert kept(run) == before


def test_without_its_points_the_start_is_made_again(run):
    finished = FinishedRun.open(run)
    stored = finished.start()
    (run / "init_points3d.ply").unlink()
    first, second = finished.start(), finished.start()
    assert len(first) == len(stored) == 50
    torch.testing.assert_close(first.means, second.means, rtol=0, atol=0)


def test_a_prompt_of_other_words_has_a_similarity_alone(run):
    result = judge_run(run, views=4, prompt="a DSLR photo of a bagel", clip=ColourBlind())
    assert "truth" not in result
    assert result["held_out"] is None
    assert result["asset"]["similarity"] == 100.0
    assert all(result["asset"][key] is None for key in result["asset"] if key != "similarity")
    assert "no caption of the toybox" in table(result)


def test_a_prompt_that_is_no_text_is_refused(capsys, run):
    """Bytes that are no UTF-8, as the command line gives them."""
    assert r"prompt: expected text in UTF-8, got '\udce9'" in error_of(capsys, run, "--prompt", "\udce9")


def test_an_earlier_iteration_can_be_judged(run):
    assert Exhibit.of_run(run, all_around(4)).iteration == 10
    assert Exhibit.of_run(run, all_around(4), iteration=5).iteration == 5


def error_of(capsys, *arguments: object) -> str:
    """The one line that the command writes when it ends with code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_a_missing_folder_is_named(capsys, tmp_path):
    error = error_of(capsys, tmp_path / "nothing")
    assert f"{tmp_path}/nothing: expected a run with its config.yaml" in error


def test_a_run_without_gaussians_is_named(capsys, run):
    for path in run.glob("point_cloud/*/*.ply"):
        path.unlink()
    assert "expected point_cloud/iteration_*/point_cloud.ply, found none" in error_of(capsys, run)


def test_an_iteration_that_was_not_saved_is_named(capsys, run):
    assert "expected iteration 5, 10, got 7" in error_of(capsys, run, "--iteration", 7)


def test_too_few_views_and_too_many_are_refused(capsys, run):
    for views in (3, 10**9):
        assert f"--views: expected 4 to 1000, got {views}" in error_of(capsys, run, "--views", views)


def test_scores_that_cannot_be_kept_are_told_all_the_same(run, clip, capsys, caplog):
    """A run that is somebody else's: its folder cannot be written."""
    (run / "judge.json").mkdir()
    result = judge_run(run, views=4, clip=clip)
    assert "judge.json: expected no file" in caplog.text and "scores are not kept there" in caplog.text
    assert "similarity" in table(result)


def test_a_missing_clip_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"expected the toybox's CLIP, found none; .* `python -m toybox\.train`"
    ):
        Clip.from_pretrained(tmp_path / "clip")


def test_a_broken_clip_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("not json")
    with pytest.raises(UserError, match="expected a CLIP, got files that fail to load"):
        Clip.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("activation", "text_layers", "image_layers"),
    [("quick_gelu", 12, 24), ("gelu", 32, 48)],
    ids=["ViT-L/14", "ViT-bigG/14"],
)
def test_a_published_clip_judges_as_transformers_own(tmp_path, activation, text_layers, image_layers):
    from transformers import CLIPImageProcessor, CLIPTokenizer

    model = save_clip(tmp_path, activation, text_layers, image_layers)
    clip, texts = Clip.from_pretrained(tmp_path), ["a red car", "a cat"]
    images = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(list(images), return_tensors="pt")
    with torch.no_grad():
        expected = model(
            **CLIPTokenizer.from_pretrained(tmp_path)(texts, padding=True, return_tensors="pt"), **pixels
        )
    torch.testing.assert_close(
        clip.embed_images(images / 255), expected.image_embeds, atol=NETWORK[torch.float32], rtol=0
    )
    torch.testing.assert_close(
        clip.embed_texts(texts), expected.text_embeds, atol=NETWORK[torch.float32], rtol=0
    )
    assert clip.embed_images(torch.rand(1, 3, 64, 64)).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def clip():
    return Clip.from_pretrained()


def test_a_prompt_too_long_for_clip_is_refused_by_how_much(clip):
    words = " ".join(["car"] * clip.text_length)
    with pytest.raises(UserError, match=f"reads {clip.text_length} tokens, got 2 more"):
        clip.embed_texts(["a red car", words])


@pytest.mark.parametrize(
    "pair", [world.train_pairs()[3], world.train_pairs()[-40], *sorted(world.HELD_OUT)[:2]]
)
def test_the_true_objects_are_recognised_by_the_shipped_clip(clip, pair):
    azimuths = all_around(8)(GenerateCamParams()).azimuth_deg
    white = world.is_distinct(torch.ones(3).numpy(), pair[1])
    background = (1.0, 1.0, 1.0) if white else (0.0, 0.0, 0.0)
    views = [
        raycast.render(*pair, azimuth, 80.0, 3.5, 0.46, 128, background)[0] for azimuth in azimuths.tolist()
    ]
    images = torch.stack([torch.from_numpy(view).permute(2, 0, 1) for view in views])
    scores = judge(images, world.caption(*pair), azimuths, clip)
    assert scores.r_precision >= 0.75
    assert scores.view_accuracy >= 0.75
