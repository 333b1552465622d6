"""In a folder that anybody may use, a command replaces what it made there, and nothing else."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from utils import own_files
from utils.errors import InUse, UserError
from utils.own_files import LOCK, RECORD, making, making_all, note, recorded, refuse_others, seal


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_the_record_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / RECORD)
    with pytest.raises(UserError, match=r"expected a file, got a pipe or device; move it, or"):
        note(tmp_path, ["a.ply"])
    assert recorded(tmp_path) == {}


def test_the_record_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / RECORD).write_text('["a.ply"]')
    (tmp_path / "a.ply").touch()
    refuse_others(tmp_path, ["a.ply"])


def make(folder, name, run, text="made"):
    with making(folder, [name], source=run):
        (folder / name).write_text(text)


def test_what_was_made_of_one_run_is_not_replaced_by_what_is_made_of_another(tmp_path):
    """The only copy, in a folder for those of many runs."""
    (tmp_path / "link").symlink_to("x")
    first, second, link, shared = (tmp_path / name for name in ("x", "y", "link", "shared"))
    make(shared, "a.ply", first)
    make(shared, "b.ply", second)
    told = rf"a\.ply: expected .* made of {second}, found one that was made of {first}; move it, or choose"
    with pytest.raises(UserError, match=told):
        make(shared, "a.ply", second, "lost")
    note(shared, ["a.ply"], source=first)  # and here it was killed
    with pytest.raises(UserError, match=told):
        make(shared, "a.ply", second, "lost")
    assert (shared / "a.ply").read_text() == "made"
    make(shared, "a.ply", link, "again")
    assert (shared / "a.ply").read_text() == "again"


def test_a_run_that_was_moved_goes_on_with_what_was_made_in_it(tmp_path):
    make(tmp_path / "x" / "export", "a.ply", tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "moved")
    make(tmp_path / "moved" / "export", "a.ply", tmp_path / "moved", "again")
    with pytest.raises(UserError, match=f"was made of {tmp_path / 'moved'}; move it"):
        make(tmp_path / "moved" / "export", "a.ply", tmp_path / "y")


@pytest.mark.parametrize("record", ['["a.ply"]', '{"a.ply": null}'])
def test_the_record_of_an_earlier_version_knows_of_no_run(tmp_path, record):
    (tmp_path / RECORD).write_text(record)
    (tmp_path / "a.ply").touch()
    make(tmp_path, "a.ply", tmp_path / "x")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_made_in_the_block_is_ours_and_no_lock_stays(tmp_path):
    folder = tmp_path / "new"
    with making(folder, ["a.ply", "never.ply"]):
        (folder / "a.ply").write_text("made")
        assert names_in(folder) == [RECORD, LOCK, "a.ply"]
    assert names_in(folder) == [RECORD, "a.ply"]
    (folder / "a.ply").write_text("edited")
    with pytest.raises(UserError, match="changed since"), making(folder, ["a.ply"]):
        pytest.fail("nothing is made over it")
    assert names_in(folder) == [RECORD, "a.ply"] and (folder / "a.ply").read_text() == "edited"


def test_what_killed_processes_left_half_written_is_removed_and_nobody_elses(tmp_path):
    """A run that goes on in the folder, say, is just writing its settings."""
    run, file = tmp_path / ".config.0123abcd.partial.yaml", tmp_path / ".a.0123abcd.partial.ply"
    record, together = (tmp_path / f".{stem}.0123abcd.partial" for stem in (RECORD, "all"))
    for make in (making, making_all):
        for path in (run, file, record):
            path.write_text("half")
        together.mkdir(exist_ok=True)
        (together / "a.ply").write_text("half")
        with make(tmp_path, ["a.ply"]) as new:
            ((new or tmp_path) / "a.ply").write_text("made")
    assert names_in(tmp_path) == [run.name, RECORD, "a.ply"]


@pytest.mark.parametrize("make", [making, making_all])
def test_a_folder_that_was_made_for_nothing_is_not_left(tmp_path, make):
    with pytest.raises(ZeroDivisionError), make(tmp_path / "new", ["a.ply"]):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_fails_in_the_block_leaves_what_was_made_until_then(tmp_path, monkeypatch):
    with pytest.raises(ZeroDivisionError), making(tmp_path / "a", ["a.ply", "b.ply"]):
        (tmp_path / "a" / "a.ply").write_text("made")
        raise ZeroDivisionError
    assert names_in(tmp_path / "a") == [RECORD, "a.ply"]
    with making(tmp_path / "a", ["a.ply", "b.ply"]):
        pass

    def full(*_):
        raise UserError("the record cannot be written")

    with pytest.raises(ZeroDivisionError), making(tmp_path / "b", ["a.ply"]):
        (tmp_path / "b" / "a.ply").write_text("made")
        monkeypatch.setattr(own_files, "write_text", full)
        raise ZeroDivisionError  # which is told, and not that the record is full, too


def test_of_two_commands_in_a_folder_the_second_waits_or_is_told_of_the_first(tmp_path, monkeypatch):
    """So files of two never mix, and none is known by the digest of another's."""
    entered, go_on = threading.Event(), threading.Event()

    def first():
        with making(tmp_path, ["a.obj", "a.png"]):
            (tmp_path / "a.obj").write_text("first")
            entered.set()
            assert go_on.wait(60)
            (tmp_path / "a.png").write_text("first")

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(first)
        assert entered.wait(60)
        with monkeypatch.context() as patch:
            patch.setattr(own_files, "WAIT", 0.05)
            told = (
                rf"is in use by process {os.getpid()} on .*; wait until that ends, or choose another --output"
            )
            with pytest.raises(InUse, match=told), making(tmp_path, ["a.obj", "a.png"]):
                pytest.fail("somebody else makes them")
        threading.Timer(0.2, go_on.set).start()
        with making(tmp_path, ["a.obj", "a.png"]):
            assert done.result(60) is None
            for name in ("a.obj", "a.png"):
                assert (tmp_path / name).read_text() == "first"
                (tmp_path / name).write_text("second")
    refuse_others(tmp_path, ["a.obj", "a.png"])
    assert names_in(tmp_path) == [RECORD, "a.obj", "a.png"]
