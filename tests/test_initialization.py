"""Initial points: primitives, point clouds, meshes with colours, and files that are broken."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from arguments import GenerateCamParams
from scene.initialization import SHAPES, initial_points
from scene.mesh_size import declared_faces
from scene.ply import write_gaussians, write_points
from tests.gaussians import random_gaussians, seeded
from utils.errors import UserError

RED, GREEN = [255, 0, 0, 255], [0, 255, 0, 255]


def points_of(shape: str, count: int = 2000, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    return initial_points(GenerateCamParams(init_shape=shape, init_num_pts=count, **settings), seeded())


def from_file(path, mesh=None, count: int = 2000, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    if mesh is not None:
        mesh.export(path)
    return points_of("file", count, init_path=str(path), **settings)


def box(*sides: float) -> trimesh.Trimesh:
    return trimesh.creation.box(extents=sides)


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


def test_meshes_are_centred_sampled_by_area_and_get_longest_side_one(tmp_path):
    mesh = box(2.0, 4.0, 1.0)
    mesh.apply_translation([5, 6, 7])
    points, colors = from_file(tmp_path / "box.stl", mesh, count=6000)
    torch.testing.assert_close(points.amax(dim=0), torch.tensor([0.25, 0.5, 0.125]), atol=1e-3, rtol=0)
    torch.testing.assert_close(points.amin(dim=0), -torch.tensor([0.25, 0.5, 0.125]), atol=1e-3, rtol=0)
    shares = [
        float((points[:, axis].abs() > half - 1e-3).double().mean())
        for axis, half in enumerate((0.25, 0.5, 0.125))
    ]
    assert shares == pytest.approx([8 / 28, 4 / 28, 16 / 28], abs=0.03)
    assert colors.unique().tolist() == pytest.approx([127 / 255])


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_formats_with_y_up_are_turned_to_stand_and_face_the_front(tmp_path, suffix):
    mesh = box(0.2, 1.0, 0.4)  # y is up: tall; its front, +z, is marked by a nose
    nose = box(0.1, 0.1, 0.2)
    nose.apply_translation([0, 0, 0.3])
    left = box(0.1, 0.1, 0.1)  # on +x, the right of who looks at its front
    left.apply_translation([0.15, 0, 0])
    points, _ = from_file(tmp_path / f"figure.{suffix}", trimesh.util.concatenate([mesh, nose, left]))
    sides = points.amax(dim=0) - points.amin(dim=0)
    torch.testing.assert_close(sides, torch.tensor([0.3, 0.6, 1.0]), atol=0.02, rtol=0)
    assert points[:, 2].abs().max() == pytest.approx(0.5, abs=1e-3)
    foremost = points[points[:, 1] > 0.2]  # the nose is slim: all of it near the axis
    assert len(foremost) > 10
    assert foremost[:, 2].abs().max() < 0.06
    rightmost = points[points[:, 0] < -0.07]  # the front camera's right is world -x
    assert len(rightmost) > 10
    assert rightmost[:, 2].abs().max() < 0.06


def test_scenes_are_assembled(tmp_path):
    scene = trimesh.Scene()
    for x in (0, 9):
        scene.add_geometry(box(1, 1, 1), transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    points, _ = from_file(tmp_path / "two.glb", scene)
    assert ((points[:, 0].abs() > 0.399) & (points[:, 0].abs() <= 0.5001)).all()


def test_colours_of_vertices_are_interpolated(tmp_path):
    mesh = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [0, 0, 1]], [[0, 1, 2]], vertex_colors=[RED, GREEN, GREEN], process=False
    )
    points, colors = from_file(tmp_path / "a.ply", mesh)
    red = 1 - (points[:, 0] + 0.5) - (points[:, 2] + 0.5)
    torch.testing.assert_close(colors[:, 0], red, atol=0.01, rtol=0)
    torch.testing.assert_close(colors[:, 1], 1 - red, atol=0.01, rtol=0)


def test_colours_of_faces(tmp_path):
    mesh = box(1, 1, 1)
    mesh.visual.face_colors = [RED if normal[2] > 0.5 else GREEN for normal in mesh.face_normals]
    points, colors = from_file(tmp_path / "a.ply", mesh)
    top = points[:, 2] > 0.5 - 1e-6
    assert torch.equal(colors[:, 0] > 0.99, top)
    assert torch.equal(colors[:, 1] > 0.99, ~top)


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_colours_of_textures(tmp_path, suffix):
    texture = np.zeros((4, 4, 3), dtype=np.uint8)
    texture[:2, :, 0], texture[2:, :, 1] = 255, 255  # upper half (v > 1/2) red, lower green
    material = trimesh.visual.material.SimpleMaterial(image=Image.fromarray(texture), diffuse=[255] * 4)
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    visual = trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material)
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    points, colors = from_file(tmp_path / f"a.{suffix}", mesh)
    height = points[:, 2]  # y up in the file
    assert (colors[height > 0.2, 0] > 0.9).all()
    assert (colors[height < -0.2, 1] > 0.9).all()


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


def error(path, content: bytes | None = None, **settings) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        from_file(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_is_needed():
    with pytest.raises(UserError, match="init_path"):
        points_of("file")


@pytest.mark.parametrize("name", ["a.obj", "a.ply", "a.glb"])
def test_a_missing_file_is_named(tmp_path, name):
    assert name in error(tmp_path / name)


def test_an_unknown_format_is_named(tmp_path):
    assert ".glb" in error(tmp_path / "a.blend")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.glb", b"glTF" + b"\x00" * 40),
        ("a.glb", b""),
        ("a.obj", b"v 0 0 0\nf 1 2 3\n"),
        ("a.obj", b""),
        ("a.stl", b"\x00" * 84 + b"\xff" * 10),
        ("a.obj", b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n"),
    ],
)
def test_broken_meshes_are_the_users(tmp_path, name, content):
    assert name in error(tmp_path / name, content)


PLY = b"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
FACE = b"element face 1\nproperty list uchar int vertex_indices\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"),
        ("a.stl", b"solid nothing\nendsolid\n"),
        ("a.obj", b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("a.ply", PLY + FACE + b"end_header\n0 0 0\n1 0 0\n0 1 nan\n1 1 1\n3 0 1 2\n"),
        ("a.ply", PLY + b"end_header\n0 0 0\n1 0 0\n0 1 nan\n1 1 1\n"),
    ],
    ids=["obj without faces", "stl without faces", "obj with NaN", "ply with NaN", "cloud with NaN"],
)
def test_shapes_without_faces_or_with_nan_are_called_so(tmp_path, name, content):
    message = error(tmp_path / name, content)
    assert "expected" in message and "finite" in message and name in message
    assert message.endswith("check the file")


def test_clouds_without_extent_or_with_too_few_points(tmp_path):
    write_points(tmp_path / "a.ply", torch.ones(5, 3), torch.ones(5, 3))
    assert "finite size" in error(tmp_path / "a.ply")
    write_points(tmp_path / "a.ply", torch.eye(3), torch.ones(3, 3))
    assert "at least 4 points" in error(tmp_path / "a.ply")


def test_a_mesh_of_too_many_faces_is_refused_before_it_is_read(tmp_path):
    """Every format says how many faces it has; none of these files has the 10^8 that it declares."""
    count = 10**8
    (tmp_path / "a.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\nproperty float y\n"
        b"property float z\nelement face %d\nproperty list uchar int vertex_indices\nend_header\n" % count
    )
    with (tmp_path / "a.stl").open("wb") as file:
        file.write(bytes(80) + count.to_bytes(4, "little"))
        file.truncate(84 + 50 * count)
    tree = {
        "accessors": [{"count": 9}, {"count": 3 * count}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
    }
    text = json.dumps(tree).encode()
    (tmp_path / "a.gltf").write_bytes(text)
    (tmp_path / "a.glb").write_bytes(b"glTF" + bytes(8) + len(text).to_bytes(4, "little") + b"JSON" + text)
    for suffix in ("ply", "stl", "gltf", "glb"):
        message = error(tmp_path / f"a.{suffix}")
        assert "expected at most 20,000,000 triangles, got 100,000,000" in message


@pytest.mark.parametrize("suffix", ["ply", "stl", "obj", "glb"])
def test_a_file_declares_the_faces_that_it_has(tmp_path, suffix):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.export(tmp_path / f"a.{suffix}")
    assert declared_faces(tmp_path / f"a.{suffix}") == len(mesh.faces)


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
