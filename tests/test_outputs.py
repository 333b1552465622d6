"""What a run leaves: videos with an encoder that fails, files in one frame, and an asset that can be seen."""

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from plyfile import PlyData

from arguments import GenerateCamParams, load, to_yaml
from dreammapping import optimize
from dreammapping import outputs as outputs_module
from dreammapping.finished import FinishedRun
from dreammapping.gaussians import Gaussians, plain_background
from dreammapping.metrics import Metrics
from dreammapping.optimization import Optimization
from dreammapping.outputs import SceneOutputs, to_be_seen
from gaussian_renderer import render
from scene.cameras import cameras_json, orbit
from scene.ply import read_gaussians, read_points, write_gaussians
from tests.gaussians import random_gaussians
from train import main
from utils.contact_sheet import GAP
from utils.errors import UserError
from utils.files import write_text
from utils.images import read_picture, write_picture
from utils.run import Run
from utils.video import frame_count, try_encoder, video
from utils.writer import Writer

pytestmark = pytest.mark.whole_runs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def words(prior, tmp_path):
    """Overrides that make a run of 8 iterations with every output."""
    return [
        f"model_key={prior}", f"output_path={tmp_path}", "workspace=run", "device=cpu", "text=a red car",
        "fp16=false", "guidance=sds", "perpneg=false", "iterations=8", "checkpoint_interval=4", "log_interval=2",
        "video_frames=3", "pro_frames_num=4", "vis_interval=4", "init_num_pts=120", "image_w=32", "image_h=32",
        "C_batch_size=1", "warmup_iter=4", "densify_from_iter=1", "densification_interval=3", "test_ratio=1",
    ]  # fmt: skip


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    """Puts a script in FFmpeg's place; `$REAL` is the true one, `$target` the file that it is to write."""
    import imageio_ffmpeg

    real = imageio_ffmpeg.get_ffmpeg_exe()

    def put(script):
        path = tmp_path / "ffmpeg"
        path.write_text(f"#!/bin/sh\nREAL={real}\nfor target; do :; done\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        imageio_ffmpeg.get_ffmpeg_exe.cache_clear() if hasattr(
            imageio_ffmpeg.get_ffmpeg_exe, "cache_clear"
        ) else None

    return put


BROKEN = {
    "dies at its end": 'cat > /dev/null; echo half > "$target"; echo "[mp4 @ 0x1] No space left on device" >&2; exit 1',
    "dies at once": 'echo "[vost @ 0x1] Unknown encoder libx264" >&2; exit 8',
    "is killed": '"$REAL" "$@"; kill -9 $$',
    "lies": '"$REAL" "$@"; head -c 300 "$target" > "$target.cut"; mv "$target.cut" "$target"; exit 0',
    "writes nothing": "cat > /dev/null; exit 0",
}
WORKS_FOR_THE_TRIAL = 'case "$target" in *.trial.*) exec "$REAL" "$@";; esac\n'


def frames(count, size=(32, 48)):
    return [np.full((*size, 3), 20 * index, np.uint8) for index in range(count)]


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", BROKEN)
def test_a_video_is_whole_or_absent_and_the_reason_is_said(tmp_path, encoder, way):
    encoder(BROKEN[way])
    place = tmp_path / "videos"
    with (
        pytest.raises(
            UserError, match=r"a\.mp4: the video cannot be encoded \(.+\); .*IMAGEIO_FFMPEG_EXE"
        ) as caught,
        video(place / "a.mp4") as write,
    ):
        for frame in frames(5):
            write(frame)
    assert "\n" not in str(caught.value)
    assert contents(place) == []
    with pytest.raises(UserError, match="cannot be encoded"):
        try_encoder(place)
    assert contents(place) == []


def test_ffmpegs_own_words_are_the_reason(tmp_path, encoder):
    encoder(BROKEN["dies at its end"])
    with pytest.raises(UserError, match=r"\(No space left on device\)"):
        try_encoder(tmp_path)


def test_no_encoder_at_all_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        try_encoder(tmp_path)
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: (_ for _ in ()).throw(RuntimeError("none")))
    with pytest.raises(UserError, match="there is no FFmpeg"):
        try_encoder(tmp_path)


def test_a_video_without_frames_is_refused(tmp_path):
    with pytest.raises(UserError, match="no frame"), video(tmp_path / "a.mp4"):
        pass
    assert contents(tmp_path) == []


def test_what_stops_the_drawing_stops_the_encoder_and_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), video(tmp_path / "a.mp4") as write:
        write(frames(1)[0])
        raise ZeroDivisionError
    assert contents(tmp_path) == []


