"""Damaged geometry: Gaussians, points and meshes of every format are read, or refused in one line."""

import base64
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from plyfile import PlyData, PlyElement

from arguments import GenerateCamParams
from scene.initialization import initial_points
from scene.ply import read_gaussians, read_points
from tests.faults.fuzz import fuzz, long_form

SHORT = 60
WORDS = (
    "float", "double", "uchar", "char", "ushort", "short", "int", "uint", "list", "property", "element", "vertex",
    "face", "comment", "end_header", "ascii", "binary_little_endian", "binary_big_endian", "format", "ply", "f_dc_0",
    "scale_2", "red", "diffuse_red", "packed_position", "vertex_indices", "vertex_index", "texcoord", "s", "nx",
    "TextureFile",
    "usemtl", "mtllib", "map_Kd", "Kd", "newmtl", "vt", "vn", "f", "v", "o", "l", "facet", "normal", "outer", "loop",
    "endloop", "endfacet", "solid", "endsolid", "POSITION", "COLOR_0", "TEXCOORD_0", "indices", "mode", "material",
    "baseColorFactor", "baseColorTexture", "componentType", "bufferView", "byteOffset", "byteStride", "byteLength",
    "count", "children", "mesh", "nodes", "matrix", "scale", "rotation", "uri", "sparse", "extensions",
    "extensionsUsed",
)  # fmt: skip


def table(names: str, kind: str = "f4", count: int = 8) -> np.ndarray:
    values = np.random.default_rng(0)
    rows = np.zeros(count, dtype=[(name, kind) for name in names.split()])
    for name in rows.dtype.names:
        rows[name] = values.normal(size=count)
    return rows


def ply_bytes(*elements: PlyElement, **options) -> bytes:
    file = io.BytesIO()
    PlyData(list(elements), **options).write(file)
    return file.getvalue()


GAUSSIAN = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
REST = " ".join(f"f_rest_{index}" for index in range(9))


def gaussian_files() -> dict[str, bytes]:
    extra = PlyElement.describe(np.array([([1, 2],)], dtype=[("size", "O")]), "image", len_types={"size": "u1"},
                                val_types={"size": "i4"})  # fmt: skip
    plain = PlyElement.describe(table(GAUSSIAN), "vertex")
    bands = PlyElement.describe(table(f"{GAUSSIAN} nx ny nz {REST}", "f8"), "vertex")
    return {
        "plain.ply": ply_bytes(plain, byte_order="<", comments=["dreammapping frame=rdf"]),
        "big.ply": ply_bytes(bands, byte_order=">"),
        "text.ply": ply_bytes(plain, text=True),
        "behind.ply": ply_bytes(extra, plain, PlyElement.describe(table("a b"), "more"), byte_order="<"),
    }


