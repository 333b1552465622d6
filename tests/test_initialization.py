"""Initial points: primitives, point clouds, meshes with colours, and files that are broken."""

import base64
import contextlib
import dataclasses
import json
import logging
import math
import os
import tracemalloc

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from plyfile import PlyData, PlyElement

from arguments import Config, GenerateCamParams, ModelParams
from dreammapping.gaussians import initial_gaussians
from scene.initialization import SHAPES, _centred, initial_points
from scene.mesh_size import declared_faces
from scene.ply import write_gaussians, write_points
from scene.strays import strays
from tests.gaussians import random_gaussians, seeded
from utils.errors import UserError

RED, GREEN, BLUE = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]


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


PAINTED_OBJ = "mtllib a.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"


def quad(visual=None, **settings) -> trimesh.Trimesh:
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False, **settings)


def srgb(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def gltf_of(path, mesh: trimesh.Trimesh, change=lambda tree: None) -> None:
    """Write a .gltf with its numbers inside, its description changed."""
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh))
    tree = json.loads(files["model.gltf"])
    for buffer in tree["buffers"]:
        content = base64.b64encode(files[buffer["uri"]]).decode()
        buffer["uri"] = f"data:application/octet-stream;base64,{content}"
    change(tree)
    path.write_text(json.dumps(tree))


def painted(grey: int, factor: list[float] | None) -> trimesh.Trimesh:
    """A square with a texture of one grey, and a factor in linear light."""
    image = Image.fromarray(np.full((4, 4, 3), grey, dtype=np.uint8))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, baseColorFactor=factor)
    return quad(trimesh.visual.TextureVisuals(uv=[[0, 0], [1, 0], [1, 1], [0, 1]], material=material))