def test_of_two_videos_the_one_that_fails_is_named(tmp_path, encoder):
    encoder('case "$target" in *first*) exit 3;; esac\nexec "$REAL" "$@"')
    said = r"first\.mp4: the video cannot be encoded"
    with (
        pytest.raises(UserError, match=said),
        video(tmp_path / "first.mp4") as first,
        video(tmp_path / "second.mp4") as second,
    ):
        for frame in 100 * frames(5, (256, 256)):
            first(frame)
            second(frame)


class Ring:
    """A scene whose frames are too many to be kept: each is drawn when it is asked for."""

    sh_degree = 2

    def look(self, cameras):
        for start in range(0, len(cameras), 8):
            count = len(cameras[start : start + 8])
            shade = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
            yield (
                shade.expand(-1, 3, cameras.height, cameras.width),
                shade.expand(-1, 1, cameras.height, cameras.width),
            )

    def points(self):
        return torch.tensor([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.6]]), torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])

    def save(self, folder, step):
        write_text(folder / f"asset_{step}", "")
        return folder / f"asset_{step}"


@pytest.fixture
def outputs(tmp_path):
    """Outputs of a `Ring` with the settings that are named, in a folder of their own."""

    run = Run(tmp_path / "run")
    run.folder.mkdir()

    def make(*words):
        common = ["model_key=toybox", "text=a red car", f"output_path={tmp_path}", "workspace=run"]
        config, _ = load([*common, "image_w=32", "image_h=32", *words])
        return SceneOutputs(config, run, Ring())

    return make


def test_the_frames_of_a_video_are_never_all_in_memory(outputs):
    """Two rings of 200 frames, drawn at 256 x 256, are 79 MB a video; eight views with their floats are 16."""
    made = outputs("video_frames=200", "image_w=64", "image_h=64", "test_ratio=1", "save_process=false")
    tracemalloc.start()
    try:
        with made:
            made.write_due(1, dict)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    folder = made.run.path("videos", "1_iteration")
    assert [frame_count(folder / f"video_{name}_1.mp4") for name in ("rgb", "depth")] == [400, 400]


def test_memory_that_runs_out_while_a_video_is_drawn_costs_the_video_alone(outputs):
    made = outputs("video_frames=20", "test_ratio=1", "iterations=1")
    made.scene.look = lambda cameras: _full_after(Ring().look(cameras), len(cameras) == 40)
    with pytest.raises(MemoryError):
        made.write_due(1, dict)
    assert made.run.path("asset_1").exists()
    assert not list(made.run.folder.rglob("*.mp4")) and not list(made.run.folder.rglob("*.partial*"))


def _full_after(chunks, full):
    yield next(chunks)
    if full:
        raise MemoryError
    yield from chunks


@pytest.mark.parametrize("trial", [True, False])
@pytest.mark.parametrize("way", BROKEN)
def test_an_asset_is_finished_without_its_videos_with_one_warning(outputs, encoder, caplog, trial, way):
    encoder((WORKS_FOR_THE_TRIAL if trial else "") + BROKEN[way])
    made = outputs("iterations=8", "pro_frames_num=4", "video_frames=3")
    with made:
        for step in range(1, 9):
            made.write_due(step, dict)
    made.write_end()
    warnings = [record.message for record in caplog.records if "video" in record.message]
    assert len(warnings) == 1 and "the run continues without videos" in warnings[0]
    assert made.run.path("asset_8").exists()
    assert not [name for name in contents(made.run.folder) if name.endswith(".mp4") or "partial" in name]


@pytest.mark.parametrize("lack", ["an encoder", "the wish"])
def test_a_finished_run_that_lacks_its_turntable_gets_it_when_it_is_resumed(outputs, encoder, lack):
    words = ["iterations=2", "video_frames=3", "save_process=false"]
    if lack == "an encoder":
        encoder(BROKEN["dies at once"])
    made = outputs(*words, *["save_video=false"] * (lack == "the wish"))
    with made:
        for step in (1, 2):
            made.write_due(step, dict)
    made.write_end()
    folder = made.run.path("videos", "2_iteration")
    assert not folder.exists()
    encoder('exec "$REAL" "$@"')
    made = outputs(*words)
    with made:
        made.write_end()
    videos = [folder / f"video_{name}_2.mp4" for name in ("rgb", "depth")]
    assert [frame_count(path) for path in videos] == [6, 6]
    kept = [path.stat().st_mtime_ns for path in videos]
    made.write_end()
    assert [path.stat().st_mtime_ns for path in videos] == kept


