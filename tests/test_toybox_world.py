"""The toybox's world: geometry against closed forms, symmetry, captions, and views that an index determines."""

import colorsys
import re

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from toybox import dataset
from toybox.objects import ACCENTS, HALF_EXTENT, palette, solids
from toybox.raycast import Camera, cast, render
from toybox.shapes import ball, box, tube
from toybox.world import (
    COLOURS,
    HELD_OUT,
    OBJECTS,
    VIEWS,
    caption,
    is_distinct,
    sample_background,
    train_pairs,
    view_word,
)
from utils.errors import UserError

RADIUS = 3.7
FOV = 2.0 * float(np.arctan(0.75 / RADIUS))


def view(name, colour, azimuth, polar=80.0, size=48, **settings):
    return render(name, colour, azimuth, polar, RADIUS, FOV, size, **settings)


def silhouette(solid, azimuth=0.0, polar=90.0, radius=RADIUS, size=256, fov=FOV):
    """Covered area in square units of the plane at distance 1."""
    _, alpha = cast([solid], Camera.orbit(azimuth, polar, radius, fov), size, palette((1.0, 0.0, 0.0)))
    return alpha.sum() * (2.0 * np.tan(0.5 * fov) / size) ** 2


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
        camera = Camera.orbit(azimuth, polar, RADIUS, FOV)
        x, y, z = camera.rotation @ (solid.outline - camera.centre).T
        hull = ConvexHull(np.stack([x / z, y / z], axis=1)).volume
        assert silhouette(solid, azimuth, polar) == pytest.approx(hull, rel=1e-2)


def test_the_nearer_solid_hides_the_farther():
    parts = [ball("paint", (0, 0.3, 0), 0.1), ball("ink", (0, -0.3, 0), 0.3)]
    for order in (parts, parts[::-1]):
        image, _ = cast(order, Camera.orbit(0, 90, RADIUS, FOV), 65, palette((1.0, 0.0, 0.0)))
        assert image[32, 32, 0] > 0.6
        image, _ = cast(order, Camera.orbit(180, 90, RADIUS, FOV), 65, palette((1.0, 0.0, 0.0)))
        assert image[32, 32, 0] < 0.1


def test_light_depends_on_the_world_normal_alone():
    image, _ = cast([ball("paint", (0, 0, 0), 0.4)], Camera.orbit(0, 90, 50.0, 0.012), 65, palette((1, 1, 1)))
    column = image[:, 32, 0]
    lit = column[column > 0.1]
    assert lit[1:-1].max() <= 1.0
    assert lit[1:-1].min() >= 0.6
    assert image[32, 32, 0] == pytest.approx(0.8, abs=0.01)
    assert np.all(np.diff(lit[1:-1]) < 1e-4)


