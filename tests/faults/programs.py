"""The whole program in processes that can be killed at any moment, a fraction of a second after they were asked for.

A server (`Programs`, started once) has imported everything and made two runs; every run that it is asked for is a fork
of it with one thread. What such a run leaves is told by `left`, which knows what may differ between two runs.
"""

import contextlib
import datetime
import functools
import gc
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUBJECTS = {
    "vdm": ["guidance=vdm"],
    "vsd": ["guidance=vsd"],
    "picture": ["guidance=vdm", "representation=image"],
}
STEPS = 10
WORDS = [
    "--quiet", "output_path=.", "workspace=run", "device=cpu", 'text="a red car"', "fp16=false", "perpneg=false",
    f"iterations={STEPS}", f"ImageParams.steps={STEPS}", "checkpoint_interval=3", "log_interval=2", "save_ratio=5",
    "test_ratio=1", "video_frames=2", "pro_frames_num=5",
    "vis_interval=4", "picture_interval=4", "memory=max", "init_num_pts=120",
    "image_w=32", "image_h=32", "C_batch_size=2", "warmup_iter=4", "densify_from_iter=1", "densification_interval=3",
    "densify_grad_threshold=0.00001", "opacity_reset_interval=5", "sh_degree=1", "shs_aug_ratio=0.5",
    "progressive_view_iter=3", "scale_up_cameras_iter=2",
]  # fmt: skip
"""Ten iterations with all that a run can write; the one before the last has a checkpoint, so that one which a signal
asked for is never among the last two, which are kept."""
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
"""Audit events of Python before a file system is changed (`open` where it is for writing)."""
OWN = re.compile(r"(\.replaced|\.moving)-.*|.*\.partial(\..*)?|.*\.lock")
"""Names of what a run may leave for a while, and never after a restart."""


def size_and_seed(name: str, size: int) -> tuple[int, int]:
    """How much a long form does, and its seed: `name` and SOAK_SEED in the environment, else `size` and the day's."""
    size = int(os.environ.get(name, size))
    seed = int(os.environ.get("SOAK_SEED", f"{datetime.datetime.now(datetime.UTC):%Y%m%d}"))
    print(f"{name}={size} SOAK_SEED={seed}")  # noqa: T201 (pytest shows it beside a failure)
    return size, seed


class Program:
    """One run of the program; `wait` gives its exit code, minus the number of the signal that killed it."""

    def __init__(self, server: "Programs", process: int, log: Path) -> None:
        self._server, self.process, self.log = server, process, log

    def wait(self, seconds: float = 300.0) -> int:
        return self._server.ask(wait=self.process, seconds=seconds)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)

    @property
    def said(self) -> str:
        """Standard output and error."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Programs:
    """The server, as a context.

    Args:
        prior: a folder for the tiny diffusion model that all runs use.
        folder: for what the server and its runs say.
    """

    def __init__(self, prior: Path, folder: Path) -> None:
        self.prior = prior
        self._count = 0
        self._folder = folder

    def __enter__(self) -> "Programs":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.programs", str(self.prior), str(self._folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the server of programs has died")
        return json.loads(line)

    def start(self, where: Path, words: list[str], *before: tuple[Callable[..., None], list[Any]]) -> Program:
        """Begin `train.py` with `words` (beside those of every run) in the folder `where`.

        Args:
            before: functions that can be imported, each with its arguments; they are called in the process first.
        """
        return self.call(where, ("train", "main"), [*WORDS, f"model_key={self.prior}", *words], *before)

    def call(
        self,
        where: Path,
        main: tuple[str, str],
        words: list[str],
        *before: tuple[Callable[..., None], list[Any]],
    ) -> Program:
        """Begin another command: a module and its function that takes words and returns an exit code."""
        where.mkdir(parents=True, exist_ok=True)
        self._count += 1
        log = self._folder / f"{self._count}.log"
        process = self.ask(
            main=main,
            words=words,
            where=str(where),
            log=str(log),
            before=[(function.__module__, function.__qualname__, values) for function, values in before],
        )
        return Program(self, process, log)


def with_a_shells_signals() -> None:
    """Heed every signal: what is started in the background ignores Ctrl-C, and so does what that starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def at_change(index: int, number: int) -> None:
    """Send this process a signal right before its change `index`, from 1, of the file system below its folder."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == index:
            os.kill(os.getpid(), number)

    _at_every_change(count)


def count_changes(path: str) -> None:
    """Write a byte into a file at each of this process's changes."""
    seen = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _at_every_change(lambda: os.write(seen, b"."))


