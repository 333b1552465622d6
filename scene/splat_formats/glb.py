"""glTF's `KHR_gaussian_splatting` (a release candidate), in a .glb: all values in float32, y up, front +z.

Scales and opacities are activated, rotations x, y, z, w; harmonics keep their coefficients, and the colours that they
make are as displayed (sRGB). What knows no Gaussians shows points, whose `COLOR_0` is linear light.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scene import gltf
from scene.frame import WORLD_TO_Y_UP
from scene.gaussian_model import GaussianModel
from scene.glb import Glb
from scene.raw_gaussians import model_of, raw_table
from utils.errors import UserError
from utils.inputs import regular_file
from utils.spherical_harmonics import coefficient_count, sh_dc_to_rgb
from utils.srgb import srgb_to_linear

POINTS = 0
DISPLAYED = "srgb_rec709_display"
COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5126: "<f4"}
IDENTITY = {
    "translation": [0, 0, 0],
    "rotation": [0, 0, 0, 1],
    "scale": [1, 1, 1],
    "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
}


def write(path: Path | str, model: GaussianModel) -> None:
    """Write a scene of one mesh.

    Raises:
        UserError: a parameter is not finite, or the file cannot be written.
    """
    raw = raw_table(path, model, WORLD_TO_Y_UP)
    light = srgb_to_linear(sh_dc_to_rgb(raw["sh"][:, 0]))
    opacities = raw["opacity_logits"].sigmoid()
    colors = (torch.cat([light, opacities], dim=1) * 65535).round().numpy().astype(np.uint16)
    file = Glb()
    attributes = {
        "POSITION": file.accessor(raw["means"].numpy(), bounds=True),
        "COLOR_0": file.accessor(colors),
        f"{gltf.SPLATS}:ROTATION": file.accessor(raw["quats"][:, [1, 2, 3, 0]].numpy()),
        f"{gltf.SPLATS}:SCALE": file.accessor(raw["log_scales"].exp().numpy()),
        f"{gltf.SPLATS}:OPACITY": file.accessor(opacities[:, 0].numpy()),
    }
    for index in range(raw["sh"].shape[1]):
        attributes[_harmonic(index)] = file.accessor(raw["sh"][:, index].numpy())
    primitive = {
        "mode": POINTS,
        "attributes": attributes,
        "extensions": {gltf.SPLATS: {"kernel": "ellipse", "colorSpace": DISPLAYED}},
    }
    tree = {
        "extensionsUsed": [gltf.SPLATS],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "Gaussians"}],
        "meshes": [{"primitives": [primitive]}],
    }
    file.write(path, tree)


def read(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read into our frame; see `scene.splat_formats.read_any`."""
    path = regular_file(path)
    try:
        document = gltf.read(path)
        document.check()
        raw = _raw(path, document)
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: cannot be read as a .glb of Gaussians ({said}); check the file") from error
    return model_of(path, raw, WORLD_TO_Y_UP, sh_degree)


def _raw(path: Path, document: gltf.Document) -> dict[str, Tensor]:
    """All Gaussians of the file, as they lie in it."""
    primitives = [
        (number, primitive)
        for number, mesh in enumerate(document.tree.get("meshes", []))
        for primitive in mesh["primitives"]
        if gltf.SPLATS in primitive.get("extensions", {})
    ]
    _refuse_compressed(path, document.tree)
    if not primitives:
        raise UserError(
            f"{path}: expected Gaussians ({gltf.SPLATS}), got none; a mesh can be used with "
            "GenerateCamParams.init_shape: file"
        )
    for _, primitive in primitives:
        space = primitive["extensions"][gltf.SPLATS].get("colorSpace", DISPLAYED)
        if space != DISPLAYED:
            raise UserError(
                f"{path}: expected colours as displayed ({DISPLAYED}), got {space}; export it with these"
            )
    _refuse_placed(path, document.tree)
    with path.open("rb") as file:
        file.seek(document.body + 8)
        body = file.read()
    tables = [_primitive(document.tree, primitive["attributes"], body) for _, primitive in primitives]
    most = max(table["sh"].shape[1] for table in tables)
    for table in tables:
        table["sh"] = torch.nn.functional.pad(table["sh"], (0, 0, 0, most - table["sh"].shape[1]))
    return {name: torch.cat([table[name] for table in tables]) for name in tables[0]}


def _refuse_compressed(path: Path, tree: dict[str, Any]) -> None:
    """Their attributes lie in a form of the extension's own (a .spz)."""
    used = {*tree.get("extensionsUsed", []), *tree.get("extensionsRequired", [])}
    packed = sorted(name for name in used if "gaussian_splat" in name and "compression" in name)
    if packed:
        raise UserError(
            f"{path}: expected Gaussians as plain numbers, got {packed[0]}; export them without compression, or as .spz"
        )


def _refuse_placed(path: Path, tree: dict[str, Any]) -> None:
    for node in tree.get("nodes", []):
        for name, plain in IDENTITY.items():
            if not np.allclose(node.get(name, plain), plain):
                raise UserError(
                    f"{path}: expected Gaussians that no node moves, got a {name} of {node[name]}; apply it first"
                )


def _primitive(tree: dict[str, Any], attributes: dict[str, int], body: bytes) -> dict[str, Tensor]:
    def find(name: str) -> Float[Tensor, "N C"]:
        return _numbers(tree, tree["accessors"][attributes[name]], body)

    bands = next(degree for degree in range(4) if _harmonic(coefficient_count(degree)) not in attributes)
    sh = [find(_harmonic(index)) for index in range(coefficient_count(bands))]
    found = {
        "means": find("POSITION"),
        "log_scales": find(f"{gltf.SPLATS}:SCALE").log(),
        "quats": find(f"{gltf.SPLATS}:ROTATION")[:, [3, 0, 1, 2]],
        "opacity_logits": find(f"{gltf.SPLATS}:OPACITY").logit(),
        "sh": torch.stack(sh, dim=1),
    }
    shapes = [tuple(values.shape) for values in found.values()]
    count = len(found["means"])
    if shapes != [(count, 3), (count, 3), (count, 4), (count, 1), (count, len(sh), 3)]:
        raise ValueError(f"attributes of the shapes {', '.join(map(str, shapes))}")
    return found


def _harmonic(index: int) -> str:
    """The attribute of a coefficient, counted over all bands."""
    degree = int(index**0.5)
    return f"{gltf.SPLATS}:SH_DEGREE_{degree}_COEF_{index - degree**2}"


def _numbers(tree: dict[str, Any], accessor: dict[str, Any], body: bytes) -> Float[Tensor, "N C"]:
    """An accessor's rows; integers are shares of their largest."""
    if "sparse" in accessor or "bufferView" not in accessor:
        raise ValueError("sparse numbers")
    view = tree["bufferViews"][accessor["bufferView"]]
    if view.get("buffer", 0) != 0 or "uri" in tree["buffers"][0]:
        raise ValueError("numbers in another file")
    kind = np.dtype(COMPONENTS[accessor["componentType"]])
    count, columns = accessor["count"], gltf.NUMBERS[accessor["type"]]
    stride = view.get("byteStride", columns * kind.itemsize)
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    found = np.ndarray((count, columns), kind, body, start, (stride, kind.itemsize))
    if kind.kind == "f":
        return torch.from_numpy(found.astype(np.float32))
    return torch.from_numpy((found / np.iinfo(kind).max).clip(min=-1).astype(np.float32))