@pytest.mark.parametrize("factor", [None, [1.0, 0.0, 0.0, 1.0], [0.5, 0.01, 0.2, 1.0]])
@pytest.mark.parametrize("grey", [255, 100])
def test_textures_of_gltf_are_multiplied_by_a_factor_in_linear_light(tmp_path, factor, grey):
    def change(tree):
        if factor:  # as it is written, and not in 8 bits
            tree["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = factor

    gltf_of(tmp_path / "a.gltf", painted(grey, factor), change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    light = ((grey / 255 + 0.055) / 1.055) ** 2.4
    expected = [srgb(light * part) for part in (factor or [1, 1, 1, 1])[:3]]
    torch.testing.assert_close(colors, torch.tensor(expected).expand(10, 3), rtol=0, atol=1e-5)


def test_a_binary_gltf_is_tinted_alike(tmp_path):
    _, colors = from_file(tmp_path / "a.glb", painted(255, [1.0, 0.0, 0.0, 1.0]), count=10)
    torch.testing.assert_close(colors, torch.tensor([1.0, 0.0, 0.0]).expand(10, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("beside", [None, {}, {"metallicFactor": 0.0}])
@pytest.mark.parametrize("grey", [None, 100])
def test_the_older_diffuse_colour_of_gltf_is_the_base_colour_where_there_is_no_other(tmp_path, beside, grey):
    def change(tree):
        material = tree["materials"][0]
        texture = material.pop("pbrMetallicRoughness")["baseColorTexture"]
        older = {"diffuseFactor": [0.8, 0.1, 0.2, 1.0], "glossinessFactor": 0.2}
        older |= {} if grey is None else {"diffuseTexture": texture}
        material["extensions"] = {"KHR_materials_pbrSpecularGlossiness": older}
        if beside is not None:
            material["pbrMetallicRoughness"] = beside

    gltf_of(tmp_path / "a.gltf", painted(grey or 255, None), change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    light = ((grey or 255) / 255 + 0.055) / 1.055
    expected = [srgb(light**2.4 * part) for part in (0.8, 0.1, 0.2)]
    torch.testing.assert_close(colors, torch.tensor(expected).expand(10, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grey", [None, 100])
@pytest.mark.parametrize("strength", [None, 0.5, 4.0])
def test_a_black_surface_of_gltf_has_the_colour_of_the_light_that_it_emits(tmp_path, grey, strength):
    def change(tree):
        material = tree["materials"][0]
        plain = material["pbrMetallicRoughness"]
        if grey is not None:
            material["emissiveTexture"] = plain["baseColorTexture"]
        plain["baseColorFactor"] = [0.0, 0.0, 0.0, 1.0]
        material["emissiveFactor"] = [0.8, 0.1, 0.2]
        if strength is not None:
            material["extensions"] = {"KHR_materials_emissive_strength": {"emissiveStrength": strength}}

    gltf_of(tmp_path / "a.gltf", painted(grey or 255, None), change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    light = (((grey or 255) / 255 + 0.055) / 1.055) ** 2.4
    expected = [srgb(light * min(part * (strength or 1.0), 1.0)) for part in (0.8, 0.1, 0.2)]
    torch.testing.assert_close(colors, torch.tensor(expected).expand(10, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("base", "emits"), [([1.0, 0.0, 0.0, 1.0], [0, 1, 0]), ([0.0, 0.0, 0.0, 1.0], [0, 0, 0])]
)
def test_a_surface_that_is_seen_without_its_own_light_keeps_its_base_colour(tmp_path, base, emits):
    def change(tree):
        tree["materials"][0]["pbrMetallicRoughness"]["baseColorFactor"] = base
        tree["materials"][0]["emissiveFactor"] = emits

    gltf_of(tmp_path / "a.gltf", painted(255, None), change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    torch.testing.assert_close(colors, torch.tensor(base[:3]).expand(10, 3), rtol=0, atol=1e-5)


def test_gaussians_in_gltf_are_no_mesh_and_the_message_says_where_they_go(tmp_path):
    gltf_of(tmp_path / "a.gltf", quad(), lambda tree: tree.update(extensionsUsed=["KHR_gaussian_splatting"]))
    with pytest.raises(UserError, match=r"expected a mesh, got Gaussians.*pretrained_model_path"):
        from_file(tmp_path / "a.gltf", count=10)


@pytest.mark.parametrize(
    ("kind", "component"), [("<f4", 5126), ("<u2", 5123), ("u1", 5121)], ids=["float", "16 bits", "8 bits"]
)
@pytest.mark.parametrize("factor", [None, [0.5, 1.0, 0.25, 1.0]])
@pytest.mark.parametrize("channels", [3, 4])
def test_vertex_colours_of_gltf_are_linear_light_times_the_factor(
    tmp_path, kind, component, factor, channels
):
    light = [0.02, 0.5, 1.0, 1.0][:channels]
    full = 1 if kind == "<f4" else np.iinfo(kind).max
    rows = np.tile(np.asarray(light) * full, (4, 1))
    stored = (rows if full == 1 else rows.round()).astype(kind)

    def change(tree):
        body = base64.b64encode(stored.tobytes()).decode()
        tree["buffers"].append(
            {"uri": f"data:application/octet-stream;base64,{body}", "byteLength": stored.nbytes}
        )
        view = {"buffer": len(tree["buffers"]) - 1, "byteOffset": 0, "byteLength": stored.nbytes}
        tree["bufferViews"].append(view)
        accessor = {"componentType": component, "type": f"VEC{channels}", "count": 4, "normalized": full != 1}
        tree["accessors"].append(accessor | {"bufferView": len(tree["bufferViews"]) - 1})
        primitive = tree["meshes"][0]["primitives"][0]
        primitive["attributes"]["COLOR_0"] = len(tree["accessors"]) - 1
        if factor:
            tree["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": factor}}]
            primitive["material"] = 0

    gltf_of(tmp_path / "a.gltf", quad(), change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    exact = stored[0, :3].astype(np.float64) / full
    expected = [srgb(part * by) for part, by in zip(exact, (factor or [1] * 4)[:3], strict=True)]
    torch.testing.assert_close(
        colors, torch.tensor(expected, dtype=torch.float32).expand(10, 3), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    "names",
    [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("Red", "Green", "Blue")],
)
@pytest.mark.parametrize(("kind", "full"), [("u1", 255), ("u2", 65535), ("f4", 1), ("f4", 255)])
@pytest.mark.parametrize("options", [{}, {"text": True}])
@pytest.mark.parametrize("of", ["vertex", "face"])
def test_colours_of_ply_meshes_have_any_name_and_range(tmp_path, names, kind, full, options, of):
    fields = [(name, kind) for name in names]
    vertices = np.zeros(4, dtype=[(axis, "f8") for axis in "xyz"] + (fields if of == "vertex" else []))
    vertices["x"], vertices["y"] = [0, 1, 1, 0], [0, 0, 1, 1]
    faces = np.zeros(2, dtype=[("vertex_indices", "i4", (3,)), *(fields if of == "face" else [])])
    faces["vertex_indices"] = [[0, 1, 2], [0, 2, 3]]
    for name, part in zip(names, (0.2, 1.0, 0.6), strict=True):
        (vertices if of == "vertex" else faces)[name] = (
            round(part * full) if kind.startswith("u") else part * full
        )
    elements = [
        PlyElement.describe(vertices, "vertex"),
        PlyElement.describe(faces, "face", len_types={"vertex_indices": "u1"}),
    ]
    PlyData(elements, **options).write(str(tmp_path / "a.ply"))
    _, colors = from_file(tmp_path / "a.ply", count=10)
    torch.testing.assert_close(colors, torch.tensor([0.2, 1.0, 0.6]).expand(10, 3), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{"byte_order": "<"}, {"byte_order": ">"}, {"text": True}], ids=["little", "big", "text"]
)
@pytest.mark.parametrize(
    "faces", [[[0, 1, 2, 3], [3, 2, 4]], [[0, 1, 2, 4, 3]], [[0, 1], [0, 1, 2, 3], [2, 4, 3]]]
)
def test_faces_of_a_ply_may_have_any_number_of_corners(tmp_path, faces, options):
    """The unit square, red, under a gable, blue or red."""
    corners = np.array(
        [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 1.5, 0)], dtype=[(axis, "f4") for axis in "xyz"]
    )
    colors = ("red", "green", "blue")
    rows = np.empty(
        len(faces), dtype=[("material", "i4"), ("vertex_indices", "O"), *((name, "u1") for name in colors)]
    )
    for row, face in zip(rows, faces, strict=True):
        row["vertex_indices"], row["material"] = np.array(face, dtype="i4"), 7
        row["red"], row["green"], row["blue"] = BLUE[:3] if len(face) == 3 else RED[:3]
    element = PlyElement.describe(rows, "face", len_types={"vertex_indices": "u1"})
    PlyData([PlyElement.describe(corners, "vertex"), element], **options).write(str(tmp_path / "a.ply"))
    count = 4000
    points, found = from_file(tmp_path / "a.ply", count=count)
    blue = found[:, 2] == 1
    gable = blue if len(faces) > 1 else points[:, 1] > 0.5 - 0.5 / 1.5
    assert float(gable.double().mean()) == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / count))
    assert points[gable, 1].min() > points[~gable, 1].max()
    assert blue.any() == (len(faces) > 1)


@pytest.mark.parametrize("options", [{"byte_order": ">"}, {"text": True}], ids=["big", "text"])
def test_polygons_of_a_ply_keep_their_texture(tmp_path, options):
    """A square and a gable beside it, of which the texture is red up to x = 1 and blue beyond."""
    Image.fromarray(np.array([[RED[:3], BLUE[:3]]], dtype=np.uint8)).save(tmp_path / "dächer.png")
    corners = np.array(
        [(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (2, 0.5, 0)], dtype=[(axis, "f4") for axis in "xyz"]
    )
    rows = np.empty(2, dtype=[("texcoord", "O"), ("vertex_indices", "O")])
    for row, face in zip(rows, ([0, 1, 2, 3], [1, 4, 2]), strict=True):
        row["vertex_indices"] = np.array(face, dtype="i4")
        row["texcoord"] = np.array([(corners["x"][at] / 2, 0.5) for at in face], dtype="f4").ravel()
    element = PlyElement.describe(rows, "face", val_types={"texcoord": "f4"})
    PlyData([PlyElement.describe(corners, "vertex"), element], comments=["TextureFile X"], **options).write(
        str(tmp_path / "a.ply")
    )
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(content.replace(b"TextureFile X", "TextureFile dächer.png".encode()))
    points, found = from_file(tmp_path / "a.ply", count=1000)
    expected = torch.where(points[:, :1] > 0, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0]))
    inside = points[:, 0].abs() > 0.05  # of x = 1 in the file, which the middle of the sampled points is near
    assert (expected[inside, 0] == 0).any() and (expected[inside, 0] == 1).any()
    torch.testing.assert_close(found[inside], expected[inside])


def test_polygons_of_more_triangles_than_fit_are_refused_before_they_are_cut(tmp_path, monkeypatch):
    content = PLY + FACE + b"end_header\n" + 4 * b"0 0 0\n" + b"6 0 1 2 3 2 1\n"
    monkeypatch.setattr("scene.mesh.MOST_FACES", 3)
    assert "expected at most 3 triangles, got 4; simplify the mesh first" in error(
        tmp_path / "a.ply", content
    )


def test_a_face_of_more_corners_than_the_file_reserves_no_memory(tmp_path):
    content = (
        PLY.replace(b"ascii", b"binary_little_endian") + FACE.replace(b"uchar", b"uint") + b"end_header\n"
    )
    content += np.eye(4, 3, dtype="<f4").tobytes() + np.array([500_000_000, 0, 1, 2], dtype="<u4").tobytes()
    tracemalloc.start()
    message = error(tmp_path / "a.ply", content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "early end-of-file" in message and peak < 500_000_000


@pytest.mark.parametrize("suffix", ["obj", "glb", "ply"])
def test_meshes_at_a_surveyors_coordinates_keep_their_shape(tmp_path, suffix):
    """Float32 tells apart what is half a metre apart there; a box of a metre would lose its faces."""
    start = np.array([431_234.3, 5_432_123.7, 87.1])
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    path = tmp_path / f"a.{suffix}"
    if suffix == "obj":
        mesh.apply_translation(start)
        mesh.export(path, digits=12)
    elif suffix == "glb":  # as tiles are: float32 about their own origin, which a node places
        scene = trimesh.Scene()
        scene.add_geometry(mesh, transform=trimesh.transformations.translation_matrix(start))
        scene.export(path)
    else:
        vertices = np.zeros(len(mesh.vertices), dtype=[(axis, "f8") for axis in "xyz"])
        for axis, name in enumerate("xyz"):
            vertices[name] = mesh.vertices[:, axis] + start[axis]
        faces = np.zeros(len(mesh.faces), dtype=[("vertex_indices", "i4", (3,))])
        faces["vertex_indices"] = mesh.faces
        PlyData([PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")]).write(
            str(path)
        )
    points, _ = from_file(path, count=500)
    radii = points.norm(dim=1)
    assert radii.min() > 0.49 and radii.max() < 0.51


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


@pytest.mark.parametrize("suffix", ["obj", "ply", "glb"])
def test_a_corner_far_beyond_the_others_takes_its_triangles_with_it(tmp_path, caplog, suffix):
    """They would have nearly all of the area, and so nearly all of the points."""
    mesh = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    mesh.vertices[5] = [1e20, 0, 0]
    points, _ = from_file(tmp_path / f"a.{suffix}", mesh, count=500)
    radii = points.norm(dim=1)
    assert radii.min() > 0.48 and radii.max() < 0.52
    (said,) = caplog.messages
    assert f"1 of {len(mesh.vertices)} corners of triangles" in said


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
RGB = b"property uchar red\nproperty uchar green\nproperty uchar blue\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\n"),
        ("a.stl", b"solid nothing\nendsolid\n"),
        ("a.obj", b"v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"),
        ("a.ply", PLY + FACE + b"end_header\n0 0 0\n1 0 0\n0 1 nan\n1 1 1\n3 0 1 2\n"),
        ("a.ply", PLY + FACE + RGB + b"end_header\n0 0 0\n1 0 0\n0 1 0\n1 1 1\n2 0 1 9 9 9\n"),
        ("a.ply", PLY + b"end_header\n0 0 0\n1 0 0\n0 1 nan\n1 1 1\n"),
    ],
    ids=[
        "obj without faces",
        "stl without faces",
        "obj with NaN",
        "ply with NaN",
        "ply of an edge",
        "cloud with NaN",
    ],
)
def test_shapes_without_faces_or_with_nan_are_called_so(tmp_path, name, content):
    message = error(tmp_path / name, content)
    assert "expected" in message and "finite" in message and name in message
    assert message.endswith("check the file")


TRIANGLE = b"0 0 0\n1 0 0\n0 1 0\n1 1 1\n"


@pytest.mark.parametrize("index", [b"9", b"-1", b"4"])
def test_corners_that_do_not_exist_are_named(tmp_path, index):
    content = PLY + FACE + b"end_header\n" + TRIANGLE + b"3 0 1 " + index + b"\n"
    assert "expected triangles between its 4 corners" in error(tmp_path / "a.ply", content)


def test_triangles_of_no_area_and_corners_of_no_triangle_do_no_harm(tmp_path):
    text = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nv 9 9 nan\nf 1 2 3\nf 1 1 1\nf 1 2 2\n"
    (tmp_path / "a.obj").write_bytes(text)
    points, _ = from_file(tmp_path / "a.obj", count=100)
    assert points.isfinite().all() and len(points.unique(dim=0)) > 90


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "glb", "gltf"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, suffix, make):
    path = tmp_path / f"a.{suffix}"
    make(path)
    assert f"{path}: expected a file, got a" in error(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.gltf", b'{"asset": {"version": "2.0"}, "buffers": [{"uri": "pipe", "byteLength": 9}], "meshes": []}'),
        ("a.obj", b"mtllib pipe\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nf 1/1 2/1 3/1\n"),
        ("a.ply", b"ply\nformat ascii 1.0\ncomment TextureFile pipe\n" + PLY.split(b"\n", 2)[2] + FACE
         + b"end_header\n0 0 0\n1 0 0\n0 1 0\n1 1 1\n3 0 1 2\n"),
    ],
)  # fmt: skip
def test_files_that_a_mesh_names_are_not_waited_for(tmp_path, name, content):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(UserError):  # what is missing may be what the mesh needs
        assert len(from_file(tmp_path / name, count=10)[0]) == 10


@pytest.mark.parametrize(
    "name",
    [
        "my skin.png",
        "parts\\skin.png",
        "C:\\art\\skin.png",
        "../art/skin.png",
        "-clamp on -s 1 1 1 my skin.png",
    ],
)
def test_a_texture_is_found_as_other_programs_name_it(tmp_path, caplog, name):
    lies = {"parts\\skin.png": "parts/skin.png"}.get(name, "my skin.png" if "my" in name else "skin.png")
    (tmp_path / lies).parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / lies)
    (tmp_path / "a.mtl").write_text(f"newmtl a\nKd 1 1 1\nmap_Kd {name}\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ)
    _, colors = from_file(tmp_path / "a.obj", count=10)
    torch.testing.assert_close(colors, torch.tensor([0.0, 1.0, 0.0]).expand(10, 3))
    assert caplog.text == ""


@pytest.mark.parametrize("missing", ["a.mtl", "skin.png"])
def test_colours_that_a_mesh_lacks_are_told(tmp_path, caplog, missing):
    Image.new("RGB", (4, 4), (0, 255, 0)).save(tmp_path / "skin.png")
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 1 1\nmap_Kd skin.png\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ)
    (tmp_path / missing).unlink()
    from_file(tmp_path / "a.obj", count=10)
    assert f"names '{missing}', which is no file in its folder" in caplog.text


