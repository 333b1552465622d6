"""The viewer: what it shows is what our renderer shows, and a run has the same bits with it, whatever becomes of it."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch

from arguments import load
from dreammapping import optimize
from dreammapping.__main__ import main as verbs
from dreammapping.viewer import beside, needs
from dreammapping.viewer.exchange import Exchange
from dreammapping.viewer.frames import Pose, covariances, frame, side_by_side
from dreammapping.viewer.server import TRIES, directions, free_port, is_local
from gaussian_renderer import render
from scene.cameras import Cameras, orbit
from tests.finished_run import finished_run
from tests.gaussians import random_gaussians
from tests.tiny_models import save_pipeline
from tests.viewer_process import ROOT, address_said, started
from utils.errors import UserError
from utils.images import to_uint8
from utils.rotations import quaternions_to_matrices

pytestmark = pytest.mark.whole_runs

LONG = 300
"""Seconds after which a process is given up."""


def exchange() -> Exchange:
    """That of the one run which has a viewer now."""
    (folder,) = Path(tempfile.gettempdir()).glob("dreammapping-viewer-*")
    return Exchange(folder)


def pose_of(cameras: Cameras) -> Pose:
    """The pose of the first camera, as a browser would say it."""
    turn = cameras.world_to_camera[0, :3, :3].T.double()
    # the quaternion of a rotation that is not half a turn
    w = (1 + turn.trace()).sqrt() / 2
    axis = torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / (4 * w)
    return Pose(
        tuple(cameras.centers[0].tolist()),
        (float(w), *axis.tolist()),
        float(cameras.fov_y[0]),
        cameras.width / cameras.height,
    )


@pytest.fixture(scope="module")
def params():
    words = ["text=a", "model_key=toybox", "guidance=vdm", "image_w=60", "image_h=40"]
    return load(words)[0].GenerateCamParams


# Frames


def test_a_frame_is_what_the_renderer_draws_for_the_same_camera(params):
    model, cameras = random_gaussians(40, sh_degree=2), orbit(8, params, elevated_ring=True)[9:10]
    with torch.no_grad():
        expected = render(model, cameras, torch.full((3,), 0.5))
    seen = frame(model, pose_of(cameras), 40, background=0.5)
    # what the quaternion and back loses may move a colour over a rounding border
    assert abs(seen.astype(int) - to_uint8(expected.images)[0]).max() <= 1
    opacity = frame(model, pose_of(cameras), 40, channel="opacity")
    assert abs(opacity.astype(int) - to_uint8(expected.alphas)[0]).max() <= 1
    depth = frame(model, pose_of(cameras), 40, channel="depth")
    assert depth.shape == (40, 60, 3) and depth.max() > 100


def test_harmonics_are_used_up_to_the_degree_that_is_asked_for(params):
    model, pose = random_gaussians(40, sh_degree=2), pose_of(orbit(8, params)[1:2])
    flat, all_bands = (frame(model, pose, 40, sh_degree=degree) for degree in (0, 3))
    model.active_sh_degree = 0
    assert (frame(model, pose, 40) == flat).all() and (flat != all_bands).any()


@pytest.mark.parametrize("aspect", [1e-6, 0.5, 3.0, 1e6])
def test_windows_of_every_form_are_drawn(aspect):
    picture = frame(random_gaussians(5), Pose((0, 3.5, 0), (0, 0, 0.7071, -0.7071), 0.5, aspect), 32)
    assert picture.shape == (32, round(32 * min(max(aspect, 0.25), 4)), 3)


def test_the_start_stands_on_the_left_of_the_result(params):
    both = side_by_side(random_gaussians(5), random_gaussians(7, sh_degree=1), 1.2)
    assert len(both) == 12 and both.active_sh_degree == 1
    camera = orbit(1, params)
    across = both.means.detach() @ camera.world_to_camera[0, 0, :3]
    assert across[:5].mean() < across[5:].mean()
    torch.testing.assert_close(both.means[:5, 1:], random_gaussians(5).means[:, 1:])


def test_covariances_are_those_of_the_rotated_scales():
    model = random_gaussians(6)
    turns = quaternions_to_matrices(model.rotations.detach())
    expected = turns @ torch.diag_embed(model.scales.detach() ** 2) @ turns.transpose(1, 2)
    torch.testing.assert_close(torch.from_numpy(covariances(model)), expected)


# What the run and the viewer leave for each other


def test_a_snapshot_is_read_as_it_was_left_and_once(tmp_path):
    exchange, model = Exchange(tmp_path), random_gaussians(9, sh_degree=1)
    picture = (torch.rand(4, 6, 3) * 255).byte().numpy()
    assert exchange.newest(0.0) is None
    exchange.leave(3, model, picture)
    left, snapshot = exchange.newest(0.0)
    assert (
        snapshot.step == 3
        and (snapshot.picture == picture).all()
        and snapshot.gaussians.active_sh_degree == 1
    )
    for name in model.parameter_names:
        assert torch.equal(getattr(snapshot.gaussians, name), getattr(model, name))
    assert exchange.newest(left) is None
    exchange.leave(4, None, picture)
    os.utime(tmp_path / "snapshot.npz", (left + 1, left + 1))
    assert exchange.newest(left)[1].gaussians is None


def test_a_snapshot_that_is_broken_is_none(tmp_path):
    for content in (b"", b"PK\x03\x04 cut off", b"x" * 1000):
        (tmp_path / "snapshot.npz").write_bytes(content)
        assert Exchange(tmp_path).newest(0.0) is None


def test_wishes_are_heard_once_and_a_pause_ends_with_its_viewer(tmp_path):
    exchange = Exchange(tmp_path)
    assert not exchange.takes_save() and not exchange.paused
    exchange.ask_to_save()
    assert exchange.takes_save() and not exchange.takes_save()
    exchange.renew_pause(True)
    assert exchange.paused
    os.utime(tmp_path / "pause", (time.time() - 60, time.time() - 60))
    assert not exchange.paused
    exchange.renew_pause(True)
    assert exchange.paused
    exchange.renew_pause(False)
    exchange.renew_pause(False)
    assert not exchange.paused


def test_an_exchange_is_removed_and_nothing_else_with_it(tmp_path):
    for name in ("empty", "shared"):
        (tmp_path / name).mkdir()
        exchange = Exchange(tmp_path / name)
        exchange.leave(1, None, (torch.rand(2, 2, 3) * 255).byte().numpy())
        exchange.ask_to_save()
        exchange.renew_pause(True)
        (tmp_path / name / ".snapshot.0123abcd.partial.npz").write_bytes(b"cut off by a kill")
    (tmp_path / "shared" / "thesis.txt").write_text("x")
    for name in ("empty", "shared", "gone"):
        Exchange(tmp_path / name).remove()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["shared", "thesis.txt"]


def test_an_exchange_that_is_gone_disturbs_nobody(tmp_path):
    exchange = Exchange(tmp_path / "gone")
    exchange.ask_to_save()
    exchange.renew_pause(True)
    assert not exchange.paused and not exchange.takes_save() and exchange.newest(0.0) is None


# A run with a viewer beside it


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture
def run(prior, tmp_path):
    """Runs 6 iterations into a folder of the given name, and returns it."""
    words = [
        f"model_key={prior}", f"output_path={tmp_path}", "device=cpu", "text=a red car", "fp16=false",
        "guidance=vdm", "perpneg=false", "iterations=6", "log_interval=1", "save_video=false", "save_process=false",
        "init_num_pts=60", "image_w=32", "image_h=32", "C_batch_size=1", "densify_from_iter=1",
        "densification_interval=3", "densify_grad_threshold=0.00001", "page=false", "save_ratio=1",
    ]  # fmt: skip

    def make(name: str, *more: str, **how):
        config, _ = load([*words, f"workspace={name}", *more])
        assert optimize(config, quiet=True, **how).exit_code == 0
        return tmp_path / name

    return make


VIEWERS = {
    "never looks": "import sys; sys.stdin.read()",
    "is dead at once": "raise SystemExit(1)",
    "does not end": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)",
    "stops in the middle": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "pauses and dies": "import pathlib, sys; (pathlib.Path(sys.argv[-1]) / 'pause').touch()",
    "asks to save again and again": (
        "import pathlib, sys, time\n"
        "for _ in range(100000): (pathlib.Path(sys.argv[-1]) / 'save').touch(); time.sleep(0.001)"
    ),
    "takes the folder away": "import shutil, sys; shutil.rmtree(sys.argv[-1])",
}


@pytest.fixture
def viewer(monkeypatch, tmp_path_factory):
    """Puts a script in the viewer's place; a snapshot is left after every iteration."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("exchange")))
    monkeypatch.setattr(needs, "find_spec", lambda name: object())
    monkeypatch.setattr(beside, "PERIOD", 0.0)
    monkeypatch.setattr(beside, "SHARE", 0)
    return lambda script: monkeypatch.setattr(beside, "COMMAND", (sys.executable, "-c", script))


