"""The toybox's world: geometry against closed forms, symmetry, captions, and views that an index determines."""

import colorsys
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import ConvexHull

from toybox import dataset, renders
from toybox.objects import ACCENTS, HALF_EXTENT, INKS, solids
from toybox.raycast import Cameras, cast, draw_whole, render
from toybox.shapes import ball, box, tube
from toybox.world import (
    COLOURS,
    HELD_OUT,
    OBJECTS,
    VIEWS,
    caption,
    is_distinct,
    sample_backgrounds,
    train_pairs,
    trained_colours,
    view_word,
)
from utils.errors import UserError
from utils.lock import held

RADIUS = 3.7
FOV = 2.0 * float(np.arctan(0.75 / RADIUS))


def view(name, colour, azimuth, polar=80.0, size=48, **settings):
    return render(name, colour, azimuth, polar, RADIUS, FOV, size, **settings)


def orbit(azimuth, polar, radius=RADIUS, fov=FOV, target=(0.0, 0.0, 0.0), roll=0.0):
    """One camera."""
    numbers = torch.tensor([[azimuth, polar, radius, fov, roll]], dtype=torch.float64)
    aim = torch.tensor([target], dtype=torch.float64)
    return Cameras.orbit(*numbers.T[:4], target=aim, roll_deg=numbers.T[4])


def painted(parts, camera, size, inks=INKS):
    """The layer of the paint alone: the premultiplied image's red for red paint."""
    return cast(parts, camera, size, inks).paint[0, 0].numpy()


def silhouette(solid, azimuth=0.0, polar=90.0, radius=RADIUS, size=256, fov=FOV):
    """Covered area in square units of the plane at distance 1."""
    alpha = cast([solid], orbit(azimuth, polar, radius, fov), size).alpha
    return alpha.sum().item() * (2.0 * np.tan(0.5 * fov) / size) ** 2


def test_sphere_silhouette_is_the_tangent_cone():
    assert silhouette(ball("paint", (0, 0, 0), 0.4)) == pytest.approx(
        np.pi * 0.4**2 / (RADIUS**2 - 0.4**2), rel=3e-3
    )


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0])
def test_box_silhouette_is_its_near_face(azimuth):
    half = np.array([0.2, 0.3, 0.25])
    wide, deep = (half[0], half[1]) if azimuth != 90.0 else (half[1], half[0])
    expected = 4.0 * wide * half[2] / (RADIUS - deep) ** 2
    assert silhouette(box("paint", (0, 0, 0), tuple(half)), azimuth) == pytest.approx(expected, rel=1e-2)


def test_cone_along_its_axis_is_a_disc():
    cone = tube("paint", (0, 0, -0.3), (0, 0, 0.3), 0.3, 0.0)
    from_below, from_above = silhouette(cone, polar=180.0), silhouette(cone, polar=0.0)
    assert from_below == pytest.approx(np.pi * 0.3**2 / (RADIUS - 0.3) ** 2, rel=1e-2)
    # From above every ray is steeper than the slope, where the quadratic's sign turns.
    assert from_above == pytest.approx(np.pi * 0.3**2 / (RADIUS + 0.3) ** 2, rel=1e-2)


@pytest.mark.parametrize(
    "solid",
    [
        tube("paint", (0, 0, -0.3), (0, 0, 0.3), 0.3, 0.0),
        tube("paint", (0.1, -0.2, -0.3), (0, 0.3, 0.2), 0.1, 0.25),
        ball("paint", (0, 0.1, 0), (0.3, 0.4, 0.2), (20, 0, 30)),
        ball("paint", (0, 0, -0.1), (0.4, 0.3, 0.4), (10, 0, 0), span=(-0.1, 0.6)),
        box("paint", (0, 0, 0), (0.3, 0.2, 0.3), (0.1, 0.8), (20, 10, 0)),
    ],
)
def test_silhouette_is_the_hull_of_the_projected_outline(solid):
    for azimuth, polar in ((0.0, 90.0), (60.0, 60.0), (200.0, 20.0)):
        camera = orbit(azimuth, polar)
        x, y, z = camera.rotation[0].numpy() @ (solid.outline - camera.centre[0].numpy()).T
        hull = ConvexHull(np.stack([x / z, y / z], axis=1)).volume
        assert silhouette(solid, azimuth, polar) == pytest.approx(hull, rel=1e-2)