@pytest.mark.parametrize("kind", ["obj", "gltf"])
def test_a_texture_of_no_known_format_is_told(tmp_path, caplog, kind):
    (tmp_path / "skin.ktx2").write_bytes(b"\xabKTX 20\xbb" * 20)
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 1 1\nmap_Kd skin.ktx2\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ)
    image = {"uri": "skin.ktx2", "mimeType": "image/ktx2"}
    gltf_of(tmp_path / "a.gltf", painted(255, None), lambda tree: tree.update(images=[image]))
    from_file(tmp_path / f"a.{kind}", count=10)
    assert "is in no format that is read, so not all of its colours are there" in caplog.text


def test_a_texture_of_16_bits_is_no_white_one(tmp_path):
    Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)).save(tmp_path / "skin.png")
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 1 1 1\nmap_Kd skin.png\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ)
    _, colors = from_file(tmp_path / "a.obj", count=10)
    torch.testing.assert_close(colors, torch.full((10, 3), 100 / 255))


@pytest.mark.parametrize(
    "lines", ["mtllib b.mtl a.mtl", "mtllib b.mtl\nmtllib a.mtl", "mtllib b c.mtl\nmtllib a.mtl"]
)
def test_an_obj_may_name_several_files_of_materials(tmp_path, caplog, lines):
    for name in ("b.mtl", "b c.mtl"):
        (tmp_path / name).write_text("newmtl b\nKd 1 0 0\n")
    (tmp_path / "a.mtl").write_text("newmtl a\nKd 0 1 0\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ.replace("mtllib a.mtl", lines))
    _, colors = from_file(tmp_path / "a.obj", count=10)
    torch.testing.assert_close(colors, torch.tensor([0.0, 1.0, 0.0]).expand(10, 3))
    assert caplog.text == ""


def test_a_material_may_be_named_like_the_keyword_of_files(tmp_path, caplog):
    (tmp_path / "a.mtl").write_text("newmtl mtllib_x\nKd 0 1 0\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ.replace("usemtl a", "usemtl mtllib_x"))
    from_file(tmp_path / "a.obj", count=10)
    assert caplog.text == ""


def test_a_material_that_no_file_has_is_told(tmp_path, caplog):
    (tmp_path / "a.mtl").write_text("newmtl b\nKd 1 0 0\n")
    (tmp_path / "a.obj").write_text(PAINTED_OBJ)
    from_file(tmp_path / "a.obj", count=10)
    assert "uses 'a', which is no material of the .mtl that it names" in caplog.text


def test_a_ply_of_several_textures_is_warned_of(tmp_path, caplog):
    lines = [f"comment TextureFile {name}.png" for name in "ab"]
    for name in "ab":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    text = PLY.decode().split("\n", 2)
    text = "\n".join(["ply", "format ascii 1.0", *lines, text[2] + FACE.decode()])
    (tmp_path / "a.ply").write_text(text + "end_header\n0 0 0\n1 0 0\n0 1 0\n1 1 1\n3 0 1 2\n")
    from_file(tmp_path / "a.ply", count=10)
    assert "names 2 textures, of which one is read" in caplog.text


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_a_texture_of_gltf_is_looked_up_where_its_material_says(tmp_path, asked):
    """By the set of coordinates of that number; without it the file gives no place on the texture."""
    material = painted(100, None).visual.material
    uv = [[0, 0], [1, 0], [1, 1], [0, 1]]
    mesh = quad(trimesh.visual.TextureVisuals(uv=uv, material=material))

    def change(tree):
        attributes = tree["meshes"][0]["primitives"][0]["attributes"]
        attributes["TEXCOORD_1"] = attributes.pop("TEXCOORD_0")
        tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = asked

    gltf_of(tmp_path / "a.gltf", mesh, change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    torch.testing.assert_close(
        colors, torch.full((10, 3), 100 / 255 if asked == 1 else 1.0), atol=0.003, rtol=0
    )


@pytest.mark.parametrize(("wrap", "red"), [(10497, 1.0), (33071, 0.0), (33648, 0.0)])
def test_a_texture_of_gltf_goes_on_beyond_its_borders_as_its_sampler_says(tmp_path, wrap, red):
    """Red left, green right, looked up at 1.2: repeated, it is at 0.2 again; mirrored, at 0.8."""
    texture = np.zeros((2, 2, 3), dtype=np.uint8)
    texture[:, 0, 0], texture[:, 1, 1] = 255, 255
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
    mesh = quad(trimesh.visual.TextureVisuals(uv=[[1.2, 0.5]] * 4, material=material))

    def change(tree):
        tree["samplers"] = [{"wrapS": wrap, "wrapT": wrap}]
        tree["textures"][0]["sampler"] = 0

    gltf_of(tmp_path / "a.gltf", mesh, change)
    _, colors = from_file(tmp_path / "a.gltf", count=10)
    torch.testing.assert_close(colors, torch.tensor([red, 1 - red, 0.0]).expand(10, 3))


def test_a_gltf_without_scenes_is_read_whole(tmp_path):
    gltf_of(tmp_path / "a.gltf", quad(), lambda tree: [tree.pop(name) for name in ("scene", "scenes")])
    assert len(from_file(tmp_path / "a.gltf", count=10)[0]) == 10


def test_files_beside_a_gltf_may_have_spaces_in_their_names(tmp_path):
    def change(tree):
        content = tree["buffers"][0]["uri"].partition("base64,")[2]
        (tmp_path / "my numbers.bin").write_bytes(base64.b64decode(content))
        tree["buffers"][0]["uri"] = "my%20numbers.bin"

    gltf_of(tmp_path / "a.gltf", painted(255, None), change)
    assert len(from_file(tmp_path / "a.gltf", count=10)[0]) == 10


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"normalized": True}, "got quantized ones; export without quantization"),
        ({"sparse": {"count": 1}}, "got sparse ones; export without morph targets"),
    ],
)
def test_numbers_of_gltf_that_would_be_read_as_others_are_refused(tmp_path, what, said):
    gltf_of(tmp_path / "a.gltf", painted(255, None), lambda tree: [a.update(what) for a in tree["accessors"]])
    assert said in error(tmp_path / "a.gltf")


