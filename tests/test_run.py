"""A run folder has one owner, loses nothing that somebody else put there, and survives a restart."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import aside, checkpoint
from utils.errors import UserError
from utils.own_files import RECORD, making, note
from utils.run import MARKER, Run

ROOT = Path(__file__).parents[1]


def make(folder: Path, settings: str = "seed: 0\n", *, step: int = 5, **how: bool) -> Run:
    """A run with a checkpoint and an asset, as a process leaves it that has ended."""
    with Run(folder, **how) as run:
        run.claim(settings)
        checkpoint.save(run.path("checkpoints"), step, {"step": step})
        run.stands()
        (folder / "point_cloud" / f"iteration_{step}").mkdir(parents=True)
        (folder / "point_cloud" / f"iteration_{step}" / "point_cloud.ply").write_text(settings)
        run.write_manifest(iterations=step, finished=True)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_with_another_run_is_refused(tmp_path):
    make(tmp_path / "a")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"holds another run; --resume .* --force .* workspace=NAME"):
        Run(tmp_path / "a")
    assert contents(tmp_path) == before


def test_force_replaces_what_the_run_wrote_and_nothing_else(tmp_path):
    make(tmp_path / "a", "seed: 0\n").log({"step": 1})
    (tmp_path / "a" / "judge.json").write_text("of the old run")
    for name in (
        "thesis.txt",
        "checkpoints/iteration_good/tensors.safetensors",
        "point_cloud/notes.txt",
        "b/config.yaml",
        "picture.png",
        "mesh.ply",
        "index.html",
        "process_videos/frames/1.jpg",
        "export/a.glb",
    ):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text("precious")
    make(tmp_path / "a", "seed: 1\n", step=3, force=True)
    kept = contents(tmp_path / "a")
    assert kept["config.yaml"] == b"seed: 1\n" and "metrics.jsonl" not in kept
    assert sum(content == b"precious" for content in kept.values()) == 9
    assert not [name for name in kept if "judge" in name or "iteration_5" in name or "replaced" in name]


def test_force_keeps_scores_that_a_user_changed_or_made(tmp_path):
    run = tmp_path / "a"
    make(run)
    names = ("judge.json", "judge_views.png")
    with making(run, names):
        for name in names:
            (run / name).write_text("ours")
    (run / names[0]).write_text("edited")
    make(run, "seed: 1\n", force=True)
    assert (run / names[0]).read_text() == "edited" and not (run / names[1]).exists()
    (run / names[1]).write_text("mine")
    make(run, "seed: 2\n", force=True)
    assert [(run / name).read_text() for name in names] == ["edited", "mine"]


@pytest.mark.parametrize(("kind", "asset"), [("image", "picture.png"), ("grid", "mesh.ply")])
def test_force_replaces_the_asset_of_the_runs_own_kind(tmp_path, kind, asset):
    settings = f"ModelParams: {{representation: {kind}, workspace: a}}\n"
    make(tmp_path / "a", settings)
    (tmp_path / "a" / asset).write_text("old")
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "a", force=True) as run:
        run.claim("seed: 1\n")
        assert not (tmp_path / "a" / asset).exists()
        raise ZeroDivisionError
    assert (tmp_path / "a" / asset).read_text() == "old"
    make(tmp_path / "a", force=True)
    assert not (tmp_path / "a" / asset).exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("GuidanceParams: {text: 'a mushroom, representation: grid'}\n", {}),
        ("ModelParams: {workspace: 'representation: image'} # representation: hash\n", {}),
        ("ModelParams: {representation: grid}\n", {"representation": "gaussians"}),
        *(
            (settings, {})
            for settings in (
                "ModelParams: [representation: grid",
                "ModelParams: [a]",
                "- grid",
                "",
                "[" * 9999,
                "\0",
            )
        ),
    ],
)
def test_only_the_representation_of_a_run_says_what_its_asset_is_called(tmp_path, settings, told):
    """Not a prompt or a name with that word in it, nor settings that were changed after the run, or damaged."""
    make(tmp_path / "a", settings).write_manifest(**told)
    for name in ("picture.png", "field.safetensors", "mesh.ply"):
        (tmp_path / "a" / name).write_text("precious")
    make(tmp_path / "a", force=True)
    kept = contents(tmp_path / "a")
    assert all(kept.get(name) == b"precious" for name in ("picture.png", "field.safetensors", "mesh.ply"))


@pytest.mark.parametrize("before", ["finished", "never stood"])
@pytest.mark.parametrize(
    ("kind", "asset"),
    [("image", "picture.png"), ("grid", "field.safetensors"), ("grid", "mesh.ply"), ("hash", "mesh.ply")],
)
def test_a_users_file_with_the_name_of_the_new_runs_asset_is_refused(tmp_path, kind, asset, before):
    folder = tmp_path / "a"
    if before == "finished":
        make(folder)
    else:
        folder.mkdir()
        (folder / MARKER).touch()
    (folder / asset).write_text("precious")
    found = contents(folder)
    with (
        pytest.raises(UserError, match=rf"{asset}: expected no file.* move it, or choose another workspace"),
        Run(folder, force=True) as run,
    ):
        run.claim(f"ModelParams: {{representation: {kind}}}\n")
    assert not run.claimed and contents(folder) | {MARKER: b""} == found | {MARKER: b""}
    (folder / asset).rename(tmp_path / asset)  # as the message advises
    make(folder, f"ModelParams: {{representation: {kind}}}\n", force=True)


def test_an_asset_of_the_replaced_run_is_no_users_file(tmp_path):
    for kind in ("grid", "hash"):
        make(tmp_path / "a", f"ModelParams: {{representation: {kind}}}\n", force=True)
        (tmp_path / "a" / "mesh.ply").write_text(kind)
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "a", force=True) as run:
        run.claim("ModelParams: {representation: grid}\n")
        (tmp_path / "a" / "mesh.ply").write_text("grid")
        raise ZeroDivisionError
    assert (tmp_path / "a" / "mesh.ply").read_text() == "hash"


EXPORTED = (
    "export/a.spz",
    "export/a.compressed.ply",
    "export/cameras.json",
    "mesh/mesh.glb",
    "mesh/mesh.json",
)
RECORDS = tuple(f"{name}/{RECORD}" for name in ("export", "mesh"))


def exported(folder: Path, text: str = "made") -> None:
    for name in EXPORTED:
        note((folder / name).parent, [Path(name).name])
    for name in (*EXPORTED, "mesh/notes.txt", "export/archive/a.spz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_what_was_exported_of_a_replaced_run_is_kept_and_not_beside_the_new_one(tmp_path, caplog):
    folder = tmp_path / "a"
    for settings, step in (("seed: 0\n", 5), ("seed: 1\n", 3), ("seed: 2\n", 2)):
        make(folder, settings, step=step, force=True)
        assert not any((folder / name).exists() for name in EXPORTED)
        exported(folder, settings)
    make(folder, "seed: 3\n", step=1, force=True)
    for number, settings in (("1", "seed: 0\n"), ("2", "seed: 1\n"), ("3", "seed: 2\n")):
        kept = contents(folder / "replaced" / number)
        assert set(kept) == {*EXPORTED, *RECORDS}
        assert all(kept[name] == settings.encode() for name in EXPORTED)
        assert f"{folder / 'replaced' / number}: keeps what was exported" in caplog.text
    assert {"mesh/notes.txt", "export/archive/a.spz"} <= set(contents(folder)), (
        "a user's own stay where they are"
    )
    assert not list(folder.glob(".replaced-*"))


@pytest.mark.parametrize("again", ["a second replacement that fails", "checkpoints deleted to save room"])
def test_exports_that_cannot_be_kept_cost_no_run(tmp_path, caplog, again):
    """A user's file has the name of the folder where they would go."""
    folder = tmp_path / "a"
    make(folder)
    exported(folder)
    (folder / "replaced").write_text("precious")
    make(folder, "seed: 1\n", force=True)
    assert "what was exported of the run that was replaced stays there" in caplog.text
    if again.startswith("checkpoints"):
        shutil.rmtree(folder / "checkpoints")
    before = contents(folder)
    with pytest.raises(UserError if again.startswith("checkpoints") else ZeroDivisionError):  # noqa: SIM117
        with Run(folder, force=not again.startswith("checkpoints")) as run:
            run.claim("seed: 2\n")
            raise ZeroDivisionError
    del before[".dreammapping"]
    assert {name: content for name, content in contents(folder).items() if name in before} == before
    (folder / "replaced").unlink()
    make(folder, "seed: 3\n", force=True)
    assert set(contents(folder / "replaced" / "1")) == {*EXPORTED, *RECORDS} and not list(
        folder.glob(".replaced-*")
    )


