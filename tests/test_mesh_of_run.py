"""Meshes of runs: the files, read by others, and the verb."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from arguments import load, to_yaml
from dreammapping.__main__ import main
from dreammapping.finished import FinishedRun
from dreammapping.mesh import files
from dreammapping.mesh import make as making
from dreammapping.mesh.compare import Likeness
from dreammapping.mesh.source import source_of
from scene.cameras import orbit
from scene.gaussian_model import GaussianModel
from scene.mesh import sample_file
from scene.ply import write_gaussians
from tests import foreign
from tests.balls import painted, sides
from tests.finished_run import field_run
from tests.gaussians import random_gaussians, seeded
from utils.files import atomic
from utils.own_files import RECORD, note
from utils.run import Run
from utils.spherical_harmonics import rgb_to_sh_dc

pytestmark = pytest.mark.whole_runs

for library in ("skimage", "fast_simplification", "xatlas"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install .")


@pytest.fixture(scope="module")
def ball():
    return painted()


def as_it_is(path: Path) -> trimesh.Trimesh:
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    return mesh


def loaded(path: Path) -> trimesh.Trimesh:
    """As trimesh loads a file, with the vertices put together that lie twice for the texture's sake."""
    mesh = as_it_is(path)
    whole = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    whole.merge_vertices(digits_vertex=6)
    return whole