def test_the_nearer_solid_hides_the_farther():
    parts = [ball("paint", (0, 0.3, 0), 0.1), ball("ink", (0, -0.3, 0), 0.3)]
    for order in (parts, parts[::-1]):
        assert painted(order, orbit(0, 90), 65)[32, 32] > 0.6
        assert painted(order, orbit(180, 90), 65)[32, 32] < 0.1


def test_light_depends_on_the_world_normal_alone():
    image = painted([ball("paint", (0, 0, 0), 0.4)], orbit(0, 90, 50.0, 0.012), 65)
    column = image[:, 32]
    lit = column[column > 0.1]
    assert lit[1:-1].max() <= 1.0
    assert lit[1:-1].min() >= 0.6
    assert image[32, 32] == pytest.approx(0.8, abs=0.01)
    assert np.all(np.diff(lit[1:-1]) < 1e-4)


def test_cameras_look_at_the_origin_with_front_on_positive_y():
    camera = orbit(0.0, 90.0, 2.0, 0.5)
    assert np.allclose(camera.centre, [[0, 2, 0]])
    assert np.allclose(camera.rotation, [[[-1, 0, 0], [0, 0, -1], [0, -1, 0]]])
    assert np.allclose(orbit(90.0, 90.0, 2.0, 0.5).centre, [[2, 0, 0]])
    above = orbit(30.0, 0.0, 2.0, 0.5).rotation
    assert np.allclose(above, orbit(30.0, 1e-4, 2.0, 0.5).rotation, atol=1e-5)
    turned = orbit(37.0, 70.0, 2.0, 0.5, target=(0.1, 0.0, -0.1), roll=12.0).rotation[0].numpy()
    assert np.allclose(turned @ turned.T, np.eye(3))
    assert np.linalg.det(turned) == pytest.approx(1.0)


KEPT = Path(__file__).parent / "data" / "caster_views.npz"


def kept_views():
    """Pictures of an earlier caster, which was written in NumPy: name, colour, camera, bytes of image and of alpha."""
    with np.load(KEPT) as stored:
        columns = [stored[key] for key in ("names", "colours", "cameras", "images", "alphas")]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("kept", kept_views(), ids=lambda kept: str(kept[0]))
def test_pictures_are_those_kept_from_before(kept):
    name, colour, (azimuth, polar, radius, fov, *target, roll), image, alpha = kept
    again, cover = render(
        str(name), str(colour), azimuth, polar, radius, fov, 64, (0.2, 0.5, 0.9), tuple(target), roll
    )
    off = np.abs(np.round(255.0 * again.clip(0.0, 1.0)) - image.astype(float)).max(-1)
    # Rounding may decide otherwise on which side of an edge a sample of four lies: a few pixels, by that sample.
    assert (off > 1.0).mean() < 2e-3
    assert off.max() <= 255.0 / 4 + 1.0
    assert (np.abs(np.round(255.0 * cover) - alpha.astype(float)) > 1.0).mean() < 2e-3


def test_views_cast_together_or_alone_in_windows_or_whole_are_the_same():
    numbers = torch.tensor([[20.0, 80.0, 3.7, 0.4], [200.0, 35.0, 3.3, 0.5]], dtype=torch.float64)
    both = Cameras.orbit(*numbers.T)
    for name in ("cat", "house"):
        together = cast(solids(name), both, 24)
        whole = cast(solids(name), both, 24, draw=draw_whole)
        alone = [cast(solids(name), Cameras.orbit(*row[:, None]), 24) for row in numbers]
        for layer in ("fixed", "paint", "alpha"):
            torch.testing.assert_close(getattr(whole, layer), getattr(together, layer), atol=1e-5, rtol=0)
            one = torch.cat([getattr(each, layer) for each in alone])
            torch.testing.assert_close(one, getattr(together, layer), atol=1e-5, rtol=0)


def test_layers_serve_every_paint_and_background():
    layers = cast(solids("robot"), orbit(25.0, 75.0), 32)
    for colour in ("red", "white"):
        picture = layers.picture(torch.tensor([COLOURS[colour]]), torch.tensor([0.1, 0.6, 0.3]).view(3, 1, 1))
        image, alpha = view("robot", colour, 25.0, 75.0, 32, background=(0.1, 0.6, 0.3))
        np.testing.assert_allclose(picture[0].permute(1, 2, 0), image, atol=1e-6)
        np.testing.assert_allclose(layers.alpha[0, 0], alpha, atol=0)


