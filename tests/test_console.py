"""Consoles that cannot show a letter, and text files whatever the console's language."""

import ast
import io
import logging
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from utils.console import Forgiving, complain, forgiving_errors, write_out
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PRINT = "import sys; {call}sys.stdout.write('caf\\xe9 \\u732b\\n'); sys.stderr.write('\\U0001f431\\n')"
CALL = "from utils.console import show_every_letter; show_every_letter(); "


def shown(code, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)


@pytest.mark.parametrize(
    ("encoding", "out"),
    [
        ("ascii", rb"caf\xe9 \u732b"),
        ("cp1252", b"caf\xe9 \\u732b"),
        ("cp437", b"caf\x82 \\u732b"),
        ("utf-8", "café 猫".encode()),
    ],
)
def test_a_letter_that_a_console_lacks_is_shown_by_its_number(encoding, out):
    result = shown(PRINT.format(call=CALL), encoding)
    assert result.returncode == 0 and result.stdout.split(b"\n")[0].rstrip() == out
    assert result.stderr.strip() == ("🐱".encode() if encoding == "utf-8" else rb"\U0001f431")
    assert shown(PRINT.format(call=""), encoding).returncode == (0 if encoding == "utf-8" else 1)


def test_a_path_that_the_locale_could_not_read_is_shown_by_its_bytes():
    code = f"import sys; {CALL}sys.stdout.write('l\\udcc3\\udca4ufe \\u732b')"
    assert shown(code, "ascii").stdout == "läufe ".encode() + rb"\u732b"


@pytest.mark.parametrize("stream", ["None", "__import__('io').StringIO()"])
def test_a_stream_that_is_missing_or_replaced_stays_as_it_is(stream):
    code = f"import sys; sys.stdout = sys.stderr = {stream}; before = sys.stdout; {CALL}assert sys.stdout is before"
    assert shown(code, "ascii").returncode == 0


PROGRAM = "{python} train.py {words} {to}"


def ended(words, to, **environment):
    """Exit code and standard error of the program with its streams led elsewhere by the shell."""
    line = PROGRAM.format(python=shlex.quote(sys.executable), words=words, to=to)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(
    not Path("/dev/full").exists() or not shutil.which("bash"), reason="needs bash, and Linux's /dev/full"
)
@pytest.mark.parametrize(
    ("words", "to", "code"),
    [
        ("iterations=x", "2>&-", 2),
        ("iterations=x", "2>/dev/full", 2),
        ("iterations=x", ">&- 2>&-", 2),
        ("--print-config guidance=vdm", ">&-", 2),
        ("--print-config guidance=vdm", ">/dev/full", 2),
        ("--print-config guidance=vdm", ">/dev/full 2>/dev/full", 2),
        ("--print-config guidance=vdm", ">/dev/null 2>&-", 0),
        ("--help", ">/dev/full", 2),
        ("--help", "| head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", 0),
        ("--print-config guidance=vdm", "| true; exit ${PIPESTATUS[0]}", 0),
    ],
)
def test_streams_that_are_closed_or_full_change_no_exit_code_and_leave_no_traceback(words, to, code):
    returned, errors = ended(words, to)
    assert returned == code, errors
    assert "Traceback" not in errors and "Exception" not in errors and errors.count("\n") <= 1
    if code == 2 and "2>" not in to:
        assert errors.startswith("error: standard output: ")


def test_a_console_of_few_letters_gets_the_settings_all_the_same():
    returned, errors = ended(
        "--print-config guidance=vdm text=caf\u00e9", "", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert (returned, errors) == (0, "")


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        self.write("")


@pytest.mark.parametrize("stream", [Gone(), None])
def test_progress_and_logs_on_a_broken_stream_stop_nothing(stream, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "raiseExceptions", True)
    with forgiving_errors():
        handler = logging.StreamHandler()
        handler.emit(logging.makeLogRecord({"msg": "lost"}))
        assert list(tqdm(range(3), file=Forgiving(sys.stderr), mininterval=0)) == [0, 1, 2]
        complain("lost")
    assert sys.stderr is stream


@pytest.mark.parametrize(("left", "said"), [(Gone(), None), (None, "it is closed")])
def test_what_a_command_is_asked_for_is_written_or_its_loss_is_an_error(left, said, monkeypatch):
    monkeypatch.setattr(sys, "stdout", left)
    if said is None:
        write_out("all of it")
    else:
        with pytest.raises(UserError, match=said):
            write_out("all of it")


def test_a_complaint_is_one_line(capsys):
    complain("error: a\nb: expected c\r\n")
    assert capsys.readouterr().err == "error: a b: expected c\n"


def without_encoding(tree):
    """Lines of a program that read or write text in whatever encoding the machine prefers."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        whole = isinstance(node.func, ast.Attribute) and not _is_run(node.func.value)
        if name in ("read_text", "write_text") and whole and "encoding" not in named:
            found.append(node.lineno)
        if name == "open" and not named & {"encoding"}:
            modes = [
                arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
            modes += [
                k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)
            ]
            if any(mode in ("r", "w", "a", "x", "r+", "rt", "wt", "at") for mode in modes):
                found.append(node.lineno)
    return found


def _is_run(node):
    """Whether a method is that of a run, which is in UTF-8 itself."""
    return getattr(node, "attr", "") == "run" or getattr(node, "id", "") == "self"


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("path.open('a')", True),
        ("open(path, mode='w')", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.open('rb')", False),
        ("Image.open(path)", False),
    ],
)
def test_the_search_for_text_in_the_machines_encoding_finds_it(code, found):
    assert bool(without_encoding(ast.parse(code))) == found


def test_text_files_are_utf_8_whatever_the_machine_prefers():
    sources = [*ROOT.glob("*.py"), *(file for folder in (
        "arguments", "benchmarks", "dreammapping", "field_renderer", "gaussian_renderer", "guidance", "scene", "toybox",
        "utils",
    ) for file in (ROOT / folder).rglob("*.py"))]  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix(): without_encoding(ast.parse(path.read_text(encoding="utf-8")))
        for path in sources
    }
    assert {path: lines for path, lines in found.items() if lines} == {}