@pytest.mark.parametrize("parts", range(0, 9, 2))
def test_a_move_or_a_return_that_is_killed_loses_no_export(tmp_path, monkeypatch, parts):
    make(tmp_path / "a")
    exported(tmp_path / "a")
    before, replace = contents(tmp_path / "a"), os.replace

    def until(count: int):
        done = []

        def some(source, target):
            if len(done) == count:
                raise SystemExit("killed")
            done.append(source)
            replace(source, target)

        return some

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", until(parts))
        with pytest.raises(SystemExit):
            aside.move_aside(tmp_path / "a")
        patch.setattr(os, "replace", until(parts // 2))
        with contextlib.suppress(SystemExit):
            aside.settle(tmp_path / "a", stands=False)
    aside.settle(tmp_path / "a", stands=False)
    assert contents(tmp_path / "a") == before


def test_what_was_exported_comes_back_with_a_run_whose_replacement_never_stands(tmp_path):
    make(tmp_path / "a")
    exported(tmp_path / "a")
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "a", force=True) as run:
        run.claim("seed: 1\n")
        assert not any((tmp_path / "a" / name).exists() for name in EXPORTED)
        raise ZeroDivisionError
    del before["a/.dreammapping"]  # who was at work there last, and when
    assert contents(tmp_path) | before == contents(tmp_path) and len(contents(tmp_path)) == len(before) + 1


def test_a_new_run_that_fails_before_it_stands_gives_the_old_one_back(tmp_path):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "a", force=True) as run:
        run.claim("seed: 1\n")
        run.log({"step": 1})
        raise ZeroDivisionError
    del before[MARKER]
    after = contents(tmp_path / "a")
    del after[MARKER]
    assert after == before