@pytest.mark.parametrize("name", OBJECTS)
def test_object_is_fitted_symmetric_and_has_a_front(name):
    points = np.concatenate([part.outline for part in solids(name)])
    assert np.abs(points).max() <= HALF_EXTENT + 1e-6
    assert np.allclose(points.max(0), -points.min(0))
    assert (points.max(0) - points.min(0)).max() == pytest.approx(2 * HALF_EXTENT)

    for azimuth in (0.0, 50.0):
        image, alpha = view(name, "green", azimuth, size=32)
        other, other_alpha = view(name, "green", -azimuth, size=32)
        assert np.abs(image[:, ::-1] - other).mean() < 2e-3
        assert np.abs(alpha[:, ::-1] - other_alpha).mean() < 2e-3

    front, alpha = view(name, "green", 0.0)
    assert np.abs(front - view(name, "green", 180.0)[0]).mean() > 0.03 * alpha.mean()
    assert np.abs(front - view(name, "green", 90.0)[0]).mean() > 0.10 * alpha.mean()
    assert alpha.mean() > 0.08


@pytest.mark.parametrize("name", OBJECTS)
def test_the_paint_dominates(name):
    """Averaged over a turn the paint covers 60 % of an object, and 48 % of those with much glass, rubber or ink."""
    inks = {name: (0.0, 1.0, 0.0, 0.0) if name in ACCENTS else (1.0, 0.0, 0.0, 0.0) for name in INKS}
    shares = []
    for azimuth in range(0, 360, 45):
        fixed = cast(solids(name), orbit(azimuth, 80.0), 32, inks).fixed[0]
        shares.append((fixed[0].sum() / fixed[:2].sum()).item())
    least = 0.48 if name in {"car", "bus", "train", "helicopter", "bee"} else 0.60
    assert np.mean(shares) >= least


@pytest.mark.parametrize("colour", COLOURS)
def test_the_colour_of_a_render_is_nearest_to_its_name(colour):
    """The median pixel of a tower of paint, over all shades, points at its own colour and at no other."""
    image, alpha = view("castle", colour, 30.0)
    typical = np.median(image[alpha == 1.0], axis=0)
    # The shade of a wall that faces the camera, which is what a name has to survive.
    distances = {name: np.linalg.norm(typical - 0.8 * np.array(value)) for name, value in COLOURS.items()}
    assert min(distances, key=distances.__getitem__) == colour


def test_silhouettes_differ_between_objects():
    masks = {
        name: view(name, "red", 90.0, size=32)[1] + view(name, "red", 0.0, size=32)[1] for name in OBJECTS
    }
    for first in OBJECTS:
        for second in OBJECTS:
            if first < second:
                assert np.abs(masks[first] - masks[second]).sum() > 0.1 * masks[first].sum(), (first, second)


def test_colours_are_well_separated():
    values = np.array(list(COLOURS.values()))
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + 9 * np.eye(len(values))
    assert distances.min() > 0.3
    hues = [colorsys.rgb_to_hsv(*value) for value in values]
    assert sum(saturation > 0.4 for _, saturation, _ in hues) == len(COLOURS) - 3


def test_alpha_and_background_compose():
    black, alpha = view("cat", "red", 20.0, background=(0.0, 0.0, 0.0))
    white, _ = view("cat", "red", 20.0)
    assert np.allclose(white - black, (1.0 - alpha)[..., None], atol=1e-6)
    assert white.shape == (48, 48, 3)
    assert white.dtype == np.float32
    assert 0.0 <= black.min() <= white.max() <= 1.0
    picture = np.random.default_rng(0).random((48, 48, 3), np.float32)
    assert np.array_equal(view("cat", "red", 20.0, background=picture)[0][0, 0], picture[0, 0])


def test_captions():
    assert caption("car", "red") == "a red car"
    assert caption("car", "red", "front") == "a red car, front view"
    assert caption("airplane", "orange") == "an orange airplane"
    pattern = re.compile(r"(a|an) [a-z]+ [a-z]+(, (front|side|back) view)?")
    written = {
        caption(name, colour, shown) for name in OBJECTS for colour in COLOURS for shown in (None, *VIEWS)
    }
    assert len(written) == len(OBJECTS) * len(COLOURS) * 4
    assert all(pattern.fullmatch(text) for text in written)