def test_the_encoder_is_tried_before_the_first_iteration_and_only_where_videos_are_wanted(
    outputs, encoder, caplog
):
    encoder(BROKEN["dies at once"])
    with outputs():
        assert "Unknown encoder libx264" in caplog.text
    caplog.clear()
    with outputs("save_video=false", "save_process=false"):
        assert "video" not in caplog.text


def shown(path):
    """The mean of each frame of a video."""
    reader = cv2.VideoCapture(str(path))
    found = [float(reader.read()[1].mean()) for _ in range(frame_count(path))]
    reader.release()
    return found


def test_a_run_that_goes_on_adds_to_the_video_of_the_process_and_one_that_is_finished_keeps_it(outputs):
    def go(first, last, *words):
        made = outputs(f"iterations={last}", "save_video=false", "test_ratio=1", *words)
        made.scene.look = lambda cameras: iter(
            [(torch.full((1, 3, cameras.height, cameras.width), now / 20), None)]
        )
        made._write_test_views = lambda step: None
        with made:
            for now in range(first, last + 1):
                made.write_due(now, dict)
        made.write_end()
        return shown(made.run.path("process_videos", "video_rgb.mp4"))

    def gray(*steps):
        return pytest.approx([255 * step / 20 for step in steps], abs=4)

    assert go(1, 8, "pro_frames_num=4") == gray(2, 4, 6, 8)
    assert go(9, 8, "pro_frames_num=4") == gray(2, 4, 6, 8)
    assert go(9, 16, "pro_frames_num=4") == gray(2, 4, 6, 8, 12, 16)
    assert go(17, 18, "pro_frames_num=9", "image_w=64") == gray(2, 4, 6, 8, 12, 16, 18)


def test_a_frame_that_is_broken_or_not_ours_is_passed_over(outputs):
    made = outputs("iterations=1000")
    folder = made.run.path("process_videos", "frames")
    for step in (2, 10, 999, 1001):
        write_picture(folder / f"{step:03d}.jpg", torch.full((1, 3, 32, 32), step / 2000))
    (folder / "000005.jpg").write_bytes(b"")
    (folder / "mine.jpg").write_bytes(b"")
    made.write_end()
    assert len(shown(made.run.path("process_videos", "video_rgb.mp4"))) == 3


def test_every_file_that_shows_the_scene_is_in_the_frame_of_the_ply(outputs, tmp_path):
    """(x, y, z) of ours is (-x, -z, -y) there."""
    made = outputs()
    made.write_start()
    points, _ = Ring().points()
    expected = torch.stack([-points[:, 0], -points[:, 2], -points[:, 1]], dim=1).numpy()
    for name in ("init_points3d.ply", "input.ply"):
        vertices = PlyData.read(made.run.path(name))["vertex"]
        assert np.array_equal(np.stack([vertices[axis] for axis in "xyz"], axis=1), expected)
        back, colors = read_points(made.run.path(name))
        assert torch.equal(back, points) and torch.equal(colors, Ring().points()[1])
    front = json.loads(made.run.path("cameras.json").read_text())[0]
    assert front["position"] == pytest.approx([0, 0, -3.5], abs=1e-6)
    assert front["rotation"] == pytest.approx(np.eye(3), abs=1e-6), "the front camera's axes are the file's"


def test_the_text_beside_the_ply_has_its_positions(words, tmp_path):
    subject = Optimization(load(words)[0]).subject
    path = subject.save(tmp_path, 3)
    vertices = PlyData.read(path)["vertex"]
    table = np.loadtxt(path.with_name("point_cloud_rgb.txt"))
    np.testing.assert_allclose(table[:, :3], np.stack([vertices[axis] for axis in "xyz"], axis=1), atol=1e-6)


def test_poses_of_the_cameras_file_show_the_ply_as_it_is(tmp_path):
    """A viewer that knows nothing of our frame sees what our renderer saw."""
    model, params = random_gaussians(40), GenerateCamParams(image_w=48, image_h=32)
    cameras = orbit(3, params, elevated_ring=True)
    write_gaussians(tmp_path / "a.ply", model)
    unmarked = (tmp_path / "a.ply").read_bytes().replace(b"comment dreammapping frame=rdf\n", b"")
    (tmp_path / "a.ply").write_bytes(unmarked)
    taken = read_gaussians(tmp_path / "a.ply")  # as the numbers stand there
    listed = json.loads(json.dumps(cameras_json(cameras)))
    to_world, centers = (torch.tensor([entry[key] for entry in listed]) for key in ("rotation", "position"))
    poses = torch.eye(4).repeat(len(listed), 1, 1)
    poses[:, :3, :3] = to_world.transpose(1, 2)
    poses[:, :3, 3] = -torch.einsum("bji,bj->bi", to_world, centers)
    theirs = dataclasses.replace(cameras, world_to_camera=poses)
    with torch.no_grad():
        seen, ours = (
            render(each, views, torch.ones(3)).images for each, views in ((taken, theirs), (model, cameras))
        )
    torch.testing.assert_close(seen, ours, atol=1e-3, rtol=0)
    assert (ours - 1).abs().amax() > 0.1, "something is in sight"


