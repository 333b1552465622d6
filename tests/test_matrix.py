"""The matrix of machines: which cells a processor gets, and that one red cell is a red matrix."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import matrix

SMALL, LARGE = {"sse4_1"}, {"sse4_1", "avx2", "avx512f", "avx512_bf16"}


@pytest.mark.parametrize(("flags", "count"), [(set(), 2), (SMALL, 4), (SMALL | {"avx2"}, 6), (LARGE, 7)])
def test_a_processor_is_asked_for_nothing_that_it_lacks(flags, count):
    found = matrix.cells(flags, 2)
    assert len({name for name, _ in found}) == len(found) == count
    asked = {value.lower() for _, environment in found for value in environment.values()}
    assert ("avx2" in asked) == ("avx2" in flags)
    assert ("avx512_core_bf16" in asked) == ("avx512_bf16" in flags)


@pytest.mark.parametrize("red", [None, 1])
def test_one_red_cell_is_a_red_matrix(red, monkeypatch, capsys):
    runs = []

    def run(command, env, **_):
        runs.append((command, env))
        return SimpleNamespace(returncode=int(len(runs) - 1 == red))

    monkeypatch.setattr(subprocess, "run", run)
    assert matrix.main(["tests/test_files.py"]) == int(red is not None)
    assert all(command[:3] == [sys.executable, "-m", "pytest"] for command, _ in runs)
    assert len({command[-2] for command, _ in runs}) == len(runs)  # each has an order of its own
    assert {env.get("TEST_THREADS") for _, env in runs} > {"1"}
    assert capsys.readouterr().out.count("red (1)") == int(red is not None)


def test_other_runs_are_in_the_order_of_the_files():
    """The plug-in that shuffles must do so only where it is asked to."""
    root = Path(matrix.__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_files.py"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    names = [line.split("::")[1].split("[")[0] for line in shown.splitlines() if "::" in line]
    source = Path(root, "tests/test_files.py").read_text(encoding="utf-8")
    positions = [source.index(f"def {name}(") for name in names]
    assert len(positions) > 2
    assert positions == sorted(positions)