@pytest.mark.parametrize("change", [lambda tree: tree.pop("meshes"), lambda tree: tree.update(meshes=[])])
def test_a_gltf_of_cameras_or_lights_alone_is_no_mesh(tmp_path, change):
    gltf_of(tmp_path / "a.gltf", quad(), change)
    assert "expected a mesh, got a scene without any" in error(tmp_path / "a.gltf")


@pytest.mark.parametrize("list_of", ["extensionsUsed", "extensionsRequired"])
@pytest.mark.parametrize("name", ["KHR_texture_transform", "EXT_made_up", "KHR_materials_unlit"])
def test_what_changes_colours_of_gltf_and_is_not_read_is_told(tmp_path, caplog, list_of, name):
    gltf_of(tmp_path / "a.gltf", painted(255, None), lambda tree: tree.update({list_of: [name]}))
    from_file(tmp_path / "a.gltf", count=10)
    told = name == "KHR_texture_transform" or (name == "EXT_made_up" and list_of == "extensionsRequired")
    assert (f"{name} is not read" in caplog.text) == told


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_meshes_with_comments_in_any_encoding(tmp_path, encoding, line_end):
    text = "ply\nformat ascii 1.0\ncomment Büste\n" + (PLY.split(b"\n", 2)[2] + FACE).decode()
    text += "end_header\n0 0 0\n1 0 0\n0 1 0\n1 1 1\n3 0 1 2\n"
    (tmp_path / "a.ply").write_bytes(text.replace("\n", line_end).encode(encoding))
    assert len(from_file(tmp_path / "a.ply", count=10)[0]) == 10
    (tmp_path / "a.obj").write_bytes(
        "# Büste\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n".replace("\n", line_end).encode(encoding)
    )
    assert len(from_file(tmp_path / "a.obj", count=10)[0]) == 10