def test_sibr_reads_names_that_are_text_and_the_degree_of_the_file(outputs):
    made = outputs("sh_degree=0")
    made.write_start()
    cameras = json.loads(made.run.path("cameras.json").read_text())
    assert [entry["img_name"] for entry in cameras] == [str(index) for index in range(len(cameras))]
    assert re.search(r"sh_degree=2\b", made.run.path("cfg_args").read_text())


def test_a_finished_run_of_before_is_read_in_its_own_frame(tmp_path):
    """Earlier versions wrote cameras and start in the frame of the program, which no key and no comment names."""
    config, _ = load(["model_key=toybox", "text=a red car", "image_w=40", "image_h=24"])
    expected = orbit(5, config.GenerateCamParams)
    write_text(tmp_path / "config.yaml", to_yaml(config))
    entries = cameras_json(expected)
    old = [
        {key: value for key, value in entry.items() if key != "frame"}
        | {
            "rotation": expected.world_to_camera[index, :3, :3].T.tolist(),
            "position": expected.centers[index].tolist(),
        }
        for index, entry in enumerate(entries)
    ]
    for listed in (old, entries):
        write_text(tmp_path / "cameras.json", json.dumps(listed))
        found = FinishedRun.open(tmp_path).cameras()
        for name, values in expected.tensors().items():
            near = {"rtol": 1e-5, "atol": 1e-3 if name.endswith("_deg") else 1e-5}
            torch.testing.assert_close(found.tensors()[name], values, **near)


def test_the_start_of_a_finished_run_is_the_runs_start(words, tmp_path):
    optimization = Optimization(load(words)[0])
    means = optimization.subject.gaussians.means.detach().clone()
    optimize(load(words)[0], quiet=True)
    assert torch.equal(FinishedRun.open(tmp_path / "run").start().means.detach(), means)


def fed(words, *more):
    """What the prior's encoder is given in the first iteration, and the gradient that comes back to the means."""
    optimization = Optimization(load([*words, *more, "as_latent_ratio=0"])[0])
    subject, seen = optimization.subject, []
    posterior = optimization.score_model._posterior
    optimization.score_model._posterior = lambda images: posterior(seen.append(images.detach()) or images)
    shown = subject.show(1, optimization.rng)
    shown.seen.retain_grad()
    sum(optimization._guide(shown, 1).losses.values()).backward()
    return seen[0], subject.gaussians.means.grad


@pytest.mark.parametrize("height", [16, 64])
def test_the_prior_sees_the_square_of_the_width_whatever_the_height(words, height):
    images, gradient = fed(words, f"image_h={height}")
    expected, expected_gradient = fed(words)
    assert torch.equal(images, expected)
    assert torch.equal(gradient, expected_gradient) and gradient.abs().amax() > 0


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ((32, 16), (128, 64)),
        ((128, 128), (512, 512)),
        ((300, 150), (512, 256)),
        ((512, 512), (512, 512)),
        ((600, 900),) * 2,
    ],
)
def test_small_renders_are_drawn_larger_for_people_and_large_ones_as_they_are(asked, drawn):
    params = GenerateCamParams(image_w=asked[0], image_h=asked[1])
    larger = to_be_seen(params)
    assert (larger.image_w, larger.image_h) == drawn
    before, after = orbit(1, params), orbit(1, larger)
    assert torch.equal(before.fov_x, after.fov_x) and torch.allclose(before.fov_y, after.fov_y)


def test_test_views_and_videos_have_four_times_the_size_that_is_trained_at(words, tmp_path):
    assert main(["--quiet", *words, "image_h=16"]) == 0
    folder = tmp_path / "run" / "test_six_views" / "8_iteration"
    assert read_picture(folder / "render_view_0.png").shape == (64, 128, 3)
    listed = json.loads((tmp_path / "run" / "cameras.json").read_text())[0]
    assert (listed["width"], listed["height"]) == (128, 64)
    assert read_picture(folder / "all_views.png").shape[1] == 8 * (128 + GAP) - GAP


