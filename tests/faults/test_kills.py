"""A run that is killed, signalled or replaced at any moment ends with the same bits, without --force and without junk.

The short form takes fixed moments; the long one (`make soak`) as many kills as SOAK_KILLS says, until SOAK_SECONDS are
over, of a seed that it prints.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults import programs
from tests.faults.programs import (
    STEPS,
    SUBJECTS,
    WORDS,
    Programs,
    at_change,
    count_changes,
    differences,
    empty,
    junk,
    left,
    size_and_seed,
    with_a_shells_signals,
)
from utils import checkpoint
from utils.errors import UserError
from utils.files import write_text
from utils.run import Run

if sys.platform != "linux":
    pytest.skip("needs Linux: fork, and processes that adopt", allow_module_level=True)

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MINE = {
    "thesis.txt", ".mine.partial", "checkpoints/iteration_good/tensors.safetensors", "point_cloud/notes.txt",
    "process_videos/frames/mine.jpg", "train_process/iter_good.jpg", "other/config.yaml",
}  # fmt: skip
"""Files of a user's, in the folders of a run and under names that are almost a run's."""


@dataclass
class Reference:
    """An undisturbed run: what it left, how many changes of the file system it made, and how long it took."""

    files: dict[str, bytes]
    changes: int
    seconds: float


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    found = {}

    def of(subject: str) -> Reference:
        if subject not in found:
            where = tmp_path_factory.mktemp(subject)
            count = where / "changes"
            began = time.monotonic()
            run = server.start(where, SUBJECTS[subject], (count_changes, [str(count)]))
            assert run.wait() == 0, run.said
            found[subject] = Reference(left(where / "run"), count.stat().st_size, time.monotonic() - began)
        return found[subject]

    return of


@dataclass
class Tally:
    """What became of the kills."""

    starts: int = 0
    kills: int = 0
    faults: list[str] = field(default_factory=list)


def plant(run: Path) -> None:
    """Put a user's files into a run's folder, once it is one."""
    if not (run / "config.yaml").exists() or (run / "thesis.txt").exists():
        return
    for name in MINE:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("precious")
    for old in checkpoint.checkpoints(run / "checkpoints")[:1]:
        (old / "note.txt").write_text("precious")


def theirs(run: Path) -> set[str]:
    notes = {str(path.relative_to(run)) for path in run.glob("checkpoints/iteration_*/note.txt")}
    return MINE | notes


def resume_or_start(run: Path) -> list[str]:
    return ["--resume"] if checkpoint.checkpoints(run / "checkpoints") else []


def done(run: Path) -> int:
    """The iteration of the newest checkpoint."""
    return max(map(checkpoint.step_of, checkpoint.checkpoints(run / "checkpoints")), default=0)


def finished(run: Path) -> bool:
    """Whether it says that it is; a run that is killed a moment later is, too."""
    return (run / "run.json").exists() and json.loads((run / "run.json").read_bytes())["finished"]


def trial(
    server: Programs, subject: str, expected: Reference, where: Path, rng: random.Random, kills: int
) -> Tally:
    """Kill a run and each of its restarts, `kills` in all, at random moments; then let it end, and compare."""
    tally, run, story = Tally(), where / "run", []
    while True:
        words = resume_or_start(run)
        before, after = (), None
        if tally.starts < kills and not finished(run):
            number = rng.choice(SIGNALS)
            rest = 1.0 - 0.9 * done(run) / STEPS
            if rng.random() < 0.6:
                index = rng.randint(1, max(int(rest * expected.changes), 12))
                before = ((at_change, [index, number]),)
                story.append(f"{words} signal {int(number)} at change {index}")
            else:
                after = rng.uniform(0, rest * expected.seconds)
                story.append(f"{words} signal {int(number)} after {after:.3f} s")
        started = server.start(where, [*SUBJECTS[subject], *words], *before)
        tally.starts += 1
        if after is not None:
            time.sleep(after)
            started.signal(number)
        code = started.wait()
        if before or after is not None:
            if code == 0 and "change" in story[-1]:
                story[-1] += " (never came)"
            elif code != 0:
                tally.kills += 1
                if code not in (-number, 128 + number) or "Traceback" in started.said.replace(
                    "KeyboardInterrupt", ""
                ):
                    tally.faults.append(f"{story}: exit {code}: {started.said[-600:]}")
            plant(run)
            continue
        if code != 0:
            tally.faults.append(f"{story} {words}: exit {code}: {started.said[-600:]}")
        break
    mine = theirs(run) if (run / "thesis.txt").exists() else set()
    differing = differences(left(run, mine), expected.files)
    lost = [name for name in mine if (run / name).read_text() != "precious"] if mine else []
    remains = junk(run, mine) + empty(run)
    if differing or lost or remains:
        tally.faults.append(f"{story}: differ {differing[:8]}, lost {lost}, junk {remains}")
    return tally


def run_trials(server, reference, where: Path, seed: int, most: int, seconds: float, chain: int) -> Tally:
    """Trials over all subjects until there were `most` kills, or the time is over."""
    tally, end = Tally(), time.monotonic() + seconds
    for index, subject in enumerate(itertools.cycle(SUBJECTS)):
        if tally.kills >= most or time.monotonic() > end:
            return tally
        rng = random.Random(f"{seed}:{index}")
        place = where / f"trial_{index}"
        one = trial(server, subject, reference(subject), place, rng, chain)
        tally.starts += one.starts
        tally.kills += one.kills
        tally.faults += [f"seed {seed}, trial {index}, {subject}: {fault}" for fault in one.faults]
        so_far = f"{tally.starts} starts, {tally.kills} kills, {len(tally.faults)} faults"
        print(f"trial {index}: {so_far}", flush=True)  # noqa: T201
        if not one.faults:
            shutil.rmtree(place)
    return tally


def test_killed_runs_end_with_the_same_bits(server, reference, tmp_path):
    tally = run_trials(server, reference, tmp_path, seed=1, most=4, seconds=60, chain=2)
    assert tally.kills >= 2 and tally.faults == [], "\n".join(tally.faults)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bits_at_length(server, reference, tmp_path):
    kills, seed = size_and_seed("SOAK_KILLS", 500)
    seconds = float(os.environ.get("SOAK_SECONDS", "inf"))
    tally = run_trials(server, reference, tmp_path, seed, kills, seconds, chain=6)
    assert tally.faults == [], "\n".join(tally.faults)


def replace(folder: Path, settings: str) -> None:
    """A run that replaces another one, as the program makes it, with no more than a few small files."""
    with Run(folder, force=True) as run:
        run.claim(settings)
        run.write_manifest(iterations=0, finished=False)
        for step in (2, 3, 4, 6, 9):
            run.log({"step": step})
            if step % 3:
                write_text(run.path("point_cloud", f"iteration_{step}", "point_cloud.ply"), settings)
            else:
                checkpoint.save(run.path("checkpoints"), step, {"settings": settings})
                run.stands()
                run.write_manifest(iterations=step, finished=step == 9)


def in_a_process(folder: Path, work: Callable[[], object], change: int) -> bool:
    """Do `work` in a fork of this process that is killed right before a change of the file system; was it?"""
    process = os.fork()
    if process == 0:
        try:
            os.chdir(folder.parent)
            at_change(change, signal.SIGKILL)
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0


def settle(folder: Path) -> None:
    """A start that is refused, once it has brought the folder in order."""
    with contextlib.suppress(UserError), Run(folder):
        pass


def is_one_run(folder: Path, old: dict[str, bytes]) -> bool:
    """Whether the folder holds the old run, file by file, or one of the new that stands, and none of the other."""
    found = {name: content for name, content in left(folder, theirs(folder)).items() if name != "run.json"}
    if found == {name: content for name, content in old.items() if name != "run.json"}:
        return True
    whole = b"".join(content for name, content in found.items())
    return (
        b"new" in found["config.yaml"]
        and b"old" not in whole
        and any("checkpoints" in name for name in found)
    )


def replaced_by_force(folder: Path) -> dict[str, bytes]:
    """An old run with a user's files; what it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    replace(folder, "name: old\n")
    plant(folder)
    return left(folder, theirs(folder))


