"""`python -m dreammapping`: every verb answers for help at once, and a wrong word is one line."""

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dreammapping.__main__ import VERBS, main
from utils import command, interruption
from utils.command import exit_code
from utils.errors import UserError

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "numpy", "scipy", "cv2", "PIL", "diffusers", "transformers", "omegaconf"}


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy(words):
    """Nor has Ctrl-C to wait, or to be a traceback, until torch is loaded."""
    nothing_heavy("dreammapping", words)


@pytest.mark.parametrize("module", ["toybox", "toybox.train", "toybox.dataset", "guidance.models"])
def test_help_of_other_commands_loads_nothing_heavy(module):
    nothing_heavy(module, ["--help"])


def nothing_heavy(module, words):
    code = (
        "import runpy, sys\n"
        f"try: runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: code = end.code\n"
        f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.strip()) == (0, "[]")
    assert result.stdout.startswith(f"usage: python -m {module}")


def test_help_lists_every_verb(capsys):
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [verb] for line in lines) for verb in VERBS)


def test_a_wrong_verb_is_one_line_with_the_nearest(capsys):
    assert main(["jugde", "output/quickstart"]) == 2
    error = capsys.readouterr().err
    assert "got 'jugde'; did you mean judge?" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["judge"], ["evaluate"], ["export", "--format=ply"], ["page"], ["mesh"], ["view"], ["sweep", "status"],
        ["sweep", "--opt", "configs/quickstart.yaml", "--prompts"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_home_that_the_shell_left_is_found(tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "run").mkdir()
    assert main([*words, "~/run"]) == 2
    assert str(tmp_path / "run") in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["judge"], ["evaluate", "--prompt=x"], ["export", "--format=ply"], ["page"], ["mesh"], ["view"],
        ["sweep", "status"], ["sweep", "results"], ["sweep"], ["study", "build", "--output=out"],
        ["study", "build", "--output=out", "a=here"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_no_folder_can_have_is_one_line(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "x" * 300]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not list(tmp_path.iterdir())


OPEN = "dreammapping.finished.FinishedRun.open"


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["judge"], OPEN), (["evaluate"], OPEN), (["export", "--format=ply"], OPEN), (["page"], OPEN),
        (["mesh"], OPEN), (["view"], OPEN), (["study", "build", "--output={here}/out"], OPEN),
        (["study", "score"], "dreammapping.study.score.score"),
        (["sweep", "--output={here}/out"], "dreammapping.sweep.grid.wish"),
        (["sweep", "results"], "dreammapping.sweep.ledger.Ledger.__init__"),
        (["sweep", "status"], "dreammapping.sweep.ledger.Ledger.__init__"),
        (["reproduce", "fig6", "--output={here}/out", "--opt"], "dreammapping.reproduction.work.plan_work"),
    ],
    ids=lambda each: " ".join(each[:2]) if isinstance(each, list) else "",
)  # fmt: skip
def test_ctrl_c_in_a_verb_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, where):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 1\n")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    assert main([*(word.format(here=tmp_path) for word in words), str(run)]) == 130
    error = capsys.readouterr().err
    assert error.startswith("stopped") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == [run, run / "config.yaml"]


def bare_except(number):
    with contextlib.suppress(BaseException):
        signal.raise_signal(number)


def finalizer(number):
    class Dropping:
        def __del__(self):
            signal.raise_signal(number)
            time.sleep(0)

    Dropping()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("drop", [bare_except, finalizer])
@pytest.mark.parametrize("nested", [False, True])
def test_a_signal_that_a_library_drops_comes_again(capsys, drop, number, nested):
    def work():
        drop(number)
        time.sleep(10)
        return 0

    assert exit_code((lambda: exit_code(work)) if nested else work) == 128 + number
    assert capsys.readouterr().err == "stopped; repeat the command to continue\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_until_torch_is_imported(monkeypatch, capsys, number):
    torch = types.SimpleNamespace(__spec__=types.SimpleNamespace(_initializing=True))
    monkeypatch.setitem(sys.modules, "torch", torch)

    def work():
        signal.raise_signal(number)
        time.sleep(0.3)
        torch.__spec__._initializing = False
        time.sleep(10)
        return 0

    assert exit_code(work) == 128 + number and not torch.__spec__._initializing
    assert capsys.readouterr().err == "stopped; repeat the command to continue\n"


