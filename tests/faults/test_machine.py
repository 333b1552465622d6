"""Faults of the machine: a small disk, no permission, a folder that vanishes, closed streams, threads, clocks, locales.

Whatever happens, a run ends well or says in one line what is wrong, and the same command goes on once it is mended.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.programs import (
    CHANGES,
    ROOT,
    SUBJECTS,
    WORDS,
    Program,
    at_change,
    differences,
    empty,
    junk,
    left,
    size_and_seed,
)
from utils import checkpoint

if sys.platform != "linux":
    pytest.skip("needs Linux: fork, and processes that adopt", allow_module_level=True)

NOBODY = 65534


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    """What an undisturbed run of a picture leaves."""
    where = tmp_path_factory.mktemp("reference")
    run = server.start(where, SUBJECTS["picture"])
    assert run.wait() == 0, run.said
    return left(where / "run")


def resume_or_start(run: Path) -> list[str]:
    return ["--resume"] if checkpoint.checkpoints(run / "checkpoints") else []


def assert_one_line(program: Program) -> None:
    errors = [line for line in program.said.splitlines() if not line.startswith("WARNING")]
    assert len(errors) == 1 and errors[0].startswith("error: "), program.said


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `place`."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("only root can make a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill_and_free(server, expected: dict[str, bytes], place: Path, subject: str, size: int) -> None:
    """A run on a disk that is too small; then the disk grows, and the same command goes on."""
    with small_disk(place, size):
        full = server.start(place, SUBJECTS[subject])
        code = full.wait()
        if code != 0:
            assert code == 2, f"{size}: exit {code}: {full.said}"
            assert_one_line(full)
            assert any(word in full.said for word in ("free space", "No space", "other folder", "full")), (
                full.said
            )
        subprocess.run(["mount", "-o", "remount,size=400m", str(place)], check=True)
        again = server.start(place, [*SUBJECTS[subject], *resume_or_start(place / "run")])
        assert again.wait() == 0, f"{size}: {again.said}"
        assert differences(left(place / "run"), expected) == [], size
        assert junk(place / "run") + empty(place / "run") == [], size


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(server, reference, tmp_path):
    fill_and_free(server, reference, tmp_path / "disk", "picture", 60_000)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["picture", "vdm"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room_at_length(server, tmp_path, subject):
    disks, seed = size_and_seed("SOAK_DISKS", 10)
    whole = server.start(tmp_path / "whole", SUBJECTS[subject])
    assert whole.wait() == 0
    expected = left(tmp_path / "whole" / "run")
    most = sum(path.stat().st_size for path in (tmp_path / "whole" / "run").rglob("*") if path.is_file())
    rng = random.Random(f"{subject} {seed}")
    for index in range(disks):
        fill_and_free(server, expected, tmp_path / f"disk_{index}", subject, rng.randint(4096, most))


def test_a_file_may_not_be_long_enough(server, reference, tmp_path):
    """A quota, which refuses in the middle of a write."""
    refused = server.start(tmp_path, SUBJECTS["picture"], (limit_file_size, [30_000]))
    assert refused.wait() == 2, refused.said
    assert_one_line(refused)
    again = server.start(tmp_path, [*SUBJECTS["picture"], *resume_or_start(tmp_path / "run")])
    assert again.wait() == 0 and differences(left(tmp_path / "run"), reference) == []


def limit_file_size(size: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    # what the process says is appended to a file that is short


@pytest.fixture
def readable(tmp_path_factory, server):
    """The folders above the prior and the tests, open to everybody, so that the run's folder alone is closed."""
    for folder in (server.prior, *server.prior.parents):
        if folder.is_relative_to(tmp_path_factory.getbasetemp().parent):
            folder.chmod(0o755)
    for path in server.prior.rglob("*"):
        path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.usefixtures("readable")
