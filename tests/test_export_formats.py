"""Formats of Gaussians: what others read of our files, what we read of theirs, axes, and files that are broken."""

import gzip
import json
import struct
import sys
from functools import partial
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch

from arguments import GenerateCamParams, load
from dreammapping.export import usd
from dreammapping.gaussians import initial_gaussians
from gaussian_renderer import render
from scene import gltf
from scene.cameras import orbit
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from scene.raw_gaussians import OPAQUE_LOGIT
from scene.splat_formats import compressed_ply, glb, read_any, splat, spz
from tests import foreign
from tests.gaussians import random_gaussians, seeded
from utils.errors import UserError

WRITERS = {
    "a.splat": splat.write,
    "a.spz": spz.write,
    "b.spz": partial(spz.write, version=4),
    "a.compressed.ply": compressed_ply.write,
    "a.glb": glb.write,
}
OTHERS = [
    # file, degree of the harmonics, who reads it, and the least PSNR in dB: 40, and 30 of a lossy format
    ("a.splat", 0, foreign.by_splat_transform, 30),
    ("a.spz", 1, foreign.by_splat_transform, 30),
    ("a.spz", 3, foreign.by_gsply, 30),
    ("b.spz", 1, foreign.by_splat_transform, 30),
    ("a.compressed.ply", 0, foreign.by_splat_transform, 30),
    ("a.compressed.ply", 3, foreign.by_splat_transform, 30),
    ("a.compressed.ply", 1, foreign.by_gsply, 30),
    ("a.glb", 0, foreign.by_three, 40),
    ("a.usd", 3, foreign.by_usd, 40),
]


def asset(degree: int = 0, count: int = 300) -> GaussianModel:
    """Gaussians whose colours and harmonics stay within what bytes of every format hold, as those of a run do."""
    model = random_gaussians(count, degree)
    model.replace({"sh_dc": 1.2 * torch.tanh(model.sh_dc), "sh_rest": 0.4 * torch.tanh(model.sh_rest)})
    return model


def psnr(first: GaussianModel, second: GaussianModel) -> float:
    """In dB, over views from all sides and from above."""
    params = GenerateCamParams(image_w=64, image_h=64)
    cameras = orbit(4, params, elevated_ring=True)
    images = [render(each, cameras, torch.ones(3)).images.detach().clamp(0, 1) for each in (first, second)]
    return float(-10 * (images[0] - images[1]).square().mean().clamp_min(1e-12).log10())


def write(name: str, folder: Path, model: GaussianModel) -> Path:
    path = folder / name
    if name == "a.usd":
        pytest.importorskip("pxr", reason="usd-core is not installed")
    (WRITERS | {"a.usd": usd.write})[name](path, model)
    return path


@pytest.mark.parametrize(("name", "degree", "reader", "least"), OTHERS)
def test_others_see_what_the_ply_shows(tmp_path, name, degree, reader, least):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    model = asset(degree)
    found = reader(write(name, tmp_path, model))
    assert len(found) == len(model) and found.active_sh_degree == degree
    assert psnr(found, model) > least


def test_psnr_tells_a_turned_object():
    """The measure of these tests is worth something: axes of another convention fall far below."""
    model, turned = asset(), asset()
    turned.replace({"means": model.means * torch.tensor([-1.0, -1.0, 1.0])})
    assert psnr(model, turned) < 20


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("name", WRITERS)
def test_round_trip(tmp_path, name, degree):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    model = asset(degree)
    found = read_any(write(name, tmp_path, model))
    assert found.active_sh_degree == (0 if name == "a.splat" else degree)
    near = torch.cdist(model.means, found.means).argmin(dim=1)  # formats may have an order of their own
    assert sorted(near.tolist()) == list(range(len(model)))
    means, log_scales, byte, turned, harmonic = {
        # half of a step of what is stored; turning a band mixes its harmonics
        "a.splat": (0, 1e-6, 0.5 / 255, 1 / 128, 1),
        "a.spz": (0.5 / 4096, 0.5 / 16, 0.5 / 255, 1 / 511, 2 * 8 / 128),
        "b.spz": (0.5 / 4096, 0.5 / 16, 0.5 / 255, 1 / 511, 2 * 8 / 128),
        "a.compressed.ply": (0.51 * 4 / 1023, 0.51 * 6 / 1023, 0.51 / 255, 1 / 511, 2 * 4 / 256),
        "a.glb": (0, 1e-6, 1e-6, 1e-6, 1e-6),
    }[name]
    assert (found.means[near] - model.means).abs().max() <= means
    assert (found.log_scales[near] - model.log_scales).abs().max() <= log_scales
    assert (found.opacities[near] - model.opacities).abs().max() <= byte + 1e-6
    cosines = (found.rotations[near] * model.rotations).sum(dim=1).abs()
    assert cosines.min() >= 1 - 4 * turned**2 - 1e-6
    if found.active_sh_degree == degree:
        assert torch.allclose(found.sh_rest[near], model.sh_rest, rtol=0, atol=harmonic)