def check_force(folder: Path, old: dict[str, bytes], story: str) -> None:
    mine = theirs(folder)
    settle(folder)
    assert is_one_run(folder, old), f"{story}: {sorted(left(folder, mine))}"
    assert junk(folder, mine) == [], story
    replace(folder, "name: newest\n")
    assert b"newest" in (folder / "config.yaml").read_bytes() and junk(folder, mine) + empty(folder) == [], (
        story
    )
    assert all((folder / name).read_text() == "precious" for name in mine), story


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_change_of_a_replacement_leaves_one_run(tmp_path, every):
    """The old run is back, or the new one stands; and a third start works."""
    folder = tmp_path / "run"
    for change in itertools.count(1, every):
        old = replaced_by_force(folder)
        killed = in_a_process(folder, lambda: replace(folder, "name: new\n"), change)
        check_force(folder, old, f"change {change}")
        if not killed:
            break
    assert change > 100


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("most", [6, pytest.param(0, marks=pytest.mark.slow)])
def test_a_kill_while_a_killed_replacement_is_brought_in_order_leaves_one_run(tmp_path, most):
    folder = tmp_path / "run"
    pairs, seed = (most, 0) if most else size_and_seed("SOAK_PAIRS", 2000)
    rng = random.Random(seed)
    for _ in range(pairs):
        old = replaced_by_force(folder)
        first, second = rng.randint(1, 110), rng.randint(1, 30)
        in_a_process(folder, lambda: replace(folder, "name: new\n"), first)
        in_a_process(folder, lambda: settle(folder), second)
        check_force(folder, old, f"seed {seed}: changes {first}, then {second}")