def test_a_new_run_that_is_killed_before_it_stands_gives_the_old_one_back_at_the_next_start(tmp_path):
    make(tmp_path / "a")
    aside.move_aside(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="holds another run"), Run(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "config.yaml").read_text() == "seed: 0\n"
    assert not list((tmp_path / "a").glob(".replaced-*"))


def test_a_folder_of_somebody_else_is_refused_even_by_force(tmp_path):
    for name in ("config.yaml", "src/main.py", "run.json", "checkpoints/iteration_000005/state.json"):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / name).write_text("[1]")
    before = contents(tmp_path)
    for how in ({"force": True}, {}):
        with pytest.raises(UserError, match="not empty and holds no run of ours"):
            Run(tmp_path / "a", **how)
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Run(tmp_path / "a", resume=True)
    assert contents(tmp_path) == before


def test_a_run_of_before_there_were_markers_is_known_by_its_manifest(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / MARKER).unlink()
    with Run(tmp_path / "a", resume=True):
        pass
    make(tmp_path / "a", "seed: 1\n", force=True)


@pytest.mark.parametrize("parts", range(1, 5))
@pytest.mark.parametrize("how", ["refused", "killed"])
def test_a_move_that_ends_in_the_middle_loses_no_file_of_the_old_run(tmp_path, monkeypatch, parts, how):
    """As where `checkpoints` is a volume of its own, from which nothing can be renamed, or with a second Ctrl-C."""
    make(tmp_path / "a").log({"step": 5})
    before = contents(tmp_path / "a")
    moved, replace = [], os.replace

    def some(source, target):
        if len(moved) == parts and how == "refused":
            moved.append(None)
            raise OSError(18, "Invalid cross-device link")
        if len(moved) == parts:
            raise SystemExit("killed")
        moved.append(source)
        replace(source, target)

    if how == "refused":
        with pytest.raises(UserError, match="cross-device"), Run(tmp_path / "a", force=True) as run:
            monkeypatch.setattr(os, "replace", some)
            run.claim("seed: 1\n")
    else:
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os, "replace", some)
            aside.move_aside(tmp_path / "a")
        with Run(tmp_path / "a", resume=True):
            pass
    after = contents(tmp_path / "a")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != MARKER)


@pytest.mark.parametrize("parts", range(5))
def test_a_return_that_ends_in_the_middle_is_ended_by_the_next_start(tmp_path, monkeypatch, parts):
    make(tmp_path / "a").log({"step": 5})
    before = contents(tmp_path / "a")
    aside.move_aside(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("seed: 1\n")
    moved, replace = [], os.replace

    def some(source, target):
        if len(moved) == parts:
            raise SystemExit("killed")
        moved.append(source)
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(os, "replace", some)
        aside.settle(tmp_path / "a", stands=False)
    with Run(tmp_path / "a", resume=True):
        pass
    after = contents(tmp_path / "a")
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != MARKER)