AXES = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0], [0.3, -0.2, 0.1]])
"""Up, front, the front view's right, and a fourth point."""
Y_UP = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
Y_DOWN = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])


def test_axes_are_those_that_readers_expect(tmp_path):
    model = GaussianModel.from_points(AXES, torch.rand(4, 3, generator=seeded()), sh_degree=0)
    for write_file, name in ((splat.write, "a.splat"), (spz.write, "a.spz"), (glb.write, "a.glb")):
        write_file(tmp_path / name, model)
    data = np.fromfile(tmp_path / "a.splat", dtype=splat.ROW)["means"]
    assert {tuple(row) for row in Y_DOWN.tolist()} <= {tuple(row) for row in data.tolist()}
    found = gsply.read_spz(tmp_path / "a.spz").means
    assert np.allclose(found[:3], Y_UP, atol=1 / 4096)
    tree, body = parts(tmp_path / "a.glb")
    positions = np.frombuffer(body, dtype="<f4", count=12).reshape(4, 3)
    assert np.array_equal(positions[:3], Y_UP)
    assert np.array_equal(tree["accessors"][0]["min"], positions.min(axis=0))


def parts(path: Path) -> tuple[dict, bytes]:
    """The description and the numbers of a .glb."""
    data = path.read_bytes()
    assert struct.unpack("<4sII", data[:12]) == (b"glTF", 2, len(data))
    (length,) = struct.unpack("<I", data[12:16])
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def test_fallback_colours_of_a_glb_are_linear_light(tmp_path):
    """sRGB 0.5 is 0.214 of the light; the harmonics beside it stay as displayed."""
    model = asset(count=1)
    model.replace({"sh_dc": torch.zeros(1, 1, 3), "opacity_logits": torch.zeros(1, 1)})
    glb.write(tmp_path / "a.glb", model)
    tree, body = parts(tmp_path / "a.glb")
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    view = tree["bufferViews"][tree["accessors"][attributes["COLOR_0"]]["bufferView"]]
    stored = np.frombuffer(body, dtype="<u2", count=4, offset=view["byteOffset"]) / 65535
    assert stored == pytest.approx([((0.5 + 0.055) / 1.055) ** 2.4] * 3 + [0.5], abs=1e-4)
    view = tree["bufferViews"][
        tree["accessors"][attributes[f"{gltf.SPLATS}:SH_DEGREE_0_COEF_0"]]["bufferView"]
    ]
    assert np.frombuffer(body, dtype="<f4", count=3, offset=view["byteOffset"]) == pytest.approx([0] * 3)


def test_the_validator_finds_nothing_but_the_extension_that_it_does_not_know(tmp_path):
    glb.write(tmp_path / "a.glb", asset(1))
    messages = foreign.node("validate.mjs", tmp_path / "a.glb")["messages"]
    assert messages, "it says at least that it does not know the extension"
    for message in messages:
        assert "KHR_gaussian_splatting" in message["message"] + message["pointer"], message
        assert message["code"] in ("UNSUPPORTED_EXTENSION", "MESH_PRIMITIVE_INVALID_ATTRIBUTE"), message


@pytest.mark.parametrize("name", WRITERS)
def test_one_gaussian(tmp_path, name):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    model = asset(count=1)
    assert psnr(read_any(write(name, tmp_path, model)), model) > 30


