"""Sweeps of tiny runs for the tests: their words, what they leave, and workers that are there at once."""

import json
import os
import signal
import traceback
from pathlib import Path

from dreammapping.sweep import processes, worker
from dreammapping.sweep.ledger import Ledger
from tests.faults.programs import WORDS, with_a_shells_signals

SETTINGS = [
    word for word in WORDS if "=" in word and not word.startswith(("output_path", "workspace", "text"))
]
"""Ten iterations each, as `tests.faults.programs` has them."""
PROMPTS = ("a red car", "A blue, duck!")


class Forked:
    """What `subprocess.Popen` would be for a worker that is a fork of this process."""

    def __init__(
        self, words: list[str], given: dict[str, str], said: Path, place: Path | None = None
    ) -> None:
        del given, place
        self.pid = os.fork()
        self.code: int | None = None
        if self.pid == 0:
            _work(words, said)

    def poll(self) -> int | None:
        return self._ask(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        del timeout
        return self._ask(0)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ask(self, how: int) -> int | None:
        if self.code is None:
            done, status = os.waitpid(self.pid, how)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code


def _work(words: list[str], said: Path) -> None:
    code = 1
    try:
        os.setsid()
        with_a_shells_signals()
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for target in (1, 2):
            os.dup2(log, target)
        code = worker.main(words)
    except BaseException:  # noqa: BLE001 - as the interpreter does where nobody catches
        traceback.print_exc()
    finally:
        os._exit(code)


def fork_workers() -> None:
    """Let the sweeps of this process have workers that have everything loaded."""
    processes.popen = Forked


def write_prompts(folder: Path, prompts: tuple[str, ...] = PROMPTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.txt"
    path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    return path


def ply(run: Path) -> bytes:
    """The asset that a run has left."""
    return (run / "point_cloud" / "iteration_10" / "point_cloud.ply").read_bytes()


def told(folder: Path) -> str:
    """What has become of a sweep, for the message of a failing test."""
    ledger = Ledger(folder)
    lines = [json.dumps(json.loads(ledger.read(name).to_json())) for name in ledger.jobs if ledger.read(name)]
    lines += [path.read_text(errors="replace")[-2000:] for path in (folder / "workers").glob("*.log")]
    lines += [path.read_text(errors="replace")[-2000:] for path in (folder / "status").glob("*/log.txt")]
    return "\n".join(lines)
