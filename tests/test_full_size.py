"""The benchmark of the paper's setting: on narrow settings here, on the real size only where asked (`-m slow`)."""

import json

import pytest

from benchmarks.full_size import main
from tests.small_models import narrow_configs

GIB = 2**30


def test_the_true_loop_runs_on_a_random_model_and_reports(tmp_path, capsys):
    settings = narrow_configs(tmp_path / "settings") / "sd2-base"
    words = ["image_w=32", "image_h=32", "init_num_pts=60", "C_batch_size=2", "device=cpu", "perpneg=false"]
    report = tmp_path / "result.json"
    options = [
        "--settings",
        str(settings),
        "--folder",
        str(tmp_path),
        "--iterations",
        "2",
        "--json",
        str(report),
    ]
    assert main([*options, "HardwareParams.memory=8gb", *words]) == 0
    result = json.loads(report.read_text())
    assert result["evaluations_per_view"] == {"forward": 2.0, "backward": 0.0}
    assert (result["memory_plan"], result["precision"], result["device"]) == ("8gb", "float32", "cpu")
    assert result["losses_finite"] and result["seconds_per_iteration"] > 0
    assert "peak_memory_bytes" in capsys.readouterr().out


@pytest.mark.slow
def test_sd21_base_at_its_real_size_fits_into_12_gib_on_a_cpu(tmp_path):
    report = tmp_path / "result.json"
    options = ["--folder", str(tmp_path), "--iterations", "2", "--json", str(report)]
    words = ["HardwareParams.memory=8gb", "device=cpu", "init_num_pts=5000", "C_batch_size=2"]
    assert main([*options, *words]) == 0
    result = json.loads(report.read_text())
    assert result["peak_memory_bytes"] < 12 * GIB
    assert result["losses_finite"]
