"""Meshes as start shapes that are broken, too large, or no files."""

import contextlib
import json
import os
import tracemalloc

import numpy as np
import pytest
import trimesh

from scene.mesh_size import declared_faces
from tests.start_shapes import FACE, PLY, box, error, from_file, gltf_of, painted
from utils.errors import UserError


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
