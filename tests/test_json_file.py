"""`--json FILE`: the numbers get there, and nothing of anybody's is lost for them."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dreammapping.__main__ import main
from dreammapping.json_file import JsonFile
from utils.errors import UserError
from utils.files import atomic, write_text

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = {"rows": [1.5], "protocol": {}}
pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")


def write(word, numbers=NUMBERS):
    JsonFile(str(word), "rows", "protocol").write(numbers, "a table")


def test_a_file_of_the_same_kind_is_written_anew_and_an_empty_one_is_filled(tmp_path, capsys):
    (tmp_path / "empty.json").touch()
    for path in (tmp_path / "deep" / "new.json", tmp_path / "empty.json"):
        for value in (1, 2):
            write(path, NUMBERS | {"rows": value})
            assert json.loads(path.read_text())["rows"] == value
    assert capsys.readouterr().out == 4 * "a table\n"
    write("-")
    assert json.loads(capsys.readouterr().out) == NUMBERS
    JsonFile(None).write(NUMBERS, "a table")
    assert capsys.readouterr().out == "a table\n"


@pytest.mark.parametrize(
    "text", ['{"participant": "a", "answers": []}', "[1]", "not JSON", "\udcff", "[" * 100_000]
)
def test_another_file_is_refused_before_any_work(tmp_path, text):
    path = tmp_path / "answers.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"--json: .*answers\.json: expected no file, or one with numbers"):
        JsonFile(str(path), "rows", "protocol")
    assert path.read_bytes() == text.encode(errors="surrogateescape")


@pytest.mark.parametrize("verb", [["judge"], ["evaluate"], ["study", "score"]], ids=" ".join)
def test_every_verb_refuses_what_comes_after_json_taken_for_a_switch(tmp_path, capsys, verb):
    """`study score --json answers/*.json` would cost the first participant's answers."""
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"answers": []}')
    assert main([*verb, "--json", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 2
    assert "expected no file, or one with numbers of this command" in capsys.readouterr().err
    assert (tmp_path / "a.json").read_text() == '{"answers": []}'


def test_where_nothing_can_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for word, message in (
        (tmp_path / "file" / "x.json", "no folder that can be"),
        (tmp_path, "found a folder; name a file in it"),
        (tmp_path / ("x" * 300), "cannot be used"),
    ):
        with pytest.raises(UserError, match=message):
            JsonFile(str(word), "rows")


def test_a_link_stays_and_leads_to_the_numbers(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "disk" / "numbers.json")
    write(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "disk" / "numbers.json").read_text()) == NUMBERS


def test_a_console_that_takes_nothing_costs_no_numbers(tmp_path, monkeypatch):
    """They may have taken hours."""
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it where it is closed
    with pytest.raises(UserError, match=r"standard output: cannot be written \(it is closed\)"):
        write(tmp_path / "numbers.json")
    assert json.loads((tmp_path / "numbers.json").read_text()) == NUMBERS


@pipes
def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    """As of `--json >(jq .)`; a device, such as /dev/null, is as one."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(pipe)
    reader.join()
    assert json.loads(read[0]) == NUMBERS and pipe.is_fifo()
    for refused in (lambda: write_text(pipe, "x"), lambda: atomic(pipe).__enter__()):
        with pytest.raises(UserError, match="expected a file or nothing, found a pipe or device"):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="this system has no /dev/stdout")
def test_the_numbers_reach_standard_output_by_its_name_where_that_is_a_file(tmp_path):
    code = (
        "from dreammapping.json_file import JsonFile; JsonFile('/dev/stdout', 'a').write({'a': 1}, 'a table')"
    )
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, check=True)
    table, _, numbers = (tmp_path / "out.txt").read_text().partition("\n")
    assert table == "a table" and json.loads(numbers) == {"a": 1}
    assert Path("/dev/stdout").is_symlink()
