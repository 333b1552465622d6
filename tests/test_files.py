"""A file is whole or absent, whatever happens while it is written."""

import os
import signal

import pytest

from utils.errors import UserError
from utils.files import all_or_none, atomic, write_text


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_text_is_utf8_whatever_the_locale_made_of_a_path(tmp_path):
    write_text(tmp_path / "a.txt", "l\udcc3\udca4ufe: 猫\n")
    assert (tmp_path / "a.txt").read_bytes() == "läufe: 猫\n".encode()


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("old", "new"):
        with atomic(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(UserError, match=r"a\.txt: cannot be written \(No space left on device\); free space"),
        atomic(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot be written"), atomic(tmp_path / "a" / "b.txt") as temporary:
        temporary.write_text("never")


def test_files_appear_together_and_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    flushed, rename = set(), os.replace

    def replace(source, target):
        assert source.stat().st_ino in flushed
        rename(source, target)

    monkeypatch.setattr("utils.files.os.fsync", lambda file: flushed.add(os.fstat(file).st_ino))
    monkeypatch.setattr("utils.files.os.replace", replace)
    with all_or_none(tmp_path / "mesh") as temporary:
        (temporary / "a.obj").write_text("a")
        (temporary / "a.mtl").write_text("b")
        assert [path.name for path in (tmp_path / "mesh").iterdir()] == [temporary.name]
    made = sorted((tmp_path / "mesh").iterdir())
    assert [path.name for path in made] == ["a.mtl", "a.obj"]
    assert (tmp_path / "mesh").stat().st_ino in flushed


def test_none_of_several_files_appears_when_one_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), all_or_none(tmp_path / "mesh") as temporary:
        (temporary / "a.obj").write_text("a")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_among_several_files_comes_after_the_last(tmp_path, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if target.name == "a.mtl":  # the first
            os.kill(os.getpid(), signal.SIGINT)
        rename(source, target)

    monkeypatch.setattr("utils.files.os.replace", replace)
    with pytest.raises(KeyboardInterrupt), all_or_none(tmp_path / "mesh") as temporary:
        for name in ("a.obj", "a.mtl"):
            (temporary / name).write_text("a")
    assert sorted(path.name for path in (tmp_path / "mesh").iterdir()) == ["a.mtl", "a.obj"]


def test_nobody_can_tell_beforehand_what_a_file_is_called_while_it_is_written(tmp_path):
    """In a folder that others may write, they could put a link there."""
    names = set()
    for _ in range(64):
        with atomic(tmp_path / "a.ply") as temporary:
            names.add(temporary.name)
            temporary.touch()
    assert len(names) == 64
    words = "".join(name.removeprefix(".a.").removesuffix(".partial.ply") for name in names)
    assert len(words) == 64 * 8 and len(set(words)) == 16, "32 bits, each hexadecimal digit among them"
