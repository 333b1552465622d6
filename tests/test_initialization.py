"""Initial points: primitives, point clouds, shapes from text, and what is said of files."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
import trimesh
from plyfile import PlyData, PlyElement

from arguments import Config, GenerateCamParams, ModelParams
from dreammapping.gaussians import initial_gaussians
from scene.initialization import SHAPES, _centred, initial_points
from scene.ply import write_gaussians, write_points
from scene.strays import strays
from tests.gaussians import random_gaussians, seeded
from tests.start_shapes import RED, box, error, from_file, points_of
from utils.errors import UserError


@pytest.mark.parametrize(
    ("shape", "half_sides"),
    [("box", (0.5, 0.5, 0.5)), ("rectangle_x", (0.3, 0.6, 0.25)), ("rectangle_z", (0.4, 0.3, 0.6))],
)
def test_cuboids_fill_their_bounds(shape, half_sides):
    points, colors = points_of(shape)
    torch.testing.assert_close(points.abs().amax(dim=0), torch.tensor(half_sides), rtol=0.01, atol=0)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(3), rtol=0, atol=0.03)
    assert colors.unique().tolist() == pytest.approx([127 / 255])


def test_the_sphere_is_uniform_in_radius():
    radii = points_of("sphere")[0].norm(dim=1)
    assert radii.max() <= 0.5
    assert radii.mean() == pytest.approx(0.25, rel=0.05)


def test_the_ball_is_uniform_in_volume():
    """DreamGaussian's (gs_renderer.py:692-704): within a share of the radius lie its cube of the points, all around."""
    points, colors = points_of("ball", count=20_000)
    radii = points.norm(dim=1)
    assert radii.max() <= 0.5
    for share in (0.25, 0.5, 0.8):
        error = 4 * math.sqrt(share**3 * (1 - share**3) / len(points))
        assert float((radii < 0.5 * share).double().mean()) == pytest.approx(share**3, abs=error)
    heights = points[:, 2] / radii  # uniform in [-1, 1] where a direction is uniform on the sphere
    assert float((heights.abs() < 0.5).double().mean()) == pytest.approx(0.5, abs=2 / math.sqrt(len(points)))
    assert float((heights > 0).double().mean()) == pytest.approx(0.5, abs=2 / math.sqrt(len(points)))
    assert colors.unique().tolist() == pytest.approx([127 / 255])


def test_the_scene_is_a_shell_around_the_cameras():
    radii = points_of("scene")[0].norm(dim=1)
    assert (radii.min(), radii.max()) == pytest.approx((16.5, 17.5), abs=0.01)


@pytest.mark.parametrize("shape", ["shape", "shap-e", "shap_e", "pointe"])
def test_shapes_from_text_say_that_they_start_from_a_sphere(shape, caplog):
    with caplog.at_level(logging.WARNING):
        points, _ = points_of(shape)
    assert torch.equal(points, points_of("sphere")[0])
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert shape in caplog.text and "sphere" in caplog.text


def test_every_shape_that_can_be_set_exists():
    (field,) = (field for field in dataclasses.fields(GenerateCamParams) if field.name == "init_shape")
    assert set(SHAPES) == set(field.metadata["option"].choices)


def test_size_and_seed():
    small, _ = points_of("box", init_scale=0.5)
    torch.testing.assert_close(small, 0.5 * points_of("box")[0])
    params = GenerateCamParams(init_num_pts=10)
    assert not torch.equal(initial_points(params, seeded(1))[0], initial_points(params, seeded(2))[0])