def test_a_run_has_the_same_bits_whatever_becomes_of_its_viewer(run, viewer):
    def asset(folder: Path) -> bytes:
        return (folder / "point_cloud" / "iteration_6" / "point_cloud.ply").read_bytes()

    def numbers(folder: Path) -> list[dict]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if key != "seconds_per_iteration"} for line in lines
        ]

    plain = run("plain")
    for number, (how, script) in enumerate(VIEWERS.items()):
        viewer(script)
        seen = run(f"seen{number}", "viewer=true")
        assert asset(seen) == asset(plain), how
        assert numbers(seen) == numbers(plain), how


def test_snapshots_follow_the_run_and_go_with_it(run, viewer):
    viewer(VIEWERS["never looks"])
    folders, steps = set(), []

    def look(step, optimization):
        found = exchange().newest(0.0)[1]
        folders.add(exchange().folder)
        steps.append(found.step)
        assert torch.equal(found.gaussians.means, optimization.subject.gaussians.means)

    run("run", "viewer=true", callback=look)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not any(folder.exists() for folder in folders)


def test_a_wish_to_save_leaves_a_checkpoint_and_the_asset_of_that_iteration(run, viewer):
    viewer(VIEWERS["never looks"])

    def ask(step, optimization):
        if step == 2:
            exchange().ask_to_save()

    folder = run("run", "viewer=true", callback=ask)
    assert (folder / "point_cloud" / "iteration_3" / "point_cloud.ply").is_file()
    assert (folder / "checkpoints" / "iteration_000003").is_dir()