def force_trials(server, reference, where: Path, seed: int, kills: int) -> list[str]:
    """Kill the program while it replaces a run of another kind; what stands then, and what a third start makes."""
    faults = []
    old, new = reference("picture"), reference("vdm")
    for index in range(kills):
        rng = random.Random(f"force {seed}:{index}")
        place = where / f"force_{index}"
        run = place / "run"
        first = server.start(place, SUBJECTS["picture"])
        assert first.wait() == 0, first.said
        plant(run)
        mine = theirs(run)
        change = rng.randint(1, 150)
        killed = server.start(place, [*SUBJECTS["vdm"], "--force"], (at_change, [change, signal.SIGKILL]))
        story = f"seed {seed}, replacement {index}, killed at change {change}: exit {killed.wait()}"
        refused = server.start(place, SUBJECTS["vdm"])
        if refused.wait() != 2 or "holds another run" not in refused.said:
            faults.append(f"{story}: {refused.said[-300:]}")
        stands = (run / "cameras.json").exists()
        if stands:
            again = server.start(place, [*SUBJECTS["vdm"], "--resume"])
        elif differences(left(run, mine), old.files):
            faults.append(f"{story}: mixed {differences(left(run, mine), old.files)}")
            continue
        else:
            again = server.start(place, [*SUBJECTS["vdm"], "--force"])
        code = again.wait()
        differing = differences(left(run, mine), new.files)
        lost = [name for name in mine if (run / name).read_text() != "precious"]
        remains = junk(run, mine) + empty(run)
        if code or differing or lost or remains:
            faults.append(f"{story}: exit {code}, {differing[:8]}, lost {lost}, junk {remains}")
        shutil.rmtree(place)
    return faults


def test_a_killed_replacement_leaves_one_run(server, reference, tmp_path):
    assert force_trials(server, reference, tmp_path, 0, 1) == []


