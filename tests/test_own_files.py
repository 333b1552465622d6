"""In a folder that anybody may use, a command replaces what it made there, and nothing else."""

import pytest

from utils.errors import UserError
from utils.own_files import RECORD, note, refuse_others


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
