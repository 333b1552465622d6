"""Checkpoints come back as they went, and a broken one says so."""

import copy
import json

import pytest
import torch

from utils import checkpoint
from utils.errors import UserError
from utils.optimizers import load_moments

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


def test_from_a_million_on_the_newest_is_the_last(tmp_path):
    for step in (999_000, 999_500, 1_000_000):
        checkpoint.save(tmp_path, step, {"step": step})
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [999_500, 1_000_000]


def test_what_somebody_put_beside_a_checkpoint_stays_when_it_is_written_again(tmp_path, monkeypatch):
    path = checkpoint.save(tmp_path, 7, {"step": 1})
    (path / "notes" / "more").mkdir(parents=True)
    (path / "notes" / "more" / "state.json").write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(checkpoint.json, "dumps", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        checkpoint.save(tmp_path, 7, {"step": 2})
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save(tmp_path, 7, {"step": 3})
    assert checkpoint.load(path) == {"step": 3}
    assert (path / "notes" / "more" / "state.json").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "state",
    ['{"dict": []}', '{"tensor": []}', "[" * 100_000, "[]", "1", "{}", '{"dict": {"#x": 1}}', "\udcff"],
)
def test_a_state_of_another_structure_is_one_line(tmp_path, state):
    path = checkpoint.save(tmp_path, 7, TREE)
    (path / "state.json").write_bytes(state.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match="the checkpoint cannot be read") as error:
        checkpoint.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("state.json", b'"step": 7', b'"step": 8'),
        ("state.json", b"0.1", b"0.2"),
        ("tensors.safetensors", b"@", b"A"),
    ],
)
def test_a_checkpoint_that_a_disk_or_a_copy_has_changed_is_told_from_a_whole_one(tmp_path, name, old, new):
    path = checkpoint.save(tmp_path, 7, TREE)
    content = (path / name).read_bytes()
    place = content.rindex(old)
    (path / name).write_bytes(content[:place] + new + content[place + len(old) :])
    with pytest.raises(UserError, match=r"iteration_000007: .*its checksum differs\); delete that folder"):
        checkpoint.load(path)


def test_a_checkpoint_of_before_there_were_checksums_is_read(tmp_path):
    path = checkpoint.save(tmp_path, 7, TREE)
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    del state["sha256"]
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")
    assert_same(checkpoint.load(path), TREE)


FORM = {"a": {"points": torch.zeros(5, 3), "colors": torch.zeros(5, 3)}, "step": 1, "list": [1]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a": {"points": torch.zeros(5, 3)}}, "a: expected colors, found none"),
        (
            {"a": {"points": torch.zeros(5, 3), "colors": torch.zeros(4, 3)}},
            r"a\.colors: expected 5 rows, got 4",
        ),
        (
            {"a": {"points": torch.zeros(5, 2), "colors": torch.zeros(5, 3)}},
            r"a\.points: expected .*\[5, 3\], got",
        ),
        ({"a": {"points": torch.zeros(5, 3).half(), "colors": torch.zeros(5, 3)}}, "got torch.float16"),
        ({"a": {"points": [], "colors": torch.zeros(5, 3)}}, r"a\.points: expected Tensor, got list"),
        ({"step": True}, "step: expected int, got bool"),
        ({"step": 1.0}, "step: expected int, got float"),
    ],
)
def test_a_state_of_another_form_is_refused_where_it_differs(change, said):
    checkpoint.check_form(FORM | {"more": 1}, FORM)
    checkpoint.check_form(FORM | {"a": {"points": torch.ones(9, 3), "colors": torch.zeros(9, 3)}}, FORM)
    with pytest.raises(ValueError, match=said):
        checkpoint.check_form(FORM | change, FORM)


@pytest.mark.parametrize(
    "damage",
    [
        lambda moments: moments.pop("exp_avg"),
        lambda moments: moments.update(exp_avg=torch.zeros(4)),
        lambda moments: moments.update(exp_avg_sq=1.0),
        lambda moments: moments.update(step="7"),
        lambda moments: moments.clear(),
    ],
)
def test_moments_of_other_parameters_are_refused_when_they_are_loaded(damage):
    def adam(rate):
        parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3))]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        return torch.optim.Adam([{"params": [p], "name": str(i)} for i, p in enumerate(parameters)], lr=rate)

    first, second = adam(0.1), adam(0.2)
    first.step()
    state = first.state_dict()
    load_moments(second, copy.deepcopy(state))
    assert second.param_groups[0]["lr"] == 0.2  # the settings', not the file's
    assert_same(second.state_dict()["state"], state["state"])
    broken = copy.deepcopy(state)
    damage(broken["state"][0])
    with pytest.raises((ValueError, TypeError, AttributeError)):
        load_moments(adam(0.1), broken)