@pytest.fixture(scope="module")
def written(ball, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    for name, write in (("m.glb", files.write_glb), ("m.obj", files.write_obj), ("m.ply", files.write_ply)):
        write(folder / name, ball, 2.0)
    return folder


@pytest.mark.parametrize("name", ["m.glb", "m.obj", "m.ply"])
def test_others_load_a_closed_mesh_of_the_right_size(written, ball, name):
    mesh = loaded(written / name)
    assert len(mesh.faces) == len(ball.faces) and mesh.is_watertight and mesh.volume > 0
    assert mesh.extents == pytest.approx([1.6] * 3, abs=0.1), "at two metres a unit"


@pytest.mark.parametrize("name", ["m.glb", "m.obj", "m.ply"])
def test_a_mesh_of_ours_starts_a_run(written, name):
    """Red in front, blue at the back, green on top, in our frame again."""
    points, colors = sample_file(written / name, 4000, seeded())
    points, colors = points.float() / 2, colors.float()
    if name != "m.ply":  # as scene.initialization turns files whose convention is y up
        points = torch.stack([-points[:, 0], points[:, 2], points[:, 1]], dim=1)
    clear = (points[:, 1].abs() > 0.1) & ((points[:, 2] - 0.2).abs() > 0.1)
    assert (colors - sides(points))[clear].abs().mean() < 0.05


def test_the_picture_is_the_same_in_all_files(written, ball):
    mesh = as_it_is(written / "m.glb")
    assert np.array_equal(np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")), ball.picture)
    mesh = as_it_is(written / "m.obj")
    assert np.array_equal(np.asarray(mesh.visual.material.image.convert("RGB")), ball.picture)


def test_the_gltf_validator_finds_nothing_wrong(written):
    report = foreign.node("validate.mjs", written / "m.glb")
    assert report["numErrors"] == report["numWarnings"] == 0, report["messages"]


def test_three_loads_the_mesh(written, ball):
    found = foreign.node("read_mesh.mjs", written / "m.glb")
    assert found["faces"] == len(ball.faces)
    assert found["materials"] == ["MeshBasicMaterial"] and found["colorSpaces"] == ["srgb"]
    low, high = found["box"]
    assert np.subtract(high, low) == pytest.approx([1.6] * 3, abs=0.1)


def a_run(folder: Path, model: GaussianModel, *words: str) -> Path:
    config, _ = load(
        ["text=a red ball", "image_w=40", "image_h=40", "model_key=toybox", "device=cpu", *words]
    )
    with Run(folder) as run:
        run.claim(to_yaml(config))
        write_gaussians(run.path("point_cloud", "iteration_7", "point_cloud.ply"), model)
        run.stands()
    return folder


def shell(opacity: float = 0.95) -> GaussianModel:
    """A ball of flat Gaussians, red in front and blue behind."""
    index = torch.arange(1500) + 0.5
    z = 1 - 2 * index / 1500
    azimuth = index * math.pi * (3 - math.sqrt(5))
    unit = torch.stack([(1 - z**2).sqrt() * azimuth.cos(), (1 - z**2).sqrt() * azimuth.sin(), z], dim=1)
    return GaussianModel(
        means=0.4 * unit,
        log_scales=torch.full((1500, 3), math.log(0.02)),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(1500, 1),
        opacity_logits=torch.full((1500, 1), opacity).logit(),
        sh_dc=rgb_to_sh_dc(sides(unit))[:, None],
        sh_rest=torch.zeros(1500, 0, 3),
    )


QUICK = ["--views", "16", "--resolution", "32", "--target-faces", "1000", "--texture", "128"]


def test_the_verb_makes_all_files_and_says_how_good_they_are(tmp_path, capsys):
    folder = a_run(tmp_path / "ball", shell())
    assert main(["mesh", str(folder), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "iteration 7: 1,500 Gaussians; 16 views" in out and "GB of memory" in out
    assert "watertight" in out and "not watertight" not in out and "PSNR" in out
    made = folder / "mesh"
    assert {path.name for path in made.iterdir()} == {
        "mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", "mesh.json", RECORD,
    }  # fmt: skip
    numbers = json.loads((made / "mesh.json").read_text())
    assert numbers["watertight"] and numbers["psnr"] > 22 and numbers["coverage"] > 0.93
    mesh = loaded(made / "mesh.glb")
    assert mesh.extents == pytest.approx([0.85] * 3, abs=0.1)


def test_a_run_of_a_card_becomes_a_mesh_where_there_is_none(tmp_path):
    run = FinishedRun.open(a_run(tmp_path / "ball", random_gaussians(20), "backend=cuda"))
    cameras = orbit(2, run.config.GenerateCamParams)
    assert source_of(run, 7, torch.device("cpu")).look(cameras).images.shape == (2, 3, 40, 40)


@pytest.mark.parametrize("kind", ["grid", "hash"])
def test_a_field_becomes_a_textured_mesh_by_the_same_verb(tmp_path, capsys, kind):
    folder, field = field_run(tmp_path / "ball", kind)
    assert main(["mesh", str(folder), *QUICK, "--views", "10"]) == 0
    out = capsys.readouterr().out
    assert "iteration 7: a field of " in out and "watertight" in out and "not watertight" not in out
    numbers = json.loads((folder / "mesh" / "mesh.json").read_text())
    assert numbers["psnr"] > 20 and numbers["coverage"] > 0.92
    mesh = loaded(folder / "mesh" / "mesh.glb")
    assert mesh.extents == pytest.approx([0.76] * 3, abs=0.1)
    points, colors = sample_file(folder / "mesh" / "mesh.ply", 2000, seeded())
    points = points.float()
    expected = sides(points) if kind == "grid" else field(points.t())[1].detach()
    clear = (points[:, 1].abs() > 0.1) & ((points[:, 2] - 0.2).abs() > 0.1)
    assert (colors.float() - expected)[clear].abs().mean() < 0.06


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--views", "2"], "--views: expected 8 to 1,000, got 2"),
        (["--target-faces", "5"], "--target-faces: expected"),
        (["--scale", "0"], "--scale: expected"),
        (["--iteration", "9"], "expected iteration 7, got 9"),
        (["--output", "{file}/inside"], "cannot be written"),
        (["--output", "{theirs}"], "mesh.ply: expected no file, or one that this program made"),
    ],
)
def test_what_cannot_be_made_is_one_line(tmp_path, capsys, words, message):
    folder = a_run(tmp_path / "ball", shell())
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mesh.ply").write_text("precious")
    words = [word.format(file=tmp_path / "file", theirs=tmp_path / "theirs") for word in words]
    assert main(["mesh", str(folder), *QUICK, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.strip().count("\n") == 0
    assert not (folder / "mesh").exists()
    assert [path.read_text() for path in (tmp_path / "theirs").iterdir()] == ["precious"]


def test_a_disk_that_fills_leaves_the_mesh_of_before_or_none(ball, tmp_path, capsys, monkeypatch):
    folder = a_run(tmp_path / "ball", shell())
    monkeypatch.setattr(making, "make", lambda *_: (ball, Likeness(30.0, 1.0)))

    def full(path, *_):
        with atomic(path):
            raise OSError(28, "No space left on device")

    def there():
        return {path.name: path.read_text() for path in (folder / "mesh").glob("*")}

    for texts in ({}, {"mesh.glb": "the one of before", "notes.txt": "mine"}):
        for name, text in texts.items():
            note(folder / "mesh", ["mesh.glb"])
            (folder / "mesh" / name).write_text(text)
        before = there()
        with monkeypatch.context() as patch:
            patch.setitem(making.WRITERS, "mesh.ply", full)
            assert main(["mesh", str(folder), *QUICK]) == 2
        error = capsys.readouterr().err
        assert f"{folder / 'mesh' / 'mesh.ply'}: cannot be written (No space left on device)" in error
        assert error.strip().count("\n") == 0
        assert there() == before and (folder / "mesh").exists() == bool(before)


def test_gaussians_that_nobody_sees_are_one_line(tmp_path, capsys):
    folder = a_run(tmp_path / "ball", shell(opacity=0.01))
    assert main(["mesh", str(folder), *QUICK]) == 2
    assert "nothing is opaque" in capsys.readouterr().err