def test_camera_looks_at_the_origin_with_front_on_positive_y():
    camera = Camera.orbit(0.0, 90.0, 2.0, 0.5)
    assert np.allclose(camera.centre, [0, 2, 0])
    assert np.allclose(camera.rotation, [[-1, 0, 0], [0, 0, -1], [0, -1, 0]])
    assert np.allclose(Camera.orbit(90.0, 90.0, 2.0, 0.5).centre, [2, 0, 0])
    above = Camera.orbit(30.0, 0.0, 2.0, 0.5).rotation
    assert np.allclose(above, Camera.orbit(30.0, 1e-4, 2.0, 0.5).rotation, atol=1e-5)
    turned = Camera.orbit(37.0, 70.0, 2.0, 0.5, target=(0.1, 0.0, -0.1), roll_deg=12.0).rotation
    assert np.allclose(turned @ turned.T, np.eye(3))
    assert np.linalg.det(turned) == pytest.approx(1.0)


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
    paint = dict.fromkeys(("paint", "dark", "light"), (1.0, 0.0, 0.0))
    accents = dict.fromkeys(ACCENTS, (0.0, 1.0, 0.0))
    shares = []
    for azimuth in range(0, 360, 45):
        image, _ = cast(solids(name), Camera.orbit(azimuth, 80.0, RADIUS, FOV), 32, paint | accents)
        shares.append(image[..., 0].sum() / image[..., :2].sum())
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
        (lambda: dataset.load("valid"), "toybox split: expected one of train, test, held_out, got 'valid'"),
        (lambda: dataset.load("train", "nowhere"), "run python -m toybox.dataset"),
        (lambda: dataset.generate(0, 16, 0, None), "--views: expected 1 or more, got 0"),
    ],
)
def test_errors_say_what_to_do(wrong, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        wrong()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("colour", COLOURS)
def test_backgrounds_never_swallow_the_object(colour):
    rng = np.random.default_rng(1)
    for _ in range(60):
        background = sample_background(rng, colour, 8)
        assert background.dtype == np.float32
        assert background.shape in ((3,), (8, 8, 3))
        for flat in background.reshape(-1, 3):
            assert np.linalg.norm(flat - COLOURS[colour]) > 0.2
    assert not is_distinct(np.array(COLOURS[colour]), colour)


def test_sampled_cameras_keep_their_promises():
    rng = np.random.default_rng(2)
    cameras = [dataset.sample_camera(rng) for _ in range(2000)]
    half = np.array([camera["radius"] * np.tan(0.5 * camera["fov"]) for camera in cameras])
    polar = np.array([camera["polar_deg"] for camera in cameras])
    azimuth = np.array([camera["azimuth_deg"] for camera in cameras])
    assert half.min() >= 0.76
    assert half.max() <= 0.96
    assert np.mean(polar >= 60.0) == pytest.approx(0.85, abs=0.03)
    assert polar.min() >= 30.0
    assert polar.max() <= 100.0
    assert np.abs(np.mean(np.exp(1j * np.radians(azimuth)))) < 0.05


@pytest.fixture
def small_splits(monkeypatch):
    monkeypatch.setattr(dataset, "SPLITS", {"train": None, "test": 3, "held_out": 3})
    monkeypatch.setattr(dataset, "SHARD", 4)


def contents(cache):
    """Everything that the three splits hold, as bytes."""
    loaded = [dataset.load(split, cache) for split in dataset.SPLITS]
    return [
        (views.images.tobytes(), views.object.tobytes(), views.azimuth_deg.tobytes(), views.fov.tobytes())
        for views in loaded
    ]


class _Serial:
    """Stands in for a pool of processes."""

    def __init__(self, processes=None):
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
    monkeypatch.setattr(dataset.multiprocessing, "get_context", lambda _: context)
    dataset.generate(10, 16, 5, tmp_path / "whole")

    join = dataset._join

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "_join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dataset.generate(10, 16, 5, tmp_path / "cut")
    monkeypatch.setattr(dataset, "_join", join)
    shards = sorted((tmp_path / "cut").glob("train-*/*.npz"))
    assert len(shards) == 3
    shards[1].unlink()
    written = []
    write = dataset._write_shard

    def counted(start, **settings):
        written.append(start)
        write(start, **settings)

    monkeypatch.setattr(dataset, "_write_shard", counted)
    dataset.generate(10, 16, 5, tmp_path / "cut")
    assert written == [4, 0, 0]  # the lost shard of train, and the only ones of test and held_out
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*-*"))

    written.clear()
    dataset.generate(10, 16, 5, tmp_path / "cut")
    assert written == []
    dataset.generate(10, 16, 6, tmp_path / "cut")
    assert written
    assert contents(tmp_path / "whole") != contents(tmp_path / "cut")


def test_the_data_set_is_the_same_with_any_number_of_processes(monkeypatch, tmp_path):
    # Child processes import the module afresh, so the constants must stay as they are: one small split is enough.
    monkeypatch.setattr(dataset, "SPLITS", {"train": None})
    dataset.generate(5, 16, 0, tmp_path, processes=2)
    views = dataset.load("train", tmp_path)
    assert isinstance(views.images, np.memmap)
    assert views.images.shape == (5, 16, 16, 3)
    assert views.images.dtype == np.uint8
    for index in range(5):
        image, labels = dataset.sample_view("train", index, 0, 16)
        assert np.array_equal(image, views.images[index])
        assert labels[:2] == (views.object[index], views.colour[index])
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
        dataset.sample_view(split, 0, 0, 16)[1] for split in ("train", "test", "held_out")
    )
    assert train[2] != test[2]
    assert (OBJECTS[int(held_out[0])], tuple(COLOURS)[int(held_out[1])]) in HELD_OUT