@pytest.mark.slow
def test_a_killed_replacement_leaves_one_run_at_length(server, reference, tmp_path):
    kills, seed = size_and_seed("SOAK_REPLACEMENTS", 50)
    assert force_trials(server, reference, tmp_path, seed, kills) == []


def race(server, reference, where: Path, seed: int, index: int) -> str:
    """Two processes on one folder, the second begun at a random moment of the first; what went wrong, or nothing."""
    rng = random.Random(f"race {seed}:{index}")
    subject, run = "picture", where / "run"
    expected = reference(subject)
    how = rng.choice(([], ["--force"], ["--resume"]))
    if how == ["--resume"]:
        begun = server.start(where, SUBJECTS[subject], (at_change, [expected.changes // 2, signal.SIGTERM]))
        begun.wait()
        if not checkpoint.checkpoints(run / "checkpoints"):
            how = []
    first = server.start(where, [*SUBJECTS[subject], *how])
    after = rng.uniform(0, 0.7 * expected.seconds)
    time.sleep(after)
    second = server.start(where, [*SUBJECTS[subject], *how])
    codes = sorted((first.wait(), second.wait()))
    said = first.said + second.said
    story = f"seed {seed}, race {index}, {how}, {after:.3f} s apart"
    if codes == [0, 0] and how:  # the first had ended
        return f"{story}: differ" if differences(left(run), expected.files) else ""
    if codes != [0, 2]:
        return f"{story}: exits {codes}: {said[-500:]}"
    told = [f"is in use by process {one.process} on" for one in (first, second)] + ["holds another run"]
    if not any(words in said for words in told):  # the last where the first had ended
        return f"{story}: {said[-500:]}"
    differing = differences(left(run), expected.files)
    return f"{story}: differ {differing}" if differing or junk(run) else ""


def test_of_two_processes_on_one_folder_one_works_and_the_other_says_who(server, reference, tmp_path):
    assert [
        fault for index in range(2) if (fault := race(server, reference, tmp_path / str(index), 0, index))
    ] == []


@pytest.mark.slow
def test_of_two_processes_on_one_folder_one_works_and_the_other_says_who_at_length(
    server, reference, tmp_path
):
    races, seed = size_and_seed("SOAK_RACES", 60)
    found = (race(server, reference, tmp_path / str(index), seed, index) for index in range(races))
    assert [fault for fault in found if fault] == []


@pytest.mark.slow
def test_the_real_command_line_killed_from_its_first_import_on_ends_with_the_same_bits(
    server, reference, tmp_path
):
    """As the trials, each start a Python of its own, so that imports are hit as well."""
    kills, seed = size_and_seed("SOAK_COMMANDS", 20)
    rng = random.Random(seed)
    expected, done, faults, index = reference("picture"), 0, [], 0
    words = [*WORDS, f"model_key={server.prior}", *SUBJECTS["picture"]]
    seconds = None
    while done < kills:
        index += 1
        run = tmp_path / f"command_{index}" / "run"
        run.parent.mkdir()
        for chance in (1.0, 1.0, 0.0):
            began = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, str(programs.ROOT / "train.py"), *words, *resume_or_start(run)],
                cwd=run.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                preexec_fn=with_a_shells_signals,
            )  # fmt: skip
            if seconds is not None and chance:
                number = rng.choice(SIGNALS)
                time.sleep(rng.uniform(0, seconds))
                process.send_signal(number)
            _, said = process.communicate()
            if seconds is None:
                seconds = time.monotonic() - began
                break
            if chance and process.returncode in (-number, 128 + number):
                done += 1
            elif process.returncode != 0:
                faults.append(f"seed {seed}, {index}: exit {process.returncode}: {said[-500:]}")
        if differences(left(run), expected.files) or junk(run):
            faults.append(f"seed {seed}, {index}: {differences(left(run), expected.files)} {junk(run)}")
    assert faults == []
