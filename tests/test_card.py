"""The measurement of a card: no part can hold up or spoil another."""

import argparse
import sys
import threading
import time

import psutil
import pytest
import torch

from benchmarks import card, encoder
from benchmarks.card import main
from benchmarks.card_rows import encoder_rows, sanitizer_summary
from benchmarks.stopwatch import Stopwatch
from benchmarks.timed_parts import SIDE_BY_SIDE, Part, carry_out, longest


def part(*code: str, limit=60.0, rows=lambda _: [], **given) -> Part:
    """A part whose commands are lines of Python."""
    return Part("a part", limit, [[sys.executable, "-S", "-c", each] for each in code], rows, **given)


def outcome(it: Part, folder, seconds=60.0):
    return carry_out(it, folder, time.monotonic() + seconds, threading.Event())


def ended(pid: int) -> bool:
    """Whether a process is gone, or will have been within seconds; what nobody waits for stays as a zombie."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_a_part_that_hangs_is_ended_with_what_it_started(tmp_path):
    """Its child would go on and take the device from the next part."""
    child = f"import time; open(r'{tmp_path / 'up'}', 'w').close(); time.sleep(600)"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-S', '-c', sys.argv[1]]); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    it = Part("a part", 600, [[sys.executable, "-S", "-c", code, child]], lambda _: [])
    stop, found = threading.Event(), []
    runner = threading.Thread(
        target=lambda: found.append(carry_out(it, tmp_path, time.monotonic() + 600, stop))
    )
    runner.start()
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    stop.set()
    runner.join()
    pid = int((tmp_path / "a_part.log").read_text())
    assert found[0].state.startswith("over its limit") and not found[0].good
    assert ended(pid)


@pytest.mark.parametrize(("limit", "seconds"), [(0.5, 60.0), (60.0, 0.5)])
def test_neither_a_parts_limit_nor_that_of_all_is_passed(tmp_path, limit, seconds):
    found = outcome(part("import time; time.sleep(600)", limit=limit), tmp_path, seconds)
    assert found.state.startswith("over its limit") and not found.good


def test_what_no_time_is_left_for_is_said_and_not_run(tmp_path):
    found = outcome(part(f"open(r'{tmp_path / 'ran'}', 'w')"), tmp_path, seconds=-1.0)
    assert (found.state, found.good) == ("no time left", False)
    assert not (tmp_path / "ran").exists()


def test_a_part_that_fails_says_its_last_line_and_runs_no_further(tmp_path):
    found = outcome(part("print('before')", "raise SystemExit('why')", "print('after')"), tmp_path)
    assert found.state == "failed: exit code 1: why" and not found.good
    assert "after" not in (tmp_path / "a_part.log").read_text()


def test_results_that_cannot_be_read_fail_their_part_alone(tmp_path):
    found = outcome(part("pass", rows=encoder_rows), tmp_path)
    assert found.state.startswith("failed: its results cannot be read") and found.rows == []


def test_what_is_not_installed_is_left_out_and_is_no_failure(tmp_path):
    found = outcome(part("raise SystemExit(1)", missing="compute-sanitizer"), tmp_path)
    assert found.state == "left out: compute-sanitizer is not installed" and found.good


def test_a_failure_ends_no_other_part_and_is_the_exit_code(tmp_path, monkeypatch, capsys):
    bad, good = (
        part("raise SystemExit('why')"),
        Part("another", 60, [[sys.executable, "-S", "-c", ""]], lambda _: []),
    )
    monkeypatch.setattr(card, "stages", lambda _: [[bad], [good]])
    words = ["--device", "cpu", "--folder", str(tmp_path), "--json", str(tmp_path / "card.json")]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "a part        failed: exit code 1: why" in printed and "another       done" in printed


def test_on_a_card_what_is_timed_runs_alone_and_both_tools_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(card.shutil, "which", lambda _name, path: "/opt/compute-sanitizer")
    words = ["--device", "cuda", "--folder", str(tmp_path)]
    order = card.stages(card.parser().parse_args(words))
    names = [[each.name for each in stage] for stage in order]
    assert names[0] == ["model", "gpu tests", "memcheck", "racecheck"]
    assert all(len(stage) == 1 for stage in names[1:]) and len(names) == 8
    for each in order[0][2:]:
        assert list(each.commands[0][:3]) == ["/opt/compute-sanitizer", "--tool", each.name]
        assert each.environment == (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    compiled = [
        each.name for stage in order for each in stage if "HardwareParams.compile=always" in each.commands[0]
    ]
    assert compiled == ["iteration", "graphs"]
    assert sum(map(longest, order)) <= card.TOTAL <= 8 * 60 - 10, "ten seconds are to load the command itself"


def test_the_limits_follow_the_time_that_there_is(tmp_path):
    words = ["--device", "cpu", "--folder", str(tmp_path), "--total"]
    usual, twice = (
        card.stages(card.parser().parse_args([*words, str(total)])) for total in (card.TOTAL, 2 * card.TOTAL)
    )
    assert sum(map(longest, twice)) == pytest.approx(2 * sum(map(longest, usual)))


def test_a_stage_is_over_when_the_last_of_its_lanes_is():
    parts = [part(limit=limit) for limit in (5.0, 3.0, 4.0)]
    assert SIDE_BY_SIDE == 2
    assert longest(parts) == 7.0 and longest(parts[:1]) == 5.0 and longest([]) == 0.0


@pytest.mark.parametrize(
    ("first", "seconds", "state"),
    [("pass", 60, "done"), ("import time; time.sleep(600)", 1, "over its limit")],
)
def test_a_part_has_what_is_left_over_before_it_and_no_time_of_others(
    first, seconds, state, tmp_path, monkeypatch
):
    longer = "import time; time.sleep(1)" if state == "done" else first
    codes = {"before": (seconds, first), "longer": (0.5, longer), "last": (60, "pass")}
    order = [
        [Part(name, limit, [[sys.executable, "-S", "-c", code]], lambda _: [])]
        for name, (limit, code) in codes.items()
    ]
    monkeypatch.setattr(card, "stages", lambda _: order)
    options = card.parser().parse_args(["--device", "cpu", "--folder", str(tmp_path)])
    parts = card.measure(options)["parts"]
    assert parts["before"]["state"].startswith(state) and parts["longer"]["state"].startswith(state)
    assert parts["last"]["state"] == "done"


def test_the_sanitizers_summary_is_found(tmp_path):
    log = tmp_path / "memcheck.log"
    log.write_text("========= COMPUTE-SANITIZER\ndrawn\n========= ERROR SUMMARY: 0 errors\n")
    assert sanitizer_summary(log) == "ERROR SUMMARY: 0 errors"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "--device: expected cpu where torch finds no CUDA device"),
        (["--device", "cpu", "--total", "0"], "--total: expected more than 0 seconds, got 0.0"),
        (
            ["--device", "cpu", "--parts", "encodr"],
            "--parts: expected some of model, gpu tests, scene, encoder",
        ),
    ],
)
def test_wrong_options_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*words, "--folder", str(tmp_path), "--json", str(tmp_path / "card.json")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_every_form_of_the_encoder_is_measured_with_cudnn(monkeypatch):
    """`cudnn.flags` switches it off where nobody says otherwise: which takes other kernels."""
    seen = {}

    def row(_options, _device, form):
        seen[form.name] = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
        return {"failed": "not run"}

    monkeypatch.setattr(encoder, "_encoder_row", row)
    monkeypatch.setattr(encoder, "operators", lambda *_words: {})
    options = argparse.Namespace(device="cpu", eager=False, views=1, size=64)
    encoder.measure(options)
    assert seen == {
        form.name: (True, form.search) for form in encoder.forms(torch.device("cpu"), compiled=True)
    }


@pytest.mark.parametrize(
    ("kernel", "layout"),
    [
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", True),
        ("void cudnn::ops::nchwToNhwcKernel<__half>", True),
        ("triton_poi_fused__to_copy_add_mul_permute_rsqrt_silu_view_4", False),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32", False),
    ],
)
def test_a_kernel_that_only_moves_numbers_is_told_by_its_name(kernel, layout):
    assert encoder.is_of_layout(kernel) is layout


def test_a_block_of_several_is_timed_as_one_of_them(monkeypatch):
    times = iter([1.0, 4.0])
    monkeypatch.setattr(Stopwatch, "now", lambda _self: next(times))
    watch = Stopwatch(torch.device("cpu"))
    with watch.timed("iteration", 3):
        pass
    assert watch.median("iteration") == 1.0