def test_a_checkpoint_that_the_user_wrote_beside_is_no_checkpoint_once_the_run_is_replaced(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / "checkpoints" / "iteration_000005" / "notes.txt").write_text("precious")
    with Run(tmp_path / "a", force=True) as run:
        run.claim("seed: 1\n")
        assert checkpoint.checkpoints(run.path("checkpoints")) == []
    assert checkpoint.checkpoints(tmp_path / "a" / "checkpoints")
    assert (tmp_path / "a" / "checkpoints" / "iteration_000005" / "notes.txt").read_text() == "precious"


def test_a_start_that_is_given_up_leaves_nothing_but_what_a_user_put_there(tmp_path):
    for keeps in (False, True):
        with pytest.raises(ZeroDivisionError), Run(tmp_path / "a") as run:
            run.claim("seed: 0\n")
            run.log({"step": 1})
            if keeps:
                (tmp_path / "a" / "mine.txt").write_text("precious")
            raise ZeroDivisionError
        assert set(contents(tmp_path)) == ({"a/mine.txt", f"a/{MARKER}"} if keeps else set())
    make(tmp_path / "a")  # the mended command


def test_an_asset_without_a_checkpoint_is_told_from_a_run_that_goes_on(tmp_path):
    """As after a kill between the first asset and the first checkpoint: what the messages advise works."""
    with Run(tmp_path / "a") as run:
        run.claim("seed: 0\n")
        run.path("point_cloud", "iteration_1").mkdir(parents=True)
        run.path("point_cloud", "iteration_1", "point_cloud.ply").touch()
        run.standing = True  # as after a kill
    with pytest.raises(UserError, match="holds another run; --force replaces it"):
        Run(tmp_path / "a")
    with pytest.raises(UserError, match="no checkpoint to resume from; start with --force"):
        Run(tmp_path / "a", resume=True)
    make(tmp_path / "a", force=True)


@pytest.mark.parametrize(
    "left", ["run.json", "videos/9_iteration/video_rgb_9.mp4", "test_six_views/9_iteration/all_views.png"]
)
def test_what_is_left_of_a_run_that_was_thinned_out_is_no_failed_start(tmp_path, left):
    """As where its checkpoints and Gaussians were deleted to save room."""
    folder = tmp_path / "a"
    make(folder)
    for name in ("checkpoints", "point_cloud"):
        shutil.rmtree(folder / name)
    if left != "run.json":
        (folder / "run.json").unlink()
        (folder / left).parent.mkdir(parents=True)
        (folder / left).write_text("precious")
    before = contents(folder)
    with pytest.raises(UserError, match="holds another run; --force replaces it"):
        Run(folder)
    assert contents(folder) == before
    make(folder, force=True)


def test_what_a_link_within_a_folder_of_the_run_leads_to_is_left_alone(tmp_path):
    make(tmp_path / "a")
    disk = tmp_path / "disk"
    (tmp_path / "a" / "point_cloud" / "iteration_5").rename(disk)
    (tmp_path / "a" / "point_cloud" / "iteration_5").symlink_to(disk)
    before = contents(disk)
    with pytest.raises(UserError, match="found a link"), Run(tmp_path / "a", force=True) as run:
        run.claim("seed: 1\n")
    assert contents(disk) == before


def test_a_run_whose_replacement_was_killed_can_be_resumed_at_once(tmp_path):
    make(tmp_path / "a")
    aside.move_aside(tmp_path / "a")
    with Run(tmp_path / "a", resume=True) as run:
        assert (tmp_path / "a" / "run.json").exists() and len(
            checkpoint.checkpoints(run.path("checkpoints"))
        ) == 1


def test_what_a_link_leads_to_is_left_alone(tmp_path):
    make(tmp_path / "a")
    disk = tmp_path / "disk"
    (tmp_path / "a" / "checkpoints").rename(disk)
    (tmp_path / "a" / "checkpoints").symlink_to(disk)
    (tmp_path / "a" / "config.yaml").rename(tmp_path / "mine.yaml")
    (tmp_path / "a" / "config.yaml").symlink_to(tmp_path / "mine.yaml")
    before = contents(disk)
    with (
        pytest.raises(UserError, match=r"checkpoints: .* found a link.*remove the link"),
        Run(tmp_path / "a", force=True) as run,
    ):
        run.claim("seed: 1\n")
    assert contents(disk) == before and (tmp_path / "mine.yaml").read_text() == "seed: 0\n"


