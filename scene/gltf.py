"""glTF 2.0, read by trimesh: what the file promises is checked before, and colours keep their numbers and meaning.

Factors and vertex colours are linear light, textures are sRGB, and a surface shows the product of the three (glTF 2.0,
sections 3.9.2 and 3.7.2.1); a black one shows what it emits (3.9.3).
"""

import contextlib
import io
import json
import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from utils.errors import UserError
from utils.inputs import WithHeader

log = logging.getLogger(__name__)

GLB_MAGIC, JSON_CHUNK = b"glTF", b"JSON"
COLORS = "_COLOR_0"
"""trimesh hands out attributes of this form as they are stored; it would round COLOR_0 to 8 bits of linear light."""
COMPRESSIONS = ("KHR_draco_mesh_compression", "EXT_meshopt_compression", "KHR_meshopt_compression")
UNREAD = ("KHR_texture_transform", "EXT_mesh_gpu_instancing")
"""What trimesh passes over without a word, though it changes colours or places."""
HARMLESS = (
    "KHR_materials_",
    "KHR_mesh_quantization",
    "KHR_texture_",
    "EXT_texture_",
    "KHR_lights_",
    "KHR_gaussian_",
)
"""Beginnings of extensions that a file may require and that are read, change no mesh, or are told of elsewhere."""
FAN = 6
"""How the corners of a primitive are triangles around the first of them."""
CLAMPED, MIRRORED = 33071, 33648
"""How a texture goes on beyond its borders, if it is not repeated."""
DIFFUSE = "KHR_materials_pbrSpecularGlossiness"
STRENGTH = "KHR_materials_emissive_strength"
SPLATS = "KHR_gaussian_splatting"
NUMBER_SIZES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
NUMBERS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
SPARE_BYTES = 64 * 1024 * 1024
"""What the parts of a file may take in memory beside its size: they may lie on one another, or be all zeros."""


