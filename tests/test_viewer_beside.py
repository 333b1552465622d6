"""A run with a viewer beside it has the same bits as without, whatever becomes of the viewer."""

import ast
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from arguments import load
from dreammapping import optimize
from dreammapping.__main__ import main as verbs
from dreammapping.viewer import beside, needs
from dreammapping.viewer.exchange import Exchange
from tests.viewer_process import ROOT
from utils.errors import UserError

pytestmark = pytest.mark.whole_runs


def exchange() -> Exchange:
    """That of the one run which has a viewer now."""
    (folder,) = Path(tempfile.gettempdir()).glob("dreammapping-viewer-*")
    return Exchange(folder)


@pytest.fixture
def run(prior, tmp_path):
    """Runs 6 iterations into a folder of the given name, and returns it."""
    words = [
        f"model_key={prior}", f"output_path={tmp_path}", "device=cpu", "text=a red car", "fp16=false",
        "guidance=vdm", "perpneg=false", "iterations=6", "log_interval=1", "save_video=false", "save_process=false",
        "init_num_pts=60", "image_w=32", "image_h=32", "C_batch_size=1", "densify_from_iter=1",
        "densification_interval=3", "densify_grad_threshold=0.00001", "page=false", "save_ratio=1", "test_ratio=1",
    ]  # fmt: skip

    def make(name: str, *more: str, **how):
        config, _ = load([*words, f"workspace={name}", *more])
        assert optimize(config, quiet=True, **how).exit_code == 0
        return tmp_path / name

    return make


NEVER_LOOKS = "import sys; sys.stdin.read()"
VIEWERS = {
    "is dead at once": "raise SystemExit(1)",
    "pauses and dies": "import pathlib, sys; (pathlib.Path(sys.argv[-1]) / 'pause').touch()",
    "asks to save again and again, and does not end": (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(100000): (pathlib.Path(sys.argv[-1]) / 'save').touch(); time.sleep(0.001)"
    ),
    "takes the folder away and stops": (
        "import os, shutil, signal, sys; shutil.rmtree(sys.argv[-1]); os.kill(os.getpid(), signal.SIGSTOP)"
    ),
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
    viewer(NEVER_LOOKS)
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
    viewer(NEVER_LOOKS)

    def ask(step, optimization):
        if step == 2:
            exchange().ask_to_save()

    folder = run("run", "viewer=true", callback=ask)
    assert (folder / "point_cloud" / "iteration_3" / "point_cloud.ply").is_file()
    assert (folder / "checkpoints" / "iteration_000003").is_dir()


def test_the_loop_waits_as_long_as_a_pause_is_renewed(run, viewer):
    viewer(NEVER_LOOKS)
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
    viewer(NEVER_LOOKS)
    with beside.Beside(tmp_path, 8080) as shown:
        shown._broken = True  # no snapshot: there is no optimisation
        for _ in range(2):
            shown.exchange.renew_pause(True)
            answers = iter([False, True])
            shown.after(1, None, lambda: None, lambda answers=answers: next(answers))


def test_a_full_disk_costs_one_warning(run, viewer, monkeypatch, caplog):
    viewer(NEVER_LOOKS)

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