def test_the_loop_waits_as_long_as_a_pause_is_renewed(run, viewer):
    viewer(VIEWERS["never looks"])
    times: dict[int, float] = {}
    ended: list[float] = []

    def keep(exchange: Exchange) -> None:
        for _ in range(10):
            exchange.renew_pause(True)
            time.sleep(0.1)
        ended.append(time.monotonic())
        exchange.renew_pause(False)

    def ask(step, optimization):
        times[step] = time.monotonic()
        if step == 2:
            exchange().renew_pause(True)
            threading.Thread(target=keep, args=(exchange(),)).start()

    run("run", "viewer=true", callback=ask)
    assert times[3] > ended[0] > times[2]


def test_a_wish_to_stop_ends_a_pause(prior, tmp_path, viewer):
    viewer(VIEWERS["never looks"])
    with beside.Beside(tmp_path, 8080) as shown:
        shown._broken = True  # no snapshot: there is no optimisation
        for _ in range(2):
            shown.exchange.renew_pause(True)
            answers = iter([False, True])
            shown.after(1, None, lambda: None, lambda answers=answers: next(answers))


def test_a_full_disk_costs_one_warning(run, viewer, monkeypatch, caplog):
    viewer(VIEWERS["never looks"])

    def full(*_):
        raise UserError("snapshot.npz: cannot be written (No space left on device)")

    monkeypatch.setattr(Exchange, "leave", full)
    run("run", "viewer=true")
    assert sum("the viewer stays at what it has" in message for message in caplog.messages) == 1