def test_a_run_folder_that_is_itself_a_link_is_emptied_of_the_run_alone(tmp_path):
    make(tmp_path / "big")
    (tmp_path / "big" / "thesis.txt").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "big")
    make(tmp_path / "a", "seed: 1\n", force=True)
    assert (tmp_path / "a").is_symlink() and (tmp_path / "big" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "big" / "config.yaml").read_text() == "seed: 1\n"


@pytest.fixture
def mounted():
    """Mounts an empty volume; only an administrator of a machine that allows it can."""
    places = []

    def mount(place: Path) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", "none", str(place)]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no volume can be mounted here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("place", ["volume", "point_cloud/volume", "checkpoints/iteration_5/volume"])
def test_a_volume_that_a_user_mounted_within_a_run_keeps_its_files(tmp_path, mounted, place):
    make(tmp_path / "a")
    volume = mounted(tmp_path / "a" / place)
    (volume / "thesis.txt").write_text("precious")
    make(tmp_path / "a", "seed: 1\n", force=True)
    assert volume.is_mount() and (volume / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "a" / "config.yaml").read_text() == "seed: 1\n"


def test_a_run_with_a_part_on_a_mounted_volume_is_replaced_or_stays_whole(tmp_path, mounted):
    make(tmp_path / "a")
    (tmp_path / "a" / "checkpoints").rename(tmp_path / "kept")
    volume = mounted(tmp_path / "a" / "checkpoints")
    shutil.copytree(tmp_path / "kept", volume, dirs_exist_ok=True)
    before = contents(tmp_path / "a")
    with (
        pytest.raises(
            UserError, match=r"expected a file that can be moved, got: .*; choose another workspace"
        ),
        Run(tmp_path / "a", force=True) as run,
    ):
        run.claim("seed: 1\n")
    assert volume.is_mount() and contents(tmp_path / "a") == before
    with Run(tmp_path / "a", resume=True):  # and so it can go on
        assert checkpoint.checkpoints(volume)


def test_messages_name_the_folder_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("output", "a")
    make(folder)
    (folder / "mesh.ply").write_text("precious")
    with pytest.raises(UserError, match=r"^output/a: holds another run"):
        Run(folder)
    with pytest.raises(UserError, match=r"^output/a/mesh\.ply: "), Run(folder, force=True) as run:
        run.claim("ModelParams: {representation: grid}\n")
    with Run(folder, resume=True), pytest.raises(UserError, match=r"^output/a: is in use"):
        Run(folder, resume=True).__enter__()
    os.chdir("/")  # what becomes of the working directory later is no matter
    assert run.path("config.yaml").read_text() == "seed: 0\n"


