"""The whole measurement of a card, tiny, on a CPU: every part runs and says something."""

import json

import pytest

from benchmarks.card import main

pytestmark = pytest.mark.slow


def test_all_parts_run_tiny_on_a_cpu(tmp_path, capfd):
    """The whole command, but for what needs a card: compute-sanitizer, gsplat, compilation."""
    report = tmp_path / "card.json"
    folder = tmp_path / "work"
    code = main(["--device", "cpu", "--tiny", "--folder", str(folder), "--json", str(report)])
    printed, parts = capfd.readouterr().out, json.loads(report.read_text())["parts"]
    assert {name: each["state"] for name, each in parts.items()} == dict.fromkeys(parts, "done")
    assert code == 0
    for word in (
        "model", "gpu tests", "scene", "encoder", "iteration", "rasterizer", "quick start", "memory plans",
        "launches", "graphs",
    ):  # fmt: skip
        assert f"\n{word:14}done" in printed
    rows = {name: dict(map(tuple, each["rows"])) for name, each in parts.items()}
    assert rows["encoder"]["eager"].endswith(tuple("0123456789")) and "operator eager" in rows["encoder"]
    assert all("times the floor" in rows[name]["iteration"] for name in ("iteration", "graphs"))
    assert rows["graphs"]["preparation"].startswith("0 s")  # nothing is compiled on a CPU
    assert set(rows["launches"]) == {"CUDA graphs", "none"}
    assert set(rows["memory plans"]) == {"8gb", "12gb", "max"}
    assert "R-precision" in rows["quick start"]["asset"]
    assert "skipped" in rows["gpu tests"]["tests"] or "passed" in rows["gpu tests"]["tests"]