@pytest.mark.parametrize("name", ["a" * 300 + ".obj", "a\0b.glb"])
def test_paths_that_cannot_be_read(tmp_path, name):
    assert "cannot be used" in error(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tree: tree["nodes"][-1].update(skin=0), "a skin is not read"),
        (
            lambda tree: tree["meshes"][0].update(weights=[0.0, 0.5]),
            "the weight of a morph target is not read",
        ),
        (
            lambda tree: tree["meshes"][0]["primitives"].append(
                tree["meshes"][0]["primitives"][0] | {"mode": 6}
            ),
            "a fan of triangles is not read",
        ),
        (lambda tree: tree["meshes"][0].update(weights=[0.0]), ""),
    ],
)
def test_parts_of_gltf_that_are_not_read_are_told(tmp_path, caplog, change, told):
    gltf_of(tmp_path / "a.gltf", quad(), change)
    from_file(tmp_path / "a.gltf", count=10)
    assert told in caplog.text and ("not read" in caplog.text) == bool(told)


@pytest.mark.parametrize("list_of", ["extensionsUsed", "extensionsRequired"])
def test_compressed_meshes_are_named(tmp_path, list_of):
    gltf_of(tmp_path / "a.gltf", quad(), lambda tree: tree.update({list_of: ["KHR_draco_mesh_compression"]}))
    assert "KHR_draco_mesh_compression; export them without compression" in error(tmp_path / "a.gltf")