def test_a_viewer_that_cannot_be_started_is_one_line(run, viewer, monkeypatch, tmp_path):
    viewer("")
    monkeypatch.setattr(beside, "COMMAND", (str(tmp_path / "nothing"),))
    with pytest.raises(UserError, match=r"viewer=true: expected a viewer that starts, got: .*nothing"):
        run("run", "viewer=true")
    assert not (tmp_path / "run").exists() and not os.listdir(tempfile.gettempdir())


def test_without_viser_one_line_says_how_to_get_it_and_nothing_begins(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"viewer=true: expected the package viser.*pip install .*"):
        run("run", "viewer=true")
    assert not (tmp_path / "run").exists()
    assert verbs(["view", str(tmp_path)]) == 2
    assert "view: expected the package viser" in capsys.readouterr().err


def test_only_the_viewers_own_process_imports_viser():
    importing = {
        str(path.relative_to(ROOT))
        for path in [
            *ROOT.glob("*.py"),
            *(ROOT / "dreammapping").rglob("*.py"),
            *(ROOT / "utils").rglob("*.py"),
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(name.name.split(".")[0] == "viser" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "viser")
    }
    assert importing == {"dreammapping/viewer/command.py", "dreammapping/viewer/stage.py"}
    code = "import sys, train, dreammapping.program; sys.exit('viser' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=LONG)


# Its address


def test_the_next_free_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = free_port("127.0.0.1", port)
        assert port < found <= port + TRIES


def test_no_free_port_and_no_such_address_are_said(monkeypatch):
    def refuse(*_):
        raise OSError(98, "Address already in use")

    with pytest.raises(
        UserError, match=r"--host: expected an address of this machine, got .nowhere\.invalid"
    ):
        free_port("nowhere.invalid", 8080)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(
        UserError, match=r"--port: expected a free one from 65530 to 65535 .*Address already in use"
    ):
        free_port("127.0.0.1", 65530)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
    ],
)
def test_addresses_that_others_reach_are_known(host, local):
    assert is_local(host) == local
    said = directions(host, 8081)
    assert "ssh -L 8081:127.0.0.1:8081" in said and "http://0.0.0.0" not in said


# The verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "car")


def test_a_finished_run_is_shown_to_this_machine_alone_until_ctrl_c(folder):
    pytest.importorskip("viser", reason="needs viser: pip install .")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = started(folder, "--port", str(port))
        try:
            lines = iter(process.stdout.readline, "")
            assert next(lines).startswith("50 Gaussians: "), "how much there is comes first"
            address = address_said(lines)
            assert address.startswith("http://127.0.0.1:") and address != f"http://127.0.0.1:{port}"
            assert urllib.request.urlopen(address, timeout=LONG).status == 200
            listening = [
                link.laddr.ip
                for link in psutil.Process(process.pid).net_connections()
                if link.status == "LISTEN"
            ]
            assert set(listening) == {"127.0.0.1"}
            process.send_signal(signal.SIGINT)
            assert process.wait(LONG) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
            process.communicate()


def test_the_viewer_of_a_run_ends_with_it(folder, tmp_path):
    pytest.importorskip("viser", reason="needs viser: pip install .")
    process = started(folder, "--beside", str(tmp_path), "--port", "8300", stdin=subprocess.PIPE)
    try:
        address_said(process.stderr)
        process.stdin.close()
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.stdin = None
        process.communicate()


BAD = {
    "no run": ([], lambda folder, tmp_path: tmp_path, "expected a run with its config.yaml"),
    "no such iteration": (["--iteration", "7"], lambda folder, _: folder, "expected iteration 10, 20, got 7"),
    "no such port": (["--port", "70000"], lambda folder, _: folder, "--port: expected 1 to 65535, got 70000"),
    "no such host": (["--host", "nowhere.invalid"], lambda folder, _: folder, "--host: expected an address"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_shown_is_one_line(folder, tmp_path, capsys, monkeypatch, what):
    monkeypatch.setattr(needs, "find_spec", lambda name: object())
    words, place, said = BAD[what]
    assert verbs(["view", str(place(folder, tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_empty_asset_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: object())
    folder = finished_run(tmp_path / "run")
    for path in folder.rglob("point_cloud.ply"):
        path.write_bytes(b"")
    assert verbs(["view", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