@dataclass(frozen=True)
class Document:
    """The description at the head of a file; its numbers follow, or lie in other files."""

    path: Path
    tree: dict[str, Any]
    body: int
    """Where the numbers begin in a .glb; the end of a .gltf."""

    @property
    def faces(self) -> int:
        """Triangles of all meshes. Raises where the tree is broken."""
        accessors = self.tree["accessors"]
        corners = 0
        for mesh in self.tree["meshes"]:
            for primitive in mesh["primitives"]:
                index = primitive.get("indices", primitive["attributes"]["POSITION"])
                corners += accessors[index]["count"]
        return corners // 3

    def check(self) -> None:
        """That the file holds what its description promises, in a form that can be read.

        Raises:
            UserError: there are no meshes, or compressed ones, or the parts of the file are larger than itself.
        """
        if not self.tree.get("meshes"):
            raise UserError(f"{self.path}: expected a mesh, got a scene without any; export its objects, too")
        required = self.tree.get("extensionsRequired", [])
        used = [*self.tree.get("extensionsUsed", []), *required]
        if packed := [name for name in COMPRESSIONS if name in used]:
            raise UserError(
                f"{self.path}: expected plain meshes, got {packed[0]}; export them without compression"
            )
        accessors = self.tree.get("accessors", [])
        if any("sparse" in each for each in accessors):
            raise UserError(
                f"{self.path}: expected plain numbers, got sparse ones; export without morph targets"
            )
        if any(accessors[number].get("normalized") for number in self._places()):
            raise UserError(
                f"{self.path}: expected positions and texture coordinates as floats, got quantized ones; export "
                "without quantization"
            )
        unread = [name for name in UNREAD if name in used]
        unread += [name for name in required if name not in unread and not name.startswith(HARMLESS)]
        unread += self._unread_parts()
        for name in unread:
            log.warning(
                "%s: %s is not read, so colours or places may be others; export without it", self.path, name
            )
        views = sum(view["byteLength"] for view in self.tree.get("bufferViews", []))
        numbers = sum(
            each["count"] * NUMBER_SIZES[each["componentType"]] * NUMBERS[each["type"]] for each in accessors
        )
        most = self._bytes() + SPARE_BYTES
        if max(views, numbers) > most:
            raise UserError(
                f"{self.path}: expected parts of at most {most:,} bytes together, got {max(views, numbers):,}; "
                "check the file"
            )

    def _unread_parts(self) -> list[str]:
        """What trimesh passes over of the format itself."""
        meshes, nodes = self.tree["meshes"], self.tree.get("nodes", [])
        found = {
            "a skin": any("skin" in node for node in nodes),
            "the weight of a morph target": any(any(each.get("weights", [])) for each in (*meshes, *nodes)),
            "a fan of triangles": any(
                each.get("mode") == FAN for mesh in meshes for each in mesh["primitives"]
            ),
        }
        return [what for what, is_there in found.items() if is_there]

    def _places(self) -> Iterator[int]:
        """The accessors that say where corners lie, in space and on a texture."""
        for mesh in self.tree.get("meshes", []):
            for primitive in mesh["primitives"]:
                attributes = primitive["attributes"]
                yield from (attributes[name] for name in ("POSITION", "TEXCOORD_0") if name in attributes)

    def _bytes(self) -> int:
        """Size of the file and of those that it names."""
        size = self.path.stat().st_size
        for buffer in self.tree.get("buffers", []):
            file = self.path.parent / unquote(buffer.get("uri", "").split("base64,")[0])
            size += file.stat().st_size if file != self.path.parent and file.is_file() else 0
        return size

    def refuse_gaussians(self) -> None:
        """Raises UserError where the file holds Gaussians, of which trimesh would make a cloud of points."""
        if SPLATS in self.tree.get("extensionsUsed", []):
            raise UserError(
                f"{self.path}: expected a mesh, got Gaussians ({SPLATS}); give the file as pretrained_model_path"
            )

    @contextlib.contextmanager
    def stream(self) -> Iterator[Any]:
        """The file for trimesh, with vertex colours under another name, and materials named by their numbers."""
        tree = json.loads(json.dumps(self.tree))
        for number, material in enumerate(tree.get("materials", [])):
            material["name"] = str(number)
        for mesh in tree["meshes"]:
            for primitive in mesh["primitives"]:
                if "COLOR_0" in primitive["attributes"]:
                    primitive["attributes"][COLORS] = primitive["attributes"].pop("COLOR_0")
        header = json.dumps(tree).encode()
        with self.path.open("rb") as file:
            left = file.seek(0, io.SEEK_END) - self.body
            file.seek(self.body)
            if self.path.suffix.lower() == ".glb":
                header = struct.pack("<4sIII4s", GLB_MAGIC, 2, left, len(header), JSON_CHUNK) + header
            yield WithHeader(header, file)

    def factor(self, material: Any) -> Float[Tensor, "3"]:
        """Linear light that a material's texture and vertex colours are multiplied by."""
        factor = self._surface(material).get("baseColorFactor", [1.0] * 4)
        return torch.as_tensor(np.asarray(factor, dtype=np.float64)[:3]).nan_to_num(0.0).float()

    def has_texture(self, material: Any) -> bool:
        """Whether a material of trimesh's should have one."""
        return "baseColorTexture" in self._surface(material)

    def wrapping(self, material: Any) -> tuple[int, int]:
        """How a material's texture goes on beyond its borders, sideways and upwards: CLAMPED, MIRRORED or repeated."""
        with contextlib.suppress(LookupError, TypeError):
            texture = self.tree["textures"][self._surface(material)["baseColorTexture"]["index"]]
            sampler = self.tree["samplers"][texture["sampler"]]
            return sampler.get("wrapS", 0), sampler.get("wrapT", 0)
        return 0, 0

    def _surface(self, material: Any) -> dict[str, Any]:
        """The base colour of a material of trimesh's, as it is described."""
        name = getattr(material, "name", None)
        described = self.tree["materials"][int(name)] if name is not None and name.isdecimal() else {}
        return described.get("pbrMetallicRoughness", {})


def vertex_light(stored: np.ndarray) -> Float[np.ndarray, "V 3"]:
    """Linear light in [0, 1] of vertex colours as a file stores them: floats, bytes or 16-bit numbers."""
    full = 1.0 if stored.dtype.kind == "f" else np.iinfo(stored.dtype).max
    return np.nan_to_num(stored[:, :3].astype(np.float64) / full).clip(0, 1)