@pytest.mark.parametrize("what", ["accessors", "bufferViews"])
def test_parts_that_promise_more_than_the_file_has_take_no_memory(tmp_path, what):
    def change(tree):
        if what == "accessors":  # zeros, as none lies in a buffer; no triangle asks for them
            tree["accessors"] += [{"componentType": 5126, "type": "MAT4", "count": 10**9}]
        else:
            content = base64.b64encode(bytes(2**20)).decode()
            tree["buffers"].append({"uri": f"data:;base64,{content}", "byteLength": 2**20})
            view = {"buffer": len(tree["buffers"]) - 1, "byteLength": 2**20}
            tree["bufferViews"] += 1000 * [view]

    gltf_of(tmp_path / "a.gltf", quad(), change)
    size = (tmp_path / "a.gltf").stat().st_size
    message = error(tmp_path / "a.gltf")
    assert "expected parts of at most" in message and f"{size + 64 * 1024 * 1024:,}" in message


@pytest.mark.parametrize("at", [12, -1], ids=["description", "numbers"])
def test_chunks_that_are_longer_than_the_file_take_no_memory(tmp_path, at):
    path = tmp_path / "a.glb"
    quad().export(path)
    content = bytearray(path.read_bytes())
    at = at if at > 0 else 20 + int.from_bytes(content[12:16], "little")
    content[at : at + 4] = (2**32 - 1).to_bytes(4, "little")
    assert "cannot be read as a mesh" in error(path, bytes(content)) and str(2**32 - 1) in error(path)