def cube_faces() -> PlyElement:
    faces = np.empty(
        2, dtype=[("vertex_indices", "i4", (3,)), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    )
    faces["vertex_indices"] = [[0, 1, 2], [2, 3, 4]]
    return PlyElement.describe(faces, "face", len_types={"vertex_indices": "u1"})


def polygons() -> PlyElement:
    faces = np.empty(
        2, dtype=[("vertex_indices", "O"), ("texcoord", "O"), ("red", "f4"), ("green", "f4"), ("blue", "f4")]
    )
    for row, corners in zip(faces, ([0, 1, 2], [1, 2, 3, 4]), strict=True):
        row["vertex_indices"] = np.array(corners, dtype="i4")
        row["texcoord"] = np.linspace(0, 1, 2 * len(corners), dtype="f4")
        row["red"] = row["green"] = row["blue"] = 0.5
    return PlyElement.describe(faces, "face", len_types={"vertex_indices": "u1", "texcoord": "u2"})


def point_files() -> dict[str, bytes]:
    colored = np.zeros(8, dtype=[(n, "f8") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")])
    for name in "xyz":
        colored[name] = 5e6 + table("x", "f8")["x"]
    diffuse = PlyElement.describe(table("x y z diffuse_red diffuse_green diffuse_blue"), "vertex")
    return {
        "colored.ply": ply_bytes(PlyElement.describe(colored, "vertex"), byte_order="<"),
        "diffuse.ply": ply_bytes(diffuse, text=True),
        "gaussians.ply": ply_bytes(PlyElement.describe(table(GAUSSIAN), "vertex"), byte_order="<"),
    }


def mesh_files() -> dict[str, bytes]:
    box = trimesh.creation.box()
    colored = trimesh.creation.box()
    colored.visual.vertex_colors = np.arange(32, dtype=np.uint8).reshape(8, 4)
    texture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture, baseColorFactor=[255, 0, 0, 255])
    visual = trimesh.visual.TextureVisuals(uv=np.linspace(0, 1, 16).reshape(8, 2), material=material)
    textured = trimesh.Trimesh(box.vertices, box.faces, visual=visual, process=False)
    scene = trimesh.Scene([colored, textured])
    for x in (2.0, 4.0):
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    glb = scene.export(file_type="glb")
    length = struct.unpack("<I", glb[12:16])[0]
    tree = json.loads(glb[20 : 20 + length])
    body = glb[28 + length :]
    tree["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(body).decode()
    vertices = PlyElement.describe(table("x y z nx ny nz s t"), "vertex")
    return {
        "scene.glb": glb,
        "scene.gltf": json.dumps(tree, indent=1).encode(),
        "box.obj": b"# a box\nmtllib none.mtl\no box\nusemtl red\n"
        + colored.export(file_type="obj").encode(),
        "faces.obj": b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvn 0 0 1\nf 1/1/1 2/2/1 3/3/1\n"
        b"usemtl other\nf 1//1 2//1 3//1 4//1\nf -1 -2 -3\n",
        "box.stl": box.export(file_type="stl"),
        "text.stl": box.export(file_type="stl_ascii").encode(),
        "colored.ply": colored.export(file_type="ply"),
        "text.ply": ply_bytes(vertices, cube_faces(), text=True, comments=["TextureFile none.png"]),
        "faces.ply": ply_bytes(vertices, cube_faces(), byte_order=">"),
        "polygons.ply": ply_bytes(vertices, polygons(), byte_order="<"),
        "text_polygons.ply": ply_bytes(vertices, polygons(), text=True),
    }


def gaussians(path: Path) -> None:
    model = read_gaussians(path, sh_degree=1)
    assert len(model) > 0
    for name in model.parameter_names:
        assert getattr(model, name).isfinite().all(), name


def points(path: Path) -> None:
    found, colors = read_points(path)
    check(found, found.new_zeros(found.shape) if colors is None else colors)


def start_shape(path: Path) -> None:
    params = GenerateCamParams(init_shape="file", init_path=str(path), init_num_pts=20)
    found, colors = initial_points(params, torch.Generator().manual_seed(0))
    check(found, colors)
    assert found.dtype == torch.float32
    assert found.abs().max() <= 0.5 + 1e-5


def check(found: torch.Tensor, colors: torch.Tensor) -> None:
    assert found.isfinite().all()
    assert len(found) == len(colors)
    assert ((colors >= 0) & (colors <= 1)).all()


READERS = pytest.mark.parametrize(
    ("read", "files"),
    [
        (gaussians, gaussian_files),
        (points, point_files),
        (start_shape, point_files),
        (start_shape, mesh_files),
    ],
    ids=["gaussians", "points", "start from points", "start from a mesh"],
)


@READERS
def test_damaged_geometry_is_read_or_refused_in_one_line(tmp_path, read, files):
    report = fuzz(read, files(), SHORT, seed=0, folder=tmp_path, words=WORDS)
    assert report.failures == [], str(report)
    assert report.read > 0 and report.refused > 0


@pytest.mark.slow
@READERS
def test_damaged_geometry_at_length(tmp_path, read, files):
    cases, seed = long_form()
    report = fuzz(read, files(), cases, seed, tmp_path, words=WORDS)
    assert report.failures == [], str(report)