def test_a_folder_that_may_not_be_written_is_one_line(server, tmp_path):
    """First a folder in which nothing may be made, then a run of somebody else."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    mine = server.start(tmp_path, SUBJECTS["picture"], (at_change, [60, signal.SIGTERM]))
    mine.wait()
    before = left(tmp_path / "run")
    for words in (["workspace=other"], ["--force"], ["--resume"], []):
        refused = server.start(tmp_path, [*SUBJECTS["picture"], *words], (become, [NOBODY]))
        assert refused.wait() == 2, refused.said
        assert_one_line(refused)
        assert "Permission denied" in refused.said or "holds another run" in refused.said
    assert left(tmp_path / "run") == before and not (tmp_path / "other").exists()


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def vanish(index: int, folder: str, elsewhere: str) -> None:
    """Rename a folder right before change `index` of the file system below this process's."""
    here, seen, rename = os.getcwd(), 0, os.rename

    def watch(event: str, values: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES and event != "open" and isinstance(values[0], str | os.PathLike):
            seen += os.path.abspath(os.fspath(values[0])).startswith(here)
            if seen == index:
                seen += 1
                rename(folder, elsewhere)

    sys.addaudithook(watch)


def lose_the_folder(server, where: Path, subject: str, index: int) -> None:
    """The run's folder is moved away while it is written to."""
    run, moved = where / "run", where / "moved"
    lost = server.start(where, SUBJECTS[subject], (vanish, [index, str(run), str(moved)]))
    code = lost.wait()
    assert code in (0, 2) and "Traceback" not in lost.said, f"{index}: exit {code}: {lost.said}"
    if code == 2:
        assert_one_line(lost)
    if moved.exists():
        again = server.start(where, ["workspace=moved", *SUBJECTS[subject], *resume_or_start(moved)])
        assert again.wait() == 0, f"{index}: {again.said}"


@pytest.mark.parametrize("index", [8, 25])
def test_a_folder_that_vanishes_ends_in_no_traceback(server, tmp_path, index):
    lose_the_folder(server, tmp_path, "picture", index)


@pytest.mark.slow
def test_a_folder_that_vanishes_ends_in_no_traceback_at_length(server, tmp_path):
    folders, seed = size_and_seed("SOAK_FOLDERS", 30)
    rng = random.Random(seed)
    for number in range(folders):
        subject = rng.choice(list(SUBJECTS))
        most = 60 if subject == "picture" else 300
        lose_the_folder(server, tmp_path / str(number), subject, rng.randint(1, most))


def close_streams(how: str) -> None:
    if how == "none":
        sys.stdin = sys.stdout = sys.stderr = (
            None  # as Python has them where they were closed when it started
        )
    elif how == "full":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
        os.dup2(full, 2)
    else:
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


@pytest.mark.parametrize("how", ["none", "full", "pipe"])
def test_streams_that_take_nothing_cost_no_run(server, reference, tmp_path, how):
    run = server.start(tmp_path, SUBJECTS["picture"], (close_streams, [how]))
    assert run.wait() == 0, run.said
    assert differences(left(tmp_path / "run"), reference) == []


def clock_goes_back() -> None:
    """Every look at the clock is an hour before the last one."""
    looks = iter(range(10**9))
    time.time = lambda: 1e9 - 3600.0 * next(looks)


def test_a_clock_that_goes_back_changes_nothing(server, reference, tmp_path):
    run = server.start(
        tmp_path, SUBJECTS["picture"], (clock_goes_back, []), (at_change, [50, signal.SIGTERM])
    )
    assert run.wait() == 143, run.said
    run = server.start(tmp_path, [*SUBJECTS["picture"], "--resume"], (clock_goes_back, []))
    assert run.wait() == 0, run.said
    assert differences(left(tmp_path / "run"), reference) == []
    assert 0 <= json.loads((tmp_path / "run" / "run.json").read_text())["seconds"] < 3600


def use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def killed_on_threads(server, where: Path, subject: str, threads: int, change: int) -> None:
    """A run on so many threads, killed and resumed, ends with the bits of one that was not."""
    use = (use_threads, [threads])
    whole = server.start(where / "whole", SUBJECTS[subject], use)
    assert whole.wait() == 0, whole.said
    killed = server.start(where / "killed", SUBJECTS[subject], use, (at_change, [change, signal.SIGKILL]))
    assert killed.wait() == -signal.SIGKILL
    run = where / "killed" / "run"
    again = server.start(where / "killed", [*SUBJECTS[subject], *resume_or_start(run)], use)
    assert again.wait() == 0, again.said
    assert differences(left(run), left(where / "whole" / "run")) == []


@pytest.mark.parametrize("threads", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_threads_keep_the_bits(server, tmp_path, threads):
    killed_on_threads(server, tmp_path, "picture", threads, 70)


@pytest.mark.slow
@pytest.mark.parametrize("subject", ["vdm", "vsd"])
def test_sixty_four_threads_keep_the_bits_of_gaussians(server, tmp_path, subject):
    killed_on_threads(server, tmp_path, subject, 64, 250)


ENVIRONMENTS = {
    "locale C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "64 threads": {"OMP_NUM_THREADS": "64"},
    "little-known temporary folder": {"TMPDIR": "/nowhere"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_real_command_line_in_another_environment(server, tmp_path, name):
    """Prompt, folder and settings file have letters that the locale lacks."""
    config = tmp_path / "猫.yaml"
    config.write_text("GuidanceParams:\n  text: ein Kätzchen 猫\n", encoding="utf-8")
    words = [word for word in WORDS if not word.startswith("text=")]
    command = [sys.executable, str(ROOT / "train.py"), "--opt", str(config), *words, *SUBJECTS["picture"]]
    command += [f"model_key={server.prior}", "workspace=läufe"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, env=os.environ | ENVIRONMENTS[name], check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    settings = (tmp_path / "läufe" / "config.yaml").read_text(encoding="utf-8")
    assert "ein Kätzchen 猫" in settings


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2>&1 | head -c 0"]
)
def test_the_real_command_line_with_closed_streams(server, reference, tmp_path, closed):
    words = [
        sys.executable,
        str(ROOT / "train.py"),
        *WORDS,
        *SUBJECTS["picture"],
        f"model_key={server.prior}",
    ]
    script = f'set -o pipefail; "$@" {closed}'
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", script, "bash", *words], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0
    assert differences(left(tmp_path / "run"), reference) == []
    shutil.rmtree(tmp_path / "run")