def test_a_start_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "deep" / "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_is_started_again_without_force(tmp_path):
    with Run(tmp_path / "a") as run:
        run.claim("seed: 0\n")
        run.log({"step": 1})
        run.standing = True  # as after a kill: nothing is put back
    with pytest.raises(UserError, match="no checkpoint to resume from; start without --resume"):
        Run(tmp_path / "a", resume=True)
    make(tmp_path / "a", "seed: 1\n")
    assert "metrics.jsonl" not in contents(tmp_path / "a")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="expected a folder for the run, found a file"):
        Run(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected a folder for the run, found a link to nothing"):
        Run(tmp_path / "b")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_one_line(tmp_path, name):
    with pytest.raises(UserError, match="choose another folder") as error, Run(tmp_path / name):
        pass
    assert "\n" not in str(error.value)


def test_resuming_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        Run(tmp_path / "a", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_resume_that_fails_has_changed_nothing(tmp_path):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "a", resume=True):
        raise ZeroDivisionError
    assert contents(tmp_path / "a").keys() == before.keys()
    assert contents(tmp_path / "a")["config.yaml"] == before["config.yaml"]


@pytest.mark.parametrize("broken", ["", "{", "[1]", "1", "[" * 100_000, "\udcff"])
def test_a_damaged_manifest_does_not_keep_a_checkpoint_from_going_on(tmp_path, caplog, broken):
    make(tmp_path / "a")
    (tmp_path / "a" / "run.json").write_bytes(broken.encode(errors="surrogateescape"))
    with Run(tmp_path / "a", resume=True) as run:
        run.claim("seed: 0\n")
        run.write_manifest(finished=False)
    assert "cannot be read" in caplog.text
    assert json.loads((tmp_path / "a" / "run.json").read_text())["finished"] is False


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_manifest_that_is_a_pipe_is_neither_waited_for_nor_replaced(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / "run.json").unlink()
    os.mkfifo(tmp_path / "a" / "run.json")
    with (
        Run(tmp_path / "a", resume=True) as resumed,
        pytest.raises(UserError, match=r"run\.json: expected a file, got a pipe"),
    ):
        resumed.claim("seed: 0\n")
    assert (tmp_path / "a" / "run.json").is_fifo()


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_metrics_that_are_no_file_are_told_before_a_step(tmp_path, kind):
    make(tmp_path / "a")
    path = tmp_path / "a" / "metrics.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with Run(tmp_path / "a", resume=True) as run:
        run.claim("seed: 0\n")
        with pytest.raises(UserError, match=r"metrics\.jsonl: expected a file, got a"):
            run.rewind_metrics(5)


def test_a_second_process_is_told_who_works_in_the_folder(tmp_path):
    with Run(tmp_path / "a") as run:
        run.claim("seed: 0\n")
        checkpoint.save(run.path("checkpoints"), 5, {"step": 5})
        before = contents(tmp_path / "a")
        code = (
            "from pathlib import Path; from utils.errors import UserError; from utils.run import Run\n"
            "for how in ('resume', 'force'):\n"
            f"    try: Run(Path({str(tmp_path / 'a')!r}), **{{how: True}}).__enter__()\n"
            "    except UserError as error: print(how, error)"
        )
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        said = second.stdout.splitlines()
        assert [line.split()[0] for line in said] == ["resume", "force"]
        assert all(f"is in use by process {os.getpid()} on " in line for line in said)
        assert contents(tmp_path / "a") == before


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import os; from pathlib import Path; from utils.run import Run; "
        f"Run(Path({str(tmp_path / 'a')!r})).__enter__(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert (tmp_path / "a" / MARKER).exists()
    make(tmp_path / "a")


def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(tmp_path):
    make(tmp_path / "a")
    junk = tmp_path / "a" / "checkpoints" / ".iteration_000009.0123abcd.partial"
    junk.mkdir()
    (junk / "tensors.safetensors").write_text("half")
    (tmp_path / "a" / ".run.0123abcd.partial.json").write_text("half")
    (tmp_path / "a" / "my.partial").write_text("precious")
    with Run(tmp_path / "a", resume=True):
        pass
    assert not [name for name in contents(tmp_path / "a") if "0123abcd" in name]
    assert (tmp_path / "a" / "my.partial").exists()


def test_what_another_run_is_writing_inside_the_folder_of_one_is_left_alone(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "a" / "b")
    writing = tmp_path / "a" / "b" / "checkpoints" / ".iteration_000009.0123abcd.partial" / "state.json"
    writing.parent.mkdir()
    writing.write_text("half")
    with Run(tmp_path / "a", resume=True):
        pass
    assert writing.exists()


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    run = make(tmp_path / "a")
    for step in (10, 20, 30):
        run.log({"step": step})
    with run.path("metrics.jsonl").open("a") as file:
        file.write(
            f'[1]\n1\n{{"step": 1{"0" * 400}}}\n{{"step": 4'
        )  # damaged lines, and one that a kill cut short
    run.rewind_metrics(20)
    lines = run.path("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_a_number_that_is_not_finite_is_null_in_the_metrics(tmp_path):
    run = make(tmp_path / "a")
    run.log({"step": 1, "loss": float("nan"), "other": float("-inf")})
    (line,) = run.path("metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=lambda word: pytest.fail(word)) == {
        "step": 1,
        "loss": None,
        "other": None,
    }


def test_the_manifest_adds_up_the_time_of_all_sessions_and_the_clock_never_goes_back(tmp_path, monkeypatch):
    run = make(tmp_path / "a")
    run.manifest["seconds"] = 100.0
    monkeypatch.setattr("time.time", lambda: 0.0)
    run.write_manifest(finished=True, peak_memory_bytes=7)
    manifest = json.loads(run.path("run.json").read_text())
    assert manifest["seconds"] >= 100.0 and manifest["finished"] and manifest["peak_memory_bytes"] == 7