ENDINGS = {
    "in an exec": (
        "def work(): exec('import signal; signal.raise_signal({number})'); return 0",
        "stopped; repeat the command to continue\n",
    ),
    "while Python ends": (
        "import atexit, logging, signal, utils.console\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "def library(): signal.raise_signal({number}); logging.info('statistics')\n"
        "def work(): atexit.register(library); return 0",
        "",
    ),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ENDINGS)
def test_a_signal_leaves_one_exit_code_and_one_line_at_most(tmp_path, when, number):
    """Python ends itself by the signal, and not with an exit code, where Ctrl-C passes an `exec`; and after its end."""
    work, said = ENDINGS[when]
    ending = "from utils.command import exit_code\nsys.exit(exit_code(work))\n"
    (tmp_path / "program.py").write_text(f"import sys\n{work.format(number=int(number))}\n{ending}")
    result = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (128 + number if said else 0, said)


@pytest.mark.parametrize("nested", [False, True])
def test_a_signal_that_comes_twice_is_one_line(monkeypatch, capsys, nested):
    """As `timeout` and make pass on what the terminal has sent to all: the second comes while the first is told."""
    told = command.complain

    def complain(text):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        told(text)

    def work():
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(command, "complain", complain)
    before = signal.getsignal(signal.SIGINT)
    assert exit_code((lambda: exit_code(work, stopped="stopped here")) if nested else work) == 130
    said = "stopped here" if nested else "stopped; repeat the command to continue"
    assert capsys.readouterr().err == f"{said}\n" and signal.getsignal(signal.SIGINT) is before


def test_what_cleans_up_after_a_signal_is_not_stopped_by_the_same_wish(capsys):
    """One that comes later stops that, too."""
    cleaned = []

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned.append("at once")
            time.sleep(interruption.ONE_WISH + 0.1)
            signal.raise_signal(signal.SIGINT)
            cleaned.append("later")
        return 0

    assert exit_code(work) == 130 and cleaned == ["at once"]
    assert capsys.readouterr().err == "stopped; repeat the command to continue\n"


def raising(error):
    def work():
        raise error

    return work


def test_what_the_file_system_refuses_and_memory_that_is_full_are_one_line(capsys):
    assert exit_code(raising(PermissionError(13, "Permission denied", "/their/run"))) == 2
    assert "error: /their/run: cannot be used (Permission denied); correct" in capsys.readouterr().err
    assert exit_code(raising(MemoryError())) == 2
    assert exit_code(raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))) == 2
    said = capsys.readouterr().err
    assert said.count("error: memory is full; end what else uses it") == said.count("\n") == 2
    with pytest.raises(RuntimeError, match="a fault of ours"):
        exit_code(raising(RuntimeError("a fault of ours")))
    with pytest.raises(MemoryError):
        exit_code(raising(MemoryError()), debug=True)


@pytest.mark.parametrize(
    ("module", "missing"), [("dreammapping.reproduction.command", "NAME"), ("benchmarks.sweep", "what")]
)
def test_only_what_is_required_is_called_required(module, missing, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main([])
    error = capsys.readouterr().err
    assert end.value.code == 2 and f"the following arguments are required: {missing}; " in error


def test_methods_are_an_option_of_their_table_alone(capsys):
    assert main(["reproduce", "prompts", "--methods", "sds"]) == 2
    assert "--methods: expected a figure or the table `methods`, got 'prompts'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "module", ["dreammapping.page.command", "toybox.__main__", "guidance.models.__main__"]
)
def test_an_unknown_option_is_one_line_without_the_usage(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "run", "--frobnicate"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(module).main(["fetch", "toybox", "--frobnicate"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert re.fullmatch(r"error: (python .*): .*--frobnicate; \1 --help lists all\n", error)


def test_every_command_has_that_parser():
    """Another one prints its usage before what is wrong."""
    code = [*ROOT.glob("*.py"), *(p for p in ROOT.glob("*/**/*.py") if ".venv" not in p.parts)]
    code = [path for path in code if "tests" not in path.parts and path.name != "parser.py"]
    assert len(code) > 100
    assert [path for path in code if "ArgumentParser(" in path.read_text("utf-8")] == []


def test_commands_of_two_threads_answer_for_themselves(capsys):
    def mistaken() -> int:
        raise UserError("a: expected b, got c; do d")

    def outer() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(exit_code, mistaken).result() + 40

    assert exit_code(outer) == 42
    assert capsys.readouterr().err == "error: a: expected b, got c; do d\n"