def read(path: Path) -> Document:
    """The description of a .gltf or .glb; the numbers stay on the disk.

    Raises:
        ValueError, RecursionError, OSError: it has none, or a broken one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if path.suffix.lower() == ".gltf":
            text, body = file.read(), size
        else:
            magic, _version, _length, count, kind = struct.unpack("<4sIII4s", file.read(20).ljust(20, b"\0"))
            if magic != GLB_MAGIC or kind != JSON_CHUNK:
                raise ValueError("no glTF header")
            body = 20 + count
            if body > size:
                raise ValueError(f"{count} bytes of description, of {size - 20}")
            text = file.read(count)
            _check_chunks(file, body, size)
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise ValueError("no glTF description")
    for material in tree.get("materials", []):
        _take_diffuse(material)
    _take_emission(tree)
    _take_coordinates(tree)
    if "scenes" not in tree:  # a library: all of it
        children = {child for node in tree.get("nodes", []) for child in node.get("children", [])}
        tree["scenes"] = [{"nodes": sorted({*range(len(tree.get("nodes", [])))} - children)}]
    return Document(path, tree, body)


def _take_diffuse(material: dict[str, Any]) -> None:
    """Let the colour of the older description of a surface be its base colour, where it has no other."""
    older = material.get("extensions", {}).pop(DIFFUSE, None)
    plain = material.setdefault("pbrMetallicRoughness", {})
    if older is not None and not {"baseColorFactor", "baseColorTexture"} & plain.keys():
        names = {"diffuseFactor": "baseColorFactor", "diffuseTexture": "baseColorTexture"}
        plain.update({names[name]: value for name, value in older.items() if name in names})


def _take_emission(tree: dict[str, Any]) -> None:
    """Let what a black surface emits be its base colour, in the place of vertex colours, too: nothing else is seen."""
    emitting = [number for number, each in enumerate(tree.get("materials", [])) if _only_emits(each)]
    for number in emitting:
        material = tree["materials"][number]
        strength = material.get("extensions", {}).get(STRENGTH, {}).get("emissiveStrength", 1.0)
        light = [min(max(strength * part, 0.0), 1.0) for part in material["emissiveFactor"]]
        plain = material["pbrMetallicRoughness"]
        plain.pop("baseColorTexture", None)
        plain |= {"baseColorFactor": [*light, 1.0]}
        if "emissiveTexture" in material:
            plain["baseColorTexture"] = material["emissiveTexture"]
    for mesh in tree.get("meshes", []) if emitting else []:
        for primitive in mesh["primitives"]:
            if primitive.get("material") in emitting:
                primitive["attributes"].pop("COLOR_0", None)


def _take_coordinates(tree: dict[str, Any]) -> None:
    """Let the texture coordinates that a material asks for be the first ones, which alone trimesh reads."""
    for mesh in tree.get("meshes", []):
        for primitive in mesh["primitives"]:
            if "material" in primitive:
                plain = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
                wanted = f"TEXCOORD_{plain.get('baseColorTexture', {}).get('texCoord', 0)}"
                found, attributes = primitive["attributes"].get(wanted), primitive["attributes"]
                attributes.pop("TEXCOORD_0", None)
                attributes |= {} if found is None else {"TEXCOORD_0": found}


def _only_emits(material: dict[str, Any]) -> bool:
    """Whether a surface has light of its own, and a base colour that is black."""
    base = material["pbrMetallicRoughness"].get("baseColorFactor", [1.0])
    return not any(base[:3]) and any(material.get("emissiveFactor", []))


def _check_chunks(file: BinaryIO, start: int, size: int) -> None:
    """Reading a chunk that claims to be longer than the file would reserve memory for it."""
    while size - start >= 8:
        file.seek(start)
        (count,) = struct.unpack("<I", file.read(4))
        start += 8 + count
        if start > size:
            raise ValueError(f"a part of {count} bytes, of {size - start + count}")
