"""In a folder that anybody may use, a command replaces what it made there, and nothing else."""

import os

import pytest

from utils.errors import UserError
from utils.own_files import RECORD, note, refuse_others, seal


def test_what_somebody_else_made_is_refused_and_what_we_made_is_not(tmp_path):
    note(tmp_path / "new", ["a.ply", "b.json"])
    for name in ("a.ply", "b.json", "c.ply"):
        (tmp_path / "new" / name).touch()
    note(tmp_path / "new", ["a.ply"])
    with pytest.raises(UserError, match=r"c\.ply: expected no file, .* move it, or choose another --output"):
        note(tmp_path / "new", ["a.ply", "c.ply"])
    note(tmp_path / "new", ["d.ply"])
    refuse_others(tmp_path / "new", ["a.ply", "b.json", "d.ply"])


@pytest.mark.parametrize("broken", ["", "{", "1", "[1, null]", "\udcff"])
def test_without_a_record_that_can_be_read_nothing_is_ours(tmp_path, broken):
    (tmp_path / RECORD).write_bytes(broken.encode(errors="surrogateescape"))
    (tmp_path / "a.ply").symlink_to("nowhere")
    with pytest.raises(UserError, match="found another"):
        refuse_others(tmp_path, ["a.ply"])


def test_a_file_of_ours_that_somebody_changed_is_theirs(tmp_path):
    """As a mesh that was edited and saved under its name."""
    note(tmp_path, ["a.glb", "b.obj", "never.ply"])
    for name in ("a.glb", "b.obj"):
        (tmp_path / name).write_text("made")
    seal(tmp_path)
    note(tmp_path, ["a.glb", "b.obj"])  # made again
    (tmp_path / "a.glb").write_text("anew")
    seal(tmp_path)
    (tmp_path / "a.glb").write_text("edited")
    note(tmp_path, ["b.obj"])
    seal(tmp_path)
    with pytest.raises(
        UserError, match=r"a\.glb: expected .*, found one that was changed since; move it, or"
    ):
        note(tmp_path, ["a.glb"])
    (tmp_path / "never.ply").write_text("a user's")
    with pytest.raises(UserError, match=r"never\.ply: .* found another"):
        note(tmp_path, ["never.ply"])


def test_what_a_killed_process_was_making_is_made_again(tmp_path):
    note(tmp_path, ["a.ply"])
    (tmp_path / "a.ply").write_text("half of")  # and here it was killed
    note(tmp_path, ["a.ply"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    (tmp_path / "a.ply").write_text("made")
    (tmp_path / RECORD).write_text('{"a.ply": "0"}')
    (tmp_path / "a.ply").unlink()
    os.mkfifo(tmp_path / "a.ply")
    with pytest.raises(UserError, match="changed since"):
        refuse_others(tmp_path, ["a.ply"])


def test_the_record_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / RECORD).write_text('["a.ply"]')
    (tmp_path / "a.ply").touch()
    refuse_others(tmp_path, ["a.ply"])