def _at_every_change(act: Callable[[], object]) -> None:
    here = os.getcwd()

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event not in CHANGES or (event == "open" and not _writes(*values)):
            return
        path = values[0]
        if isinstance(path, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(path)).startswith(
            here
        ):
            act()

    sys.addaudithook(watch)


def _writes(_path: object, mode: str | None, flags: int, *_: object) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if mode is None else not mode.startswith("r")


def left(run: Path, mine: set[str] = frozenset()) -> dict[str, bytes]:
    """What a run left: every file but `mine` by its name, without what may differ: times, memory, who ran it."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if name in mine or not path.is_file():
            continue
        content = path.read_bytes()
        if name in (".dreammapping", "index.html"):  # which shows the times of run.json
            content = b""
        elif name == "metrics.jsonl":
            lines = [json.loads(line) for line in content.decode().splitlines()]
            content = json.dumps([_without(line, "seconds_per_iteration") for line in lines]).encode()
        elif name == "run.json":
            known = _without(json.loads(content), "seconds", "peak_memory_bytes", "warm_up_seconds")
            content = json.dumps(known).encode()
        found[name] = content
    return found


def junk(run: Path, mine: set[str] = frozenset()) -> list[str]:
    """What no run leaves once it has ended, or has been started again."""
    names = [str(path.relative_to(run)) for path in run.rglob("*")]
    return [name for name in names if name not in mine and OWN.fullmatch(Path(name).name)]


def empty(run: Path) -> list[str]:
    """Folders in which nothing lies."""
    return [
        str(path.relative_to(run)) for path in run.rglob("*") if path.is_dir() and not any(path.iterdir())
    ]


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The names of the files that are not the same in both."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def _without(known: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in known.items() if key not in keys}


def serve(prior: Path, folder: Path) -> None:
    """Read questions, a line each, and answer them: the number of a new process, or the exit code of an old one."""
    import ctypes

    import torch
    import tqdm

    torch.set_num_threads(1)
    os.fsync = lambda _file: None  # as in conftest.py
    tqdm.tqdm.monitor_interval = 0  # no thread of its own
    adopt_orphans = (
        36  # PR_SET_CHILD_SUBREAPER: what a killed run has started becomes a child of this process
    )
    ctypes.CDLL(None).prctl(adopt_orphans, 1, 0, 0, 0)
    out, running = os.dup(1), set()
    os.dup2(2, 1)

    def say(answer: Any) -> None:
        os.write(out, (json.dumps(answer) + "\n").encode())

    import train
    from tests.tiny_models import save_pipeline

    save_pipeline(prior, autoencoder="tiny")
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in ("vdm", "picture"):
        words = ["iterations=1", "ImageParams.steps=1", f"workspace=warm_{name}"]
        train.main([*WORDS, f"model_key={prior}", *SUBJECTS[name], *words])
    gc.collect()
    gc.freeze()
    say("ready")
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            code = _wait(question["wait"], question["seconds"])
            running.discard(question["wait"])
            _wait_for_orphans(running)
            say(code)
            continue
        process = os.fork()
        if process == 0:
            _carry_out(question)
        running.add(process)
        say(process)


def _wait(process: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.005)


def _wait_for_orphans(running: set[int]) -> None:
    """Until what killed runs have started (FFmpeg) has ended."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while orphans := {int(word) for word in children.read_text(encoding="utf-8").split()} - running:
        for orphan in orphans:
            os.waitpid(orphan, 0)


def _carry_out(question: dict[str, Any]) -> None:
    """As a process of its own that the command line has begun. It ends here."""
    code = 1
    try:
        with_a_shells_signals()
        os.setsid()
        os.chdir(question["where"])
        log = os.open(question["log"], os.O_WRONLY | os.O_CREAT, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        for module, name, values in question["before"]:
            _named(module, name)(*values)
        code = _named(*question["main"])(question["words"])
    except BaseException:  # noqa: BLE001 - as the interpreter does where nobody catches
        import traceback

        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _named(module: str, name: str) -> Callable[..., Any]:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


@contextlib.contextmanager
def programs(folder: Path) -> Iterator[Programs]:
    """A server with the tiny prior of the tests."""
    with Programs(folder / "prior", folder / "server") as server:
        yield server


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
