"""The verb `export`: its files, its messages, and what it refuses."""

import json
import os
import shutil
import stat
import struct
import sys
from pathlib import Path

import pytest
import torch
from plyfile import PlyData

from arguments import load, to_yaml
from dreammapping.__main__ import main
from dreammapping.export import sog, usd
from dreammapping.export.command import FORMATS
from dreammapping.export.files import PER_GAUSSIAN, with_degree
from dreammapping.finished import FinishedRun
from scene.cameras import cameras_json, orbit
from scene.ply import read_gaussians, write_gaussians
from scene.splat_formats import read_any
from tests import foreign
from tests.gaussians import random_gaussians
from tests.test_export_formats import asset, psnr
from utils import own_files
from utils.errors import UserError
from utils.run import Run

HERE = ["ply", "splat", "spz", "glb", "compressed.ply"]
"""What is written without anything else."""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run with two saved iterations."""
    config, _ = load(["text=a red car", "image_w=40", "image_h=40", "model_key=toybox"])
    with Run(tmp_path / "car") as run:
        run.claim(to_yaml(config))
        for step, count in ((20, 30), (100, 300)):
            path = run.path("point_cloud", f"iteration_{step}", "point_cloud.ply")
            write_gaussians(path, asset(1, count=count))
        run.write_text("cameras.json", json.dumps(cameras_json(orbit(5, config.GenerateCamParams))))
        run.stands()
    return run.folder


def test_every_format_shows_what_the_run_has(folder, capsys):
    assert main(["export", str(folder), "--format", *HERE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "iteration 100: 300 Gaussians, harmonics of degree 1" in lines[0]
    model = FinishedRun.open(folder).gaussians()
    for name, line in zip(HERE, lines[1:], strict=False):
        path = folder / "export" / f"car.{name}"
        assert line.startswith(f"{path}: ")
        assert path.stat().st_size <= PER_GAUSSIAN[name](3) * 300 + 4096, "the size that was said first"
        if name == "splat":
            assert line.endswith("; without harmonics")
        assert psnr(read_any(path), with_degree(model, 0) if name == "splat" else model) > 30
    assert "comment prompt a red car" in (folder / "export" / "car.ply").read_bytes()[:2000].decode("latin-1")


def test_cameras_are_in_the_frame_of_the_ply(folder):
    """A point of the .ply, seen by a camera of cameras.json, is where our own camera sees it."""
    assert main(["export", str(folder), "--format", "ply"]) == 0
    camera = json.loads((folder / "export" / "cameras.json").read_text())[1]
    vertex = PlyData.read(str(folder / "export" / "car.ply"))["vertex"].data
    points = torch.tensor([[float(row[axis]) for axis in "xyz"] for row in vertex])
    there = (points - torch.tensor(camera["position"])) @ torch.tensor(camera["rotation"])
    x = camera["fx"] * there[:, 0] / there[:, 2] + camera["width"] / 2
    run = FinishedRun.open(folder)
    ours = run.cameras()[1:2]
    seen = run.gaussians().means.detach() @ ours.world_to_camera[0, :3, :3].T + ours.world_to_camera[0, :3, 3]
    expected = (seen[:, 0] / seen[:, 2] / (ours.fov_x[0] / 2).tan() + 1) * 20
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("degree", "rest"), [(0, 0), (1, 9), (3, 45)])
def test_harmonics_are_cut_or_padded(folder, degree, rest):
    """45 coefficients and 248 bytes a Gaussian are what Unity's readers expect."""
    assert main(["export", str(folder), "--format", "ply", "--sh", str(degree)]) == 0
    vertex = PlyData.read(str(folder / "export" / "car.ply"))["vertex"].data
    assert sum(name.startswith("f_rest_") for name in vertex.dtype.names) == rest
    assert vertex.dtype.itemsize == 4 * (17 + rest)
    found, model = read_gaussians(folder / "export" / "car.ply"), FinishedRun.open(folder).gaussians()
    kept = min(3, rest // 3)
    assert torch.allclose(found.sh_rest[:, :kept], model.sh_rest[:, :kept], atol=1e-6)
    assert (found.sh_rest[:, 3:] == 0).all()


def test_an_iteration_and_a_folder_can_be_chosen(folder, tmp_path):
    words = [
        "export",
        str(folder),
        "--format",
        "glb",
        "--iteration",
        "20",
        "--output",
        str(tmp_path / "else"),
    ]
    assert main(words) == 0
    assert len(read_any(tmp_path / "else" / "car.glb")) == 30
    assert not (folder / "export").exists()


def a_second(folder, tmp_path, width):
    """A run of the same name, whose cameras have their own width."""
    other = shutil.copytree(folder, tmp_path / "other" / "car")
    cameras = other / "cameras.json"
    cameras.write_text(cameras.read_text().replace('"width": 40', f'"width": {width}'))
    return other


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


@pytest.mark.parametrize("verb", [["export", "--format=splat"], ["mesh"]], ids=lambda verb: verb[0])
def test_what_was_made_of_another_run_stays(folder, tmp_path, capsys, verb):
    place, other = tmp_path / "shared", a_second(folder, tmp_path, 40)
    names = ["car.splat", "cameras.json"] if verb[0] == "export" else ["mesh.glb", "mesh.json"]
    with own_files.making(place, names, source=folder):
        for name in names:
            (place / name).write_text("made")
    before = contents(place)
    assert main([*verb, str(other), "--output", str(place)]) == 2
    error = capsys.readouterr().err
    assert f"{place / names[0]}: expected" in error and f"found one that was made of {folder};" in error
    assert error.count("\n") == 1 and contents(place) == before


def test_runs_of_other_names_share_a_folder_and_the_cameras_where_they_are_the_same(folder, tmp_path, capsys):
    place, same = tmp_path / "shared", shutil.copytree(folder, tmp_path / "same")
    for run in (folder, same, folder):
        assert main(["export", str(run), "--format", "splat", "--output", str(place)]) == 0
    assert {"car.splat", "same.splat", "cameras.json"} < contents(place).keys()
    other, before = a_second(folder, tmp_path, 48).rename(tmp_path / "wide"), contents(place)
    assert main(["export", str(other), "--format", "splat", "--output", str(place)]) == 2
    assert f"cameras.json: expected no file, or one that was made of {other}" in capsys.readouterr().err
    assert contents(place) == before


def test_the_version_of_spz(folder):
    pytest.importorskip("zstandard")
    for version, start in ((3, b"\x1f\x8b"), (4, b"NGSP" + struct.pack("<I", 4))):
        assert main(["export", str(folder), "--format", "spz", "--spz-version", str(version)]) == 0
        assert (folder / "export" / "car.spz").read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--format", "ply", "--iteration", "7"], "expected iteration 20, 100, got 7"),
        (["{run}/nothing", "--format", "ply"], "expected a run with its config.yaml, found none"),
        (["{run}", "--format", "glb", "--output", "{run}/config.yaml/inside"], "cannot be written"),
        (
            ["{run}", "--format", "glb", "--output", "{run}"],
            "cameras.json: expected no file, or one that this",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(folder, capsys, words, message):
    assert main(["export", *(word.format(run=folder) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "export").exists() and not (folder / "car.glb").exists()


def test_a_folder_in_which_another_command_writes_is_one_line_that_says_which(folder, capsys, monkeypatch):
    monkeypatch.setattr(own_files, "WAIT", 0.05)
    with own_files.making(folder / "export", ["car.glb"]):
        assert main(["export", str(folder), "--format", "splat"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / 'export'}: is in use by process {os.getpid()} on" in error and error.count("\n") == 1
    assert main(["export", str(folder), "--format", "splat"]) == 0


def test_a_disk_that_fills_leaves_whole_files_and_those_of_before(folder, capsys, monkeypatch):
    assert main(["export", str(folder), "--format", "spz"]) == 0
    before, rename = (folder / "export" / "car.spz").read_bytes(), os.replace

    def full(source, target):
        if str(target).endswith("car.spz"):
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("utils.files.os.replace", full)
        assert main(["export", str(folder), "--format", "splat", "spz", "--sh", "3"]) == 2
    error = capsys.readouterr().err
    assert "car.spz: cannot be written (No space left on device)" in error and error.count("\n") == 1
    assert (folder / "export" / "car.spz").read_bytes() == before
    names = {path.name for path in (folder / "export").iterdir()}
    assert names == {"car.splat", "car.spz", "cameras.json", own_files.RECORD}
    assert main(["export", str(folder), "--format", "splat", "spz"]) == 0


@pytest.mark.parametrize(
    "verb", [["export", "--format=splat"], ["mesh"], ["page"], ["view"]], ids=lambda verb: verb[0]
)
def test_a_verb_that_cannot_say_anything_begins_nothing(folder, capsys, monkeypatch, verb):
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where it is closed
    assert main([*verb, str(folder)]) == 2
    error = capsys.readouterr().err
    assert "error: standard output: cannot be written (it is closed)" in error and error.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_a_run_that_saved_nothing_is_one_line(folder, capsys):
    shutil.rmtree(folder / "point_cloud")
    assert main(["export", str(folder), "--format", "ply"]) == 2
    assert "let the run save first" in capsys.readouterr().err


def test_gaussians_that_are_not_finite_are_left_out(folder, caplog):
    path = folder / "point_cloud" / "iteration_100" / "point_cloud.ply"
    data = path.read_bytes()
    start = data.index(b"end_header\n") + len(b"end_header\n")
    path.write_bytes(data[:start] + struct.pack("<f", float("nan")) + data[start + 4 :])
    assert main(["export", str(folder), "--format", "splat"]) == 0
    assert len(read_any(folder / "export" / "car.splat")) == 299
    assert "1 of 300 Gaussians are not finite" in caplog.text


def test_a_format_that_needs_what_is_missing_is_refused_before_anything_is_written(
    folder, capsys, monkeypatch
):
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.chdir(folder)
    assert main(["export", str(folder), "--format", "ply", "sog"]) == 2
    assert "needs Node 18 or newer" in capsys.readouterr().err
    assert not (folder / "export").exists()
    monkeypatch.setattr("builtins.__import__", _without("pxr", __import__))
    with pytest.raises(UserError, match=r"pip install .*\[usd\]"):
        usd.library()


def _without(missing: str, plain):
    def load_module(name, *rest, **options):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return plain(name, *rest, **options)

    return load_module


@pytest.fixture
def programs(tmp_path, monkeypatch) -> Path:
    """A folder of programs, the only ones on the PATH but for those of the system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    monkeypatch.chdir(tmp_path)
    return folder


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


@pytest.mark.skipif(os.name != "posix", reason="the stand-in is a shell script")
def test_a_splat_transform_that_fails_leaves_nothing(folder, capsys, programs):
    program(programs / "node", "exit 0")
    for script in ("echo out of luck >&2; exit 3", "exit 0"):
        program(programs / "splat-transform", script)
        assert main(["export", str(folder), "--format", "sog"]) == 2
        error = capsys.readouterr().err
        assert "splat-transform made no file" in error and error.count("\n") == 1
        assert not (folder / "export").exists()
    (folder / "export").mkdir()
    (folder / "export" / f"{folder.name}.sog").write_text("made by hand")
    assert main(["export", str(folder), "--format", "sog"]) == 2
    assert "found another" in capsys.readouterr().err


def test_a_sog_is_read_back_by_splat_transform(tmp_path, monkeypatch):
    foreign.needs_node()
    monkeypatch.setenv("PATH", os.pathsep.join([str(foreign.PROGRAMS), os.environ["PATH"]]))
    model = asset(0)
    sog.write(tmp_path / "a.sog", model)
    assert psnr(foreign.by_splat_transform(tmp_path / "a.sog"), model) > 30


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in FORMATS) and set(FORMATS) == set(PER_GAUSSIAN)


def test_degrees_change_nothing_else():
    model = random_gaussians(5, 2)
    assert torch.equal(with_degree(model, 2).sh, model.sh)
    assert with_degree(model, 3).active_sh_degree == 3 and with_degree(model, 3).sh_rest.shape == (5, 15, 3)
