"""Textured meshes on disk: .glb, .obj with its .mtl and .png, and .ply with colours of vertices."""

import io
from pathlib import Path

import numpy as np
import torch
import trimesh
from jaxtyping import Float
from PIL import Image

from dreammapping.mesh.texture import Textured
from dreammapping.mesh.views import sample
from scene.frame import to_y_up
from scene.glb import INDICES, Glb
from utils.files import atomic, write_text
from utils.images import write_picture

LINEAR, MIPMAPPED, CLAMP = 9729, 9987, 33071


def write_glb(path: Path, mesh: Textured, scale: float) -> None:
    """glTF: y up, front +z, metres. The colours have their light in them, so the material asks for no more (unlit).

    Raises:
        UserError: the file cannot be written.
    """
    file = Glb()
    picture = io.BytesIO()
    Image.fromarray(mesh.picture).save(picture, "PNG")
    attributes = {
        "POSITION": file.accessor(_y_up(mesh, scale).astype(np.float32), bounds=True),
        "NORMAL": file.accessor(_y_up_normals(mesh).astype(np.float32)),
        "TEXCOORD_0": file.accessor(mesh.uv.astype(np.float32)),
    }
    indices = file.accessor(mesh.faces.astype(np.uint32).reshape(-1), target=INDICES)
    tree = {
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": path.stem}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [
            {
                "name": "views",
                "pbrMetallicRoughness": {
                    "baseColorTexture": {"index": 0},
                    "metallicFactor": 0,
                    "roughnessFactor": 1,
                },
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"magFilter": LINEAR, "minFilter": MIPMAPPED, "wrapS": CLAMP, "wrapT": CLAMP}],
        "images": [{"bufferView": file.view(picture.getvalue()), "mimeType": "image/png"}],
    }
    file.write(path, tree)


def write_obj(path: Path, mesh: Textured, scale: float) -> None:
    """Wavefront's: y up, front +z, with `.mtl` and `.png` of the same name beside it.

    Raises:
        UserError: a file cannot be written.
    """
    write_picture(path.with_suffix(".png"), mesh.picture)
    material = f"newmtl views\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.png\n"
    write_text(path.with_suffix(".mtl"), material)
    uv = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=1)  # from the lower left corner
    corners = mesh.faces + 1
    with atomic(path) as temporary, temporary.open("w", encoding="ascii", newline="\n") as file:
        file.write(f"mtllib {path.stem}.mtl\nusemtl views\n")
        np.savetxt(file, _y_up(mesh, scale), fmt="v %.7g %.7g %.7g")
        np.savetxt(file, uv, fmt="vt %.7g %.7g")
        np.savetxt(file, _y_up_normals(mesh), fmt="vn %.5f %.5f %.5f")
        np.savetxt(file, corners.repeat(3, axis=1), fmt="f %d/%d/%d %d/%d/%d %d/%d/%d")


def write_ply(path: Path, mesh: Textured, scale: float) -> None:
    """Colours of vertices and no texture; z up, front +y, in one piece: no vertex lies twice.

    Raises:
        UserError: the file cannot be written.
    """
    colors = np.zeros((len(mesh.surface.vertices), 3), dtype=np.uint8)
    picture = torch.from_numpy(mesh.picture).permute(2, 0, 1)[None].float()
    found = sample(picture, torch.from_numpy(2 * mesh.uv - 1).float())
    colors[mesh.of_surface] = found.round().clamp(0, 255).byte().numpy()
    plain = trimesh.Trimesh(
        scale * mesh.surface.vertices, mesh.surface.faces, vertex_colors=colors, process=False
    )
    with atomic(path) as temporary:
        temporary.write_bytes(plain.export(file_type="ply"))


def _y_up(mesh: Textured, scale: float) -> Float[np.ndarray, "W 3"]:
    return scale * to_y_up(torch.from_numpy(mesh.vertices)).numpy()


def _y_up_normals(mesh: Textured) -> Float[np.ndarray, "W 3"]:
    return to_y_up(torch.from_numpy(mesh.surface.normals[mesh.of_surface])).numpy()
