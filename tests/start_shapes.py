"""Start shapes of settings and of files, for the tests."""

import base64
import json

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from arguments import GenerateCamParams
from scene.initialization import initial_points
from tests.gaussians import seeded
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


def quad(visual=None, **settings) -> trimesh.Trimesh:
    corners = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False, **settings)


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


def error(path, content: bytes | None = None, **settings) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        from_file(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


PLY = b"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"

FACE = b"element face 1\nproperty list uchar int vertex_indices\n"