@pytest.mark.parametrize("suffix", ["stl", "glb", "ply", "cloud.ply"])
@pytest.mark.parametrize("start", [0.0, 5_432_123.7])
def test_a_shape_that_its_file_has_rounded_is_told(tmp_path, caplog, suffix, start):
    """Float32 has steps of half a metre there."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=2)
    vertices = np.zeros(len(mesh.vertices), dtype=[(axis, "f4") for axis in "xyz"])
    for axis in range(3):
        vertices["xyz"[axis]] = mesh.vertices[:, axis] + start
    mesh.vertices = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    path = tmp_path / f"a.{suffix}"
    if suffix == "cloud.ply":
        PlyData([PlyElement.describe(vertices, "vertex")]).write(str(path))
    else:
        mesh.export(path)
    from_file(path, count=100)
    assert ("so its shape is rounded" in caplog.text) == (start > 0)


def test_a_single_point_is_not_called_rounded(tmp_path, caplog):
    PlyData([PlyElement.describe(np.ones(1, dtype=[(axis, "f4") for axis in "xyz"]), "vertex")]).write(
        str(tmp_path / "a.ply")
    )
    with pytest.raises(UserError, match="at least 4 points"):
        from_file(tmp_path / "a.ply")
    assert caplog.text == ""


def test_a_point_cloud_at_a_surveyors_coordinates_keeps_its_shape(tmp_path):
    offsets = np.random.default_rng(0).uniform(-1, 1, (300, 3))
    table = np.zeros(300, dtype=[(axis, "f8") for axis in "xyz"])
    for axis, start in enumerate((431_234.3, 5_432_123.7, 87.1)):
        table["xyz"[axis]] = offsets[:, axis] + start
    PlyData([PlyElement.describe(table, "vertex")]).write(str(tmp_path / "a.ply"))
    points, _ = from_file(tmp_path / "a.ply", count=300)
    low, high = offsets.min(axis=0), offsets.max(axis=0)
    expected = (offsets - (low + high) / 2) / (high - low).max()
    torch.testing.assert_close(
        points.sort(dim=0).values, torch.from_numpy(expected).float().sort(dim=0).values, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("size", "start"), [(1e-300, 0.0), (1e300, 0.0), (1e307, 1.6e308), (1e-9, 4194304.1)]
)
def test_a_point_cloud_of_any_size_anywhere_is_centred_and_one_long(size, start):
    """Also where it is a few roundings of its coordinates long."""
    points = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = _centred(start + size * points, "a.ply")
    torch.testing.assert_close(centred.amax(dim=0), -centred.amin(dim=0), rtol=0, atol=1e-6)
    assert centred.abs().max() == 0.5


def test_a_point_cloud_so_small_that_its_numbers_have_no_digits_is_refused():
    """Its longest side would not be one."""
    points = torch.tensor(
        [[0.0, 0, 0], [2.6e-320, 0, 0], [1e-320, 1e-320, 0], [0, 0, 2e-320]], dtype=torch.float64
    )
    with pytest.raises(UserError, match="finite size"):
        _centred(points, "a.ply")


@pytest.mark.parametrize("far", [1e3, 1e30, 1e300])
@pytest.mark.parametrize("names", [("x", "y", "z"), ("x", "y", "z", "red", "green", "blue")], ids=len)
def test_a_point_far_beyond_the_others_does_not_make_a_dot_of_them(tmp_path, caplog, far, names):
    """It is left out with a word, and nothing else of the shape changes."""
    table = np.zeros(302, dtype=[(name, "f8" if len(name) == 1 else "u1") for name in names])
    for axis in "xyz":
        table[axis] = np.random.default_rng(ord(axis)).uniform(-1, 1, len(table))
    table["x"][[7, 200]] = far, -far
    for name, rows in (("all", table), ("near", np.delete(table, [7, 200]))):
        PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / f"{name}.ply"))
    found, expected = (from_file(tmp_path / f"{name}.ply", count=100) for name in ("all", "near"))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    (said,) = caplog.messages
    assert (
        "all.ply: 2 of 302 points lie more than 100 times as far out as the rest" in said
        and "left out" in said
    )


@pytest.mark.parametrize(
    "points", [[], [[0, 0, 0]] * 95 + [[1, 0, 0]] * 5, [[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 99]]]
)
def test_what_has_no_rest_has_no_strays(points):
    assert not strays(torch.tensor(points, dtype=torch.float64).reshape(-1, 3)).any()


def test_a_point_cloud_is_thinned_and_keeps_its_colours(tmp_path):
    points, colors = torch.randn(500, 3, generator=seeded()), torch.rand(500, 3, generator=seeded(1))
    write_points(tmp_path / "cloud.ply", points, colors)
    kept, seen = from_file(tmp_path / "cloud.ply", count=100)
    assert len(kept) == 100
    assert (kept.amax(dim=0) - kept.amin(dim=0)).max() == pytest.approx(1)
    assert {tuple(row) for row in (seen * 255).round().int().tolist()} <= {
        tuple(row) for row in (colors * 255).round().int().tolist()
    }
    assert len(from_file(tmp_path / "cloud.ply", count=10_000)[0]) == 500


def test_gaussians_can_be_started_from_in_our_frame(tmp_path):
    model = random_gaussians(40)
    write_gaussians(tmp_path / "gaussians.ply", model)
    points, _ = from_file(tmp_path / "gaussians.ply")
    size = (model.means.amax(dim=0) - model.means.amin(dim=0)).max()
    torch.testing.assert_close(
        points.std(dim=0).sort().values,
        (model.means.std(dim=0) / size).detach().sort().values,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_path_is_needed():
    with pytest.raises(UserError, match="init_path"):
        points_of("file")


@pytest.mark.parametrize("name", ["a.obj", "a.ply", "a.glb"])
def test_a_missing_file_is_named(tmp_path, name):
    assert name in error(tmp_path / name)


def test_an_unknown_format_is_named(tmp_path):
    assert ".glb" in error(tmp_path / "a.blend")


@pytest.mark.parametrize("name", ["a" * 300 + ".obj", "a\0b.glb"])
def test_paths_that_cannot_be_read(tmp_path, name):
    assert "cannot be used" in error(tmp_path / name)


def test_clouds_without_extent_or_with_too_few_points(tmp_path):
    write_points(tmp_path / "a.ply", torch.ones(5, 3), torch.ones(5, 3))
    assert "finite size" in error(tmp_path / "a.ply")
    write_points(tmp_path / "a.ply", torch.eye(3), torch.ones(3, 3))
    assert "at least 4 points" in error(tmp_path / "a.ply")


def test_a_run_can_learn_more_bands_than_the_file_that_it_starts_from(tmp_path):
    write_gaussians(tmp_path / "a.ply", random_gaussians(5, sh_degree=0))
    model = ModelParams(pretrained_model_path=str(tmp_path / "a.ply"), sh_degree=3)
    start = initial_gaussians(Config(ModelParams=model), seeded(), torch.device("cpu"))
    assert (start.sh_degree, start.active_sh_degree) == (3, 0)


def test_a_shape_from_text_is_sampled_scaled_and_keeps_its_colours():
    mesh = box(1.0, 2.0, 4.0)
    mesh.visual.vertex_colors = RED
    params = GenerateCamParams(init_shape="shape", init_num_pts=500)
    points, colors = initial_points(params, seeded(), lambda: mesh)
    torch.testing.assert_close(
        points.amax(dim=0) - points.amin(dim=0), torch.tensor([0.25, 0.5, 1.0]), atol=0.01, rtol=0
    )
    assert torch.equal(colors, torch.tensor([1.0, 0.0, 0.0]).expand(500, 3))
    grey = initial_points(dataclasses.replace(params, init_shape="pointe"), seeded(), lambda: mesh)
    assert torch.equal(grey[0], points) and grey[1].unique().tolist() == pytest.approx([127 / 255])


def test_a_shape_from_text_that_fails_stops_where_the_settings_say_so():
    def fail():
        raise UserError("nothing there")

    params = GenerateCamParams(init_shape="shape", init_fallback="stop", init_num_pts=10)
    with pytest.raises(UserError, match="nothing there"):
        initial_points(params, seeded(), fail)