@pytest.mark.parametrize("name", WRITERS)
def test_opacities_of_0_and_1_stay_finite(tmp_path, name):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    model = asset(count=2)
    model.replace({"opacity_logits": torch.tensor([[40.0], [-40.0]])})
    found = read_any(write(name, tmp_path, model)).opacity_logits
    assert found.isfinite().all() and found.abs().max() <= 40
    assert name == "a.glb" or found.abs().min() == OPAQUE_LOGIT


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_not_finite_is_not_written(tmp_path, name):
    model = asset(count=3)
    model.replace({"means": model.means.detach().index_fill(0, torch.tensor([1]), torch.nan)})
    with pytest.raises(UserError, match=r"NaN or infinity in means"):
        write(name, tmp_path, model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_cut_off_are_one_line(tmp_path, name):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    path = write(name, tmp_path, asset(1, count=40))
    data = path.read_bytes()
    for size in [0, 1, 15, 17, 60, len(data) // 2 + 1, len(data) - 30]:
        path.write_bytes(data[:size])
        with pytest.raises(UserError) as caught:
            read_any(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    """Whatever the bytes are, no error but the user's, and no memory beyond the file's own."""
    if name == "b.spz":
        pytest.importorskip("zstandard")
    path = write(name, tmp_path, asset(1, count=40))
    data = bytearray(gzip.decompress(path.read_bytes()) if name == "a.spz" else path.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(0, min(len(broken), 600))] = rng.integers(0, 256)
        path.write_bytes(gzip.compress(bytes(broken)) if name == "a.spz" else bytes(broken))
        try:
            found = read_any(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(parameter.isfinite().all() for parameter in found.parameters())


def test_a_spz_that_announces_more_than_it_holds_takes_no_memory(tmp_path):
    path = tmp_path / "a.spz"
    path.write_bytes(
        gzip.compress(spz.HEADER.pack(spz.MAGIC, 3, 40_000_000, 0, 12, 0, 0) + bytes(50_000_000))
    )
    with pytest.raises(UserError, match=r"50,000,000 bytes of 800,000,000"):
        read_any(path)
    path.write_bytes(gzip.compress(spz.HEADER.pack(spz.MAGIC, 3, 2**32 - 1, 0, 12, 0, 0)))
    with pytest.raises(UserError, match=r"4,294,967,295 Gaussians"):
        read_any(path)


@pytest.mark.parametrize(("version", "degree", "named"), [(1, 0, "got 1"), (9, 0, "got 9"), (3, 4, "got 4")])
def test_a_spz_of_another_version_is_named(tmp_path, version, degree, named):
    path = tmp_path / "a.spz"
    path.write_bytes(gzip.compress(spz.HEADER.pack(spz.MAGIC, version, 1, degree, 12, 0, 0) + bytes(100)))
    with pytest.raises(UserError, match=named):
        read_any(path)


def test_rotations_of_spz_version_2(tmp_path):
    """Three bytes of x, y and z; written by nobody any more, and in many files."""
    quat = torch.tensor([0.5, 0.5, -0.5, 0.5])
    stored = ((quat[1:] + 1) * 127.5).round().to(torch.uint8).numpy().tobytes()
    path = tmp_path / "a.spz"
    body = bytes(9) + bytes([128]) + bytes(3) + bytes([80] * 3) + stored
    path.write_bytes(gzip.compress(spz.HEADER.pack(spz.MAGIC, 2, 1, 0, 12, 0, 0) + body))
    model = asset(count=1)
    model.replace({"quats": read_any(path).quats})
    spz.write(tmp_path / "b.spz", model)
    back = torch.from_numpy(np.array(gsply.read_spz(tmp_path / "b.spz").quats))[0]
    assert (back * quat).sum().abs() > 1 - 1e-4


def test_far_positions_take_fewer_fractional_bits(tmp_path, caplog):
    model = asset(count=2)
    model.replace({"means": torch.tensor([[5000.0, 0, 0], [0, 1.0, 0]])})
    spz.write(tmp_path / "a.spz", model)
    assert torch.equal(read_any(tmp_path / "a.spz").means, model.means)
    assert caplog.messages == []
    model.replace({"means": torch.tensor([[1e6, 0, 0], [0, 1.0, 0]])})  # which makes a dot of an object
    spz.write(tmp_path / "a.spz", model)
    (said,) = caplog.messages
    assert "a Gaussian 1e+06 units away leaves room for positions in steps of 1/8; remove it" in said
    model.replace({"means": torch.tensor([[1e7, 0, 0], [0, 1.0, 0]])})
    with pytest.raises(UserError, match="scale the asset down"):
        spz.write(tmp_path / "a.spz", model)


def test_zstandard_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UserError, match="pip install zstandard"):
        spz.write(tmp_path / "a.spz", asset(), version=4)
    assert list(tmp_path.iterdir()) == []


def test_a_glb_without_gaussians_or_with_moved_ones_is_named(tmp_path):
    path = tmp_path / "a.glb"
    glb.write(path, asset(count=3))
    tree, body = parts(path)
    for change, message in (
        (lambda tree: tree["nodes"][0].update(scale=[2, 2, 2]), "got a scale of"),
        (lambda tree: tree["meshes"][0]["primitives"][0].pop("extensions"), "init_shape: file"),
        (lambda tree: tree["accessors"][0].update(sparse={}), "sparse"),
        (lambda tree: tree["bufferViews"][0].update(byteOffset=10**9), "cannot be read"),
        (lambda tree: tree["bufferViews"][0].update(byteOffset=-4), "cannot be read"),
        (lambda tree: tree["accessors"][0].update(count=2), "cannot be read"),
        (
            lambda tree: tree["meshes"][0]["primitives"][0]["extensions"]["KHR_gaussian_splatting"].update(
                colorSpace="lin_rec709_display"
            ),
            "expected colours as displayed .* got lin_rec709_display",
        ),
        (
            lambda tree: tree["extensionsUsed"].append("KHR_gaussian_splatting_compression_spz_2"),
            "got KHR_gaussian_splatting_compression_spz_2; export them without compression",
        ),
    ):
        changed = json.loads(json.dumps(tree))
        change(changed)
        text = json.dumps(changed).encode()
        path.write_bytes(
            struct.pack("<4sIII4s", b"glTF", 2, 0, len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(body), b"BIN\0")
            + body
        )
        with pytest.raises(UserError, match=message):
            read_any(path)


@pytest.mark.parametrize("name", [*WRITERS, "a.ply"])
def test_a_run_starts_from_any_format(tmp_path, name):
    if name == "b.spz":
        pytest.importorskip("zstandard")
    model = asset(count=50)
    (WRITERS | {"a.ply": write_gaussians})[name](tmp_path / name, model)
    config, _ = load(
        [f"pretrained_model_path={tmp_path / name}", "sh_degree=2", "model_key=toybox", "text=a"]
    )
    found = initial_gaussians(config, seeded(), torch.device("cpu"))
    assert found.sh_degree == 2 and found.active_sh_degree == 0
    assert psnr(found, model) > 30


@pytest.mark.parametrize("name", ["a.sog", "a.ksplat", "a.usdz", "a.gltf", "a"])
def test_what_no_reader_takes_is_told_which_formats_there_are(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4" * 100)
    with pytest.raises(
        UserError, match=r"expected Gaussians as \.ply, \.splat, \.spz or \.glb, got"
    ) as error:
        read_any(tmp_path / name)
    assert name.partition(".")[2] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.splat", "a.spz", "a.glb", "a"])
def test_a_ply_by_another_name_is_read_as_what_it_is(tmp_path, name):
    model = asset(count=64)
    write_gaussians(tmp_path / "a.ply", model, comments=["x" * 20])
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / name).write_bytes(content + bytes(-len(content) % 32))  # whole rows of a .splat
    torch.testing.assert_close(read_any(tmp_path / name).means, read_any(tmp_path / "a.ply").means)


def start_from(path, place):
    """The start of a run from a small asset that lies there."""
    model = asset(count=50)
    with torch.no_grad():
        model.means += torch.tensor(place)
    write_gaussians(path, model)
    config, _ = load([f"pretrained_model_path={path}", "model_key=toybox", "text=a"])
    return initial_gaussians(config, seeded(), torch.device("cpu"))


def test_gaussians_that_no_camera_sees_are_refused_before_a_run_trains_them(tmp_path):
    with pytest.raises(UserError, match=r"none in sight, as they lie around \(.*\); move them to the origin"):
        start_from(tmp_path / "a.ply", (0.0, 0.0, 300.0))


def test_gaussians_beyond_the_cameras_are_warned_of(tmp_path, caplog):
    start_from(tmp_path / "a.ply", (0.0, 0.0, 0.0))
    assert "lies around" not in caplog.text
    start_from(tmp_path / "a.ply", (300.0, 0.0, 0.0))  # straight before a camera, a dot
    assert "lies around (3" in caplog.text and "look at the origin from 3.5 units" in caplog.text
