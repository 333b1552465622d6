"""Meshes as start shapes: their surface, and the colours of vertices, faces and textures."""

import math

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from plyfile import PlyData, PlyElement

from tests.start_shapes import BLUE, FACE, GREEN, PLY, RED, box, from_file, gltf_of, painted


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
