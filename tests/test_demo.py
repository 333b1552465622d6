"""How `make demo` ends: with one thing to open, the best that there is."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def demo(tmp_path) -> Path:
    """A finished run, with videos of its first and last iteration."""
    (tmp_path / "run.json").write_text('{"finished": true}')
    for age, name in (
        (60, "videos/1_iteration/video_rgb_1.mp4"),
        (0, "videos/700_iteration/video_rgb_700.mp4"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (10_000 - age, 10_000 - age))
    return tmp_path


def last_line(demo: Path) -> str:
    command = ["make", "-s", "demo", "READY=", f"DEMO={demo}"]  # nothing is set up or trained
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, last = run.stdout.splitlines()
    assert first.startswith(f"{demo} is finished")
    return last


def test_the_last_video_is_named_and_no_other(demo):
    line = last_line(demo)
    assert f"Open {demo}/videos/700_iteration/video_rgb_700.mp4 in a browser" in line
    assert "video_rgb_1.mp4" not in line


def test_a_page_goes_before_the_video(demo):
    (demo / "index.html").touch()
    assert f"Open {demo}/index.html in a browser" in last_line(demo)


def test_help_has_a_line_for_each_target():
    run = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert sorted(line.split()[0] for line in run.stdout.splitlines()) == sorted(phony.split()[1:])
    assert all(len(line) <= 80 and len(line.split()) > 1 for line in run.stdout.splitlines())
