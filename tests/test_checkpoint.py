"""Checkpoints come back as they went, and a broken one says so."""

import pytest
import torch

from utils import checkpoint
from utils.errors import UserError

TREE = {
    "step": 7,
    "optimizer": {
        "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.arange(6.0).view(2, 3)}, 12: {}},
        "groups": [{"lr": 0.1}],
    },
    "rng": torch.Generator().manual_seed(3).get_state(),
    "nothing": None,
}


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right


def test_a_tree_comes_back_as_it_went(tmp_path):
    assert_same(checkpoint.load(checkpoint.save(tmp_path, 7, TREE)), TREE)


def test_shared_and_strided_tensors_are_saved_by_value(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    loaded = checkpoint.load(checkpoint.save(tmp_path, 1, {"a": base, "b": base.T}))
    assert torch.equal(loaded["a"], base) and torch.equal(loaded["b"], base.T)


def test_only_the_newest_are_kept(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {"step": step})
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "iteration_000020",
        "iteration_000030",
    ]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_named(tmp_path, name):
    path = checkpoint.save(tmp_path, 7, TREE)
    (path / name).write_bytes((path / name).read_bytes()[:40])
    with pytest.raises(
        UserError, match=r"iteration_000007: the checkpoint cannot be read .* delete that folder"
    ):
        checkpoint.load(path)


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {"step": 1})

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        checkpoint.save(tmp_path, 2, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["iteration_000001"]