def test_a_scene_that_places_a_mesh_too_often_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scene.mesh.MOST_FACES", 30)
    mesh = box(1, 1, 1)
    mesh.export(tmp_path / "one.glb")
    assert len(from_file(tmp_path / "one.glb", count=10)[0]) == 10

    def change(tree):
        tree["nodes"] = [{"mesh": 0} for _ in range(3)]
        tree["scenes"] = [{"nodes": [0, 1, 2]}]

    gltf_of(tmp_path / "a.gltf", mesh, change)
    assert "expected at most 30 triangles" in error(tmp_path / "a.gltf")


def test_a_texture_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scene.mesh.MOST_PIXELS", 15)
    painted(255, None).export(tmp_path / "a.glb")
    assert "a texture of 4 x 4 pixels" in error(tmp_path / "a.glb")


def test_errors_of_loaders_are_one_line(tmp_path, monkeypatch):
    def fail(*_arguments, **_settings):
        raise RuntimeError("many\nlines " + "and words " * 1000)

    monkeypatch.setattr(trimesh, "load_scene", fail)
    message = error(tmp_path / "a.obj", b"v 0 0 0\nf 1 1 1\n")
    assert "(many lines and words" in message and len(message) < 500


def test_nested_descriptions_are_refused(tmp_path):
    assert "cannot be read" in error(tmp_path / "a.gltf", b"[" * 100_000)


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