@pytest.mark.parametrize(
    ("azimuth", "word"),
    [
        *((turn, "front") for turn in (0, 45, -45, 360)),
        *((turn, "side") for turn in (46, 134, -90, 270)),
        *((turn, "back") for turn in (135, -135, 180, -180, 540)),
    ],
)
def test_view_words(azimuth, word):
    assert view_word(azimuth) == word


def test_held_out_pairs_cover_everything_and_are_never_trained_on():
    assert {name for name, _ in HELD_OUT} == set(OBJECTS)
    assert {colour for _, colour in HELD_OUT} == set(COLOURS)
    assert len(HELD_OUT) == len(OBJECTS) == 26
    assert HELD_OUT.isdisjoint(train_pairs())
    assert len(HELD_OUT) + len(train_pairs()) == len(OBJECTS) * len(COLOURS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: caption("dragon", "red"), "toybox object: expected one of cat, "),
        (lambda: caption("car", "mauve"), "toybox colour: expected one of red, "),
        (
            lambda: caption("car", "red", "top"),
            "toybox caption: expected a view of front, side, back, got 'top'",
        ),
        (lambda: solids("dragon"), "toybox object: "),
        (lambda: renders.load("valid"), "toybox split: expected one of train, test, held_out, got 'valid'"),
        (lambda: renders.load("train", "nowhere"), "run python -m toybox.dataset"),
        (lambda: renders.generate(0, 16, 0, None), "--views: expected 1 or more, got 0"),
    ],
)
def test_errors_say_what_to_do(wrong, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        wrong()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_backgrounds_never_swallow_the_object(colour):
    paint = torch.tensor([*COLOURS.values()][colour])
    chosen = torch.full((400,), colour)
    backgrounds = sample_backgrounds(chosen, 8, torch.Generator().manual_seed(1))
    assert backgrounds.shape == (400, 3, 8, 8)
    assert 0.0 <= backgrounds.min() <= backgrounds.max() <= 1.0
    for light in (0.65, 0.8, 1.0):
        assert (backgrounds - light * paint.view(3, 1, 1)).norm(dim=1).min() > 0.2
    assert not is_distinct(paint.numpy(), tuple(COLOURS)[colour])


def test_backgrounds_are_white_black_flat_and_graded_as_said():
    red = torch.zeros(4000, dtype=torch.int64)
    backgrounds = sample_backgrounds(red, 6, torch.Generator().manual_seed(0))
    flat = (backgrounds == backgrounds[:, :, :1, :1]).flatten(1).all(1)
    shares = [
        (backgrounds == 1.0).flatten(1).all(1).float().mean(),
        (backgrounds == 0.0).flatten(1).all(1).float().mean(),
        1.0 - flat.float().mean(),
    ]
    for share, expected in zip(shares, (0.40, 0.15, 0.08), strict=True):
        # Four standard deviations of a share of 4000 draws.
        assert share == pytest.approx(expected, abs=4.0 * (expected * (1.0 - expected) / 4000) ** 0.5)


def test_sampled_cameras_keep_their_promises():
    orbits = renders.sample_orbits(4000, torch.Generator().manual_seed(2))
    half = orbits["radius"] * torch.tan(0.5 * orbits["fov"])
    polar, azimuth = orbits["polar_deg"], torch.deg2rad(orbits["azimuth_deg"])
    assert half.min() >= 0.76 - 1e-9
    assert half.max() <= 0.96 + 1e-9
    assert (polar >= 60.0).double().mean() == pytest.approx(0.85, abs=0.03)
    assert polar.min() >= 30.0
    assert polar.max() <= 100.0
    assert torch.polar(torch.ones_like(azimuth), azimuth).mean().abs() < 0.06


def test_colours_that_are_trained_are_those_not_held_out():
    table = trained_colours(torch.device("cpu"))
    names = tuple(COLOURS)
    listed = {
        (name, names[colour]) for name, row in zip(OBJECTS, table.tolist(), strict=True) for colour in row
    }
    assert listed == set(train_pairs())


@pytest.fixture
def small_splits(monkeypatch):
    monkeypatch.setattr(renders, "SPLITS", {"train": None, "test": 3, "held_out": 3})
    monkeypatch.setattr(renders, "SHARD", 4)


def contents(cache):
    """Everything that the three splits hold, as bytes."""
    loaded = [renders.load(split, cache) for split in renders.SPLITS]
    return [
        (views.images.tobytes(), views.object.tobytes(), views.azimuth_deg.tobytes(), views.fov.tobytes())
        for views in loaded
    ]


class _Serial:
    """Stands in for a pool of processes."""

    def __init__(self, processes=None, start=None):
        self.processes = processes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def imap_unordered(self, work, starts):
        return map(work, reversed(starts))


@pytest.mark.usefixtures("small_splits")
def test_an_interrupted_data_set_ends_with_the_same_bytes(monkeypatch, tmp_path):
    context = type("Context", (), {"Pool": _Serial})
    monkeypatch.setattr(renders.multiprocessing, "get_context", lambda _: context)
    renders.generate(10, 16, 5, tmp_path / "whole")

    join = renders._join

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(renders, "_join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        renders.generate(10, 16, 5, tmp_path / "cut")
    monkeypatch.setattr(renders, "_join", join)
    shards = sorted((tmp_path / "cut").glob("train-*/*.npz"))
    assert len(shards) == 3
    shards[1].unlink()
    written = []
    write = renders._write_shard

    def counted(start, **settings):
        written.append(start)
        write(start, **settings)

    monkeypatch.setattr(renders, "_write_shard", counted)
    renders.generate(10, 16, 5, tmp_path / "cut")
    assert written == [4, 0, 0]  # the lost shard of train, and the only ones of test and held_out
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*-*"))

    written.clear()
    renders.generate(10, 16, 5, tmp_path / "cut")
    assert written == []
    renders.generate(10, 16, 6, tmp_path / "other")
    assert contents(tmp_path / "whole") != contents(tmp_path / "other")


def files(folder):
    """Every file of a folder, as bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys, *words):
    """The one line that the command ends with."""
    capsys.readouterr()
    assert dataset.main([*words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.usefixtures("small_splits")
def test_views_of_other_settings_are_not_replaced(tmp_path, capsys):
    settings = ("--cache", str(tmp_path), "--size", "8")
    renders.generate(2, 8, 0, tmp_path)
    before = files(tmp_path)
    for words in (("--views", "3"), ("--views", "2", "--seed", "1"), ("--views", "2", "--size", "4")):
        assert "choose another --cache, or remove" in refusal(capsys, *settings, *words)
    assert files(tmp_path) == before
    for path in tmp_path.glob("train_*"):
        path.unlink()
    assert dataset.main([*settings, "--views", "3"]) == 0
    assert len(renders.load("train", tmp_path)) == 3


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize(
    "name", ["train_images.npy", "train_labels.npz", "test_images.npy", "held_out_labels.npz"]
)
def test_arrays_of_a_user_are_not_replaced(tmp_path, capsys, name):
    if name.endswith("npy"):
        np.save(tmp_path / name, np.array(3))
    else:
        np.savez(tmp_path / name, mine=np.arange(3))
    before = files(tmp_path)
    error = refusal(capsys, "--cache", str(tmp_path), "--views", "2", "--size", "8")
    assert "choose another --cache, or move" in error
    assert files(tmp_path) == before
    (tmp_path / name).unlink()
    renders.generate(2, 8, 0, tmp_path)


@pytest.mark.usefixtures("small_splits")
def test_another_versions_views_are_made_anew_in_the_programs_own_cache_alone(tmp_path, monkeypatch, capsys):
    for cache in (tmp_path / "own", tmp_path / "users"):
        renders.generate(2, 8, 0, cache)
    monkeypatch.setattr(renders, "CACHE", tmp_path / "own")
    monkeypatch.setattr(renders, "_DRAWS", renders._DRAWS + 1)
    renders.generate(2, 8, 0, tmp_path / "own")
    for cache, seed in (("users", "0"), ("own", "1")):
        words = ("--cache", str(tmp_path / cache), "--views", "2", "--size", "8", "--seed", seed)
        assert "found those of other settings or of another version" in refusal(capsys, *words)


@pytest.mark.usefixtures("small_splits")
def test_a_data_set_that_was_ended_between_its_two_files_is_completed(tmp_path, monkeypatch):
    renders.generate(10, 16, 5, tmp_path / "whole")

    def interrupt(path):
        if path.name == "train_labels.npz":
            raise KeyboardInterrupt
        return atomic(path)

    atomic = renders.atomic
    monkeypatch.setattr(renders, "atomic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        renders.generate(10, 16, 5, tmp_path / "cut", processes=1)
    assert (tmp_path / "cut" / "train_images.npy").exists()
    monkeypatch.setattr(renders, "atomic", atomic)
    renders.generate(10, 16, 5, tmp_path / "cut")
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


@pytest.mark.usefixtures("small_splits")
def test_what_a_killed_process_left_of_the_views_is_removed_and_what_others_have_is_not(tmp_path):
    """Half of a shard, of an array, and whole shards that were joined; a user's file, and a prior that is written."""
    renders.generate(10, 8, 5, tmp_path / "whole")
    cut, identity = tmp_path / "cut", renders._identity("train", 10, 8, 5)
    shards = cut / f"train-{identity}"
    shards.mkdir(parents=True)
    (shards / ".0000000.0123abcd.partial.npz").write_bytes(b"half")
    (cut / ".train_images.0123abcd.partial.npy").write_bytes(b"half")
    theirs = [cut / ".prior.0123abcd.partial", cut / "notes.txt"]
    for path in theirs:
        path.write_bytes(b"theirs")
    renders.generate(10, 8, 5, cut, splits=["train"])
    shards.mkdir()
    (shards / "0000000.npz").write_bytes(b"joined")
    renders.generate(10, 8, 5, cut)
    assert {path.name for path in cut.iterdir()} == {
        *(path.name for path in [*theirs, *(tmp_path / "whole").iterdir()])
    }


@pytest.mark.usefixtures("small_splits")
def test_two_processes_do_not_write_one_data_set(tmp_path, capsys):
    words = ("--cache", str(tmp_path), "--size", "8", "--views", "2")
    with held(tmp_path / renders.LOCK, instead="wait"):
        assert "is in use by process" in refusal(capsys, *words)
    assert dataset.main([*words]) == 0
    with held(tmp_path / renders.LOCK, instead="wait"):
        assert dataset.main([*words]) == 0, "there is nothing to write"


@pytest.mark.usefixtures("small_splits")
@pytest.mark.parametrize("name", ["train_images.npy", "train_labels.npz"])
@pytest.mark.parametrize("kind", ["text", "half", "empty", "folder"])
def test_damaged_views_are_one_line(tmp_path, capsys, name, kind):
    renders.generate(2, 8, 0, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"text": b"text", "half": whole[: len(whole) // 2], "empty": b""}[kind])
    expected = f"{path}: expected the toybox's train views, found none, or a damaged file"
    assert expected in refusal(capsys, "--cache", str(tmp_path), "--views", "2", "--size", "8")
    with pytest.raises(UserError, match=re.escape(expected)):
        renders.load("train", tmp_path)


def test_views_that_no_disk_can_hold_are_refused_at_once(tmp_path, capsys):
    for words in (("--size", "100000000000"), ("--views", "1000000000000000000")):
        assert "GB to be free for the views" in refusal(capsys, *words, "--cache", str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_the_data_set_is_the_same_with_any_number_of_processes(monkeypatch, tmp_path):
    # Child processes import the module afresh, so the constants must stay as they are: one small split is enough.
    monkeypatch.setattr(renders, "SPLITS", {"train": None})
    renders.generate(5, 16, 0, tmp_path, processes=2)
    views = renders.load("train", tmp_path)
    assert isinstance(views.images, np.memmap)
    assert views.images.shape == (5, 16, 16, 3)
    assert views.images.dtype == np.uint8
    for index in range(5):
        (image,), (labels,) = renders.sample_views("train", [index], 0, 16)
        assert np.array_equal(image, views.images[index])
        assert tuple(labels[:2]) == (views.object[index], views.colour[index])
        assert views.azimuth_deg[index] == np.float32(labels[2])
        name, colour = OBJECTS[views.object[index]], tuple(COLOURS)[views.colour[index]]
        assert (name, colour) in train_pairs()
        assert views.caption(index, True) == caption(name, colour, view_word(views.azimuth_deg[index]))
    rng = np.random.default_rng(0)
    assert all("view" not in text for text in views.captions(rng, view_probability=0.0))
    assert all("view" in text for text in views.captions(rng, view_probability=1.0))
    assert len(views.captions(rng, np.array([3, 1]))) == 2


def test_splits_have_their_own_cameras_and_pairs():
    train, test, held_out = (
        renders.sample_views(split, [0], 0, 16)[1][0] for split in ("train", "test", "held_out")
    )
    assert train[2] != test[2]
    assert (OBJECTS[int(held_out[0])], tuple(COLOURS)[int(held_out[1])]) in HELD_OUT