def test_how_large_it_is_drawn_changes_nothing_of_the_asset(words, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs_module, "LARGER", 1)
    plain = optimize(load(words)[0]).gaussians
    monkeypatch.setattr(outputs_module, "LARGER", 3)
    larger = optimize(load([*words, "workspace=larger"])[0]).gaussians
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), larger.parameters(), strict=True))


def test_an_asset_of_white_is_seen_on_the_ground_of_the_test_views(words):
    background = plain_background(load(words)[0])
    assert background.min() > 0.8 and background.max() < 0.95
    assert not plain_background(load([*words, "white_background=false"])[0]).any()


def changed(monkeypatch, change):
    """Let something happen to the subject in the last iteration."""
    grow = Gaussians.grow

    def last(self, step, rng):
        grow(self, step, rng)
        if step == 8:
            with torch.no_grad():
                change(self.gaussians)

    monkeypatch.setattr(Gaussians, "grow", last)


UNSEEN = {
    "faint": lambda model: model.opacity_logits.fill_(-8.0),
    "far away": lambda model: model.means.add_(1e4),
    "not finite": lambda model: model.means.fill_(float("nan")),
}


@pytest.mark.parametrize("way", UNSEEN)
def test_an_asset_that_nobody_can_see_is_no_success(words, tmp_path, monkeypatch, capsys, way):
    changed(monkeypatch, UNSEEN[way])
    assert main(["--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert (
        re.search(r"error: .*point_cloud\.ply: expected (finite )?Gaussians", said)
        and said.count("error") == 1
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False


def test_on_a_cpu_no_second_thread_does_work_of_pytorch(words, monkeypatch):
    given, submit = [], Writer.submit

    def recorded(self, *task):
        given.append(task)
        submit(self, *task)

    monkeypatch.setattr(Writer, "submit", recorded)
    assert optimize(load(words)[0], quiet=True).exit_code == 0
    assert len(given) == 8 // 4 + 4  # of what is seen and predicted, and of the process
    for function, _, pixels in given:
        assert function is write_picture and isinstance(pixels, np.ndarray)


def test_a_picture_that_is_not_finite_is_no_success(words, tmp_path, monkeypatch, capsys):
    from dreammapping.picture import Picture

    monkeypatch.setattr(Picture, "images", lambda self: torch.full((1, 3, 8, 8), float("nan")))
    assert main(["--quiet", *words, "representation=image", "ImageParams.steps=8"]) == 2
    assert "picture.png: expected finite colours" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False


def test_an_asset_that_has_gone_is_there_again_when_a_run_ends(words, tmp_path):
    assert main(["--quiet", *words]) == 0
    asset = tmp_path / "run" / "point_cloud" / "iteration_8" / "point_cloud.ply"
    before = asset.read_bytes()
    asset.unlink()
    assert main(["--quiet", "--resume", *words]) == 0
    assert asset.read_bytes() == before


def test_memory_that_runs_out_after_the_last_iteration_is_one_line(words, tmp_path, monkeypatch, capsys):
    def full(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(SceneOutputs, "write_end", full)
        assert main(["--quiet", *words]) == 2
    said = capsys.readouterr().err
    assert "memory is full" in said and "up to iteration 8 is saved" in said and said.count("error:") == 1
    assert main(["--quiet", "--resume", *words]) == 0
    assert frame_count(tmp_path / "run" / "process_videos" / "video_rgb.mp4") == 4


def test_a_run_whose_videos_fail_ends_well(words, tmp_path, encoder, caplog):
    """Exit 0, the asset, one warning, no broken file."""
    encoder(BROKEN["dies at its end"])
    assert main(["--quiet", *words]) == 0
    assert sum("video" in record.message for record in caplog.records) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is True
    assert (tmp_path / "run" / "point_cloud" / "iteration_8" / "point_cloud.ply").is_file()
    assert not list((tmp_path / "run").rglob("*.mp4"))


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_seconds_are_those_of_one_iteration_however_many_lie_between_two_lines(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    lines = []
    metrics = Metrics(Run(tmp_path), 13, lines.append)  # resumed after 13 iterations, one line every 10
    for step in (20, 30, 34):
        clock.now = 100.0 + 0.5 * (step - 13)
        metrics.add(step, {}, {})
    metrics.write_all()
    assert [(line["step"], line["seconds_per_iteration"]) for line in lines] == [
        (20, 0.5),
        (30, 0.5),
        (34, 0.5),
    ]
