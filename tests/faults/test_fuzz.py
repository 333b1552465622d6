"""The fuzzer itself: what it must notice, and that its cases come again."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.fuzz import DAMAGES, MEMORY, fuzz, long_form, mutant
from utils.errors import UserError
from utils.repository import ROOT

SEEDS = {"a.txt": b"one 1\ntwo 2\n" * 20, "b.bin": bytes(range(256))}


def damaged(path: Path) -> bool:
    return path.read_bytes() != SEEDS[path.name]


def ends_the_process(path):
    if damaged(path):
        os.kill(os.getpid(), signal.SIGSEGV)


def leaves_python(path):
    if damaged(path):
        os._exit(0)


def hangs(path):
    if damaged(path):
        time.sleep(60)


def takes_memory(path):
    if damaged(path):
        bytearray(2 * MEMORY)


def hides_that_it_took_memory(path):
    try:
        takes_memory(path)
    except MemoryError as error:
        raise UserError("broken") from error


def stumbles(path):
    if damaged(path):
        raise KeyError(str(path))


def leaves(path):
    if damaged(path):
        raise SystemExit(2)


def talks_too_much(path):
    if damaged(path):
        raise UserError("one line\nand another")


def refuses(path):
    if damaged(path):
        raise UserError("one line")


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (ends_the_process, "the process died (-11)"),
        (leaves_python, "the process died (0)"),
        (hangs, "takes too long"),
        (takes_memory, "MemoryError"),
        (hides_that_it_took_memory, "memory: broken"),
        (stumbles, "KeyError at test_fuzz.py"),
        (leaves, "SystemExit"),
        (talks_too_much, "not one line"),
    ],
)
def test_every_kind_of_failure_is_noticed(tmp_path, reader, said):
    report = fuzz(reader, SEEDS, cases=4, seed=1, folder=tmp_path, seconds=0.2 if reader is hangs else 5.0)
    assert len(report.failures) == 4
    assert all(said in failure.what for failure in report.failures), str(report)


def test_one_line_for_the_user_is_no_failure(tmp_path):
    report = fuzz(refuses, SEEDS, cases=50, seed=1, folder=tmp_path)
    assert (report.read, report.refused, report.failures) == (0, 50, [])


def test_the_run_goes_on_behind_a_case_that_ended_the_process(tmp_path):
    def dies_of_the_second_file(path):
        if damaged(path) and path.name == "b.bin":
            os.abort()

    report = fuzz(dies_of_the_second_file, SEEDS, cases=20, seed=3, folder=tmp_path)
    names = [mutant(SEEDS, 3, index)[0] for index in range(20)]
    assert report.read == names.count("a.txt") > 0
    assert [failure.index for failure in report.failures] == [i for i, n in enumerate(names) if n == "b.bin"]


def test_good_files_must_be_good(tmp_path):
    def refuses_all(path):
        raise UserError("never")

    with pytest.raises(ValueError, match=r"a\.txt: refused"):
        fuzz(refuses_all, SEEDS, cases=1, seed=0, folder=tmp_path)


def test_cases_come_again_and_differ():
    cases = [mutant(SEEDS, 5, index) for index in range(400)]
    assert cases == [mutant(SEEDS, 5, index) for index in range(400)]
    assert len(set(cases)) > 300
    assert cases != [mutant(SEEDS, 6, index) for index in range(400)]


@pytest.mark.parametrize("damage", dict.fromkeys(DAMAGES), ids=lambda damage: damage.__name__)
def test_every_damage_bears_every_file_and_changes_most(damage):
    rng = random.Random(0)
    seeds = {"empty": b"", "byte": b"\xff", "huge": b"1e999 -9e400 " * 9, **SEEDS}
    changed = [damage(seeds[name], rng, seeds, ["word"]) != seeds[name] for name in seeds for _ in range(50)]
    assert sum(changed[150:]) > 30


def test_the_environment_says_how_long(monkeypatch, capsys):
    monkeypatch.setenv("FUZZ_CASES", "7")
    monkeypatch.setenv("FUZZ_SEED", "9")
    assert long_form() == (7, 9)
    assert capsys.readouterr().out == "FUZZ_CASES=7 FUZZ_SEED=9\n"
    monkeypatch.delenv("FUZZ_SEED")
    assert long_form()[1] > 20260101


def test_nothing_goes_on_when_the_tests_are_killed(tmp_path):
    script = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from tests.faults.fuzz import fuzz

        def read(path):
            Path({str(tmp_path / "read")!r}).touch()
            time.sleep(0.01)

        fuzz(read, {{"a": b"good"}}, 100_000, 0, Path({str(tmp_path)!r}))
    """)
    tests = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        while not (tmp_path / "read").exists():
            assert tests.poll() is None
            time.sleep(0.05)
        (child,) = psutil.Process(tests.pid).children()
    finally:
        tests.kill()
        tests.wait()
    assert psutil.wait_procs([child], timeout=30.0)[0] == [child]
