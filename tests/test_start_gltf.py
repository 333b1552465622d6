"""Meshes in glTF as start shapes: colours in linear light, textures, and what is not read."""

import base64

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tests.start_shapes import error, from_file, gltf_of, painted, quad
from utils.errors import UserError


def srgb(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


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


def test_nested_descriptions_are_refused(tmp_path):
    assert "cannot be read" in error(tmp_path / "a.gltf", b"[" * 100_000)
