"""One run on several cards: a group of processes that torchrun starts for it, and one of them.

The processes share the views of each batch (`utils/distributed.py`). Each leaves its outcome in a file, for the one
whose error tells why is seldom the one that is heard of first.
"""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, LOST, NOT_FINITE, STOPPED, Outcome
from dreammapping.sweep.status import Worker
from utils.errors import UserError
from utils.files import write_text
from utils.repository import ROOT

TELLING = (BUSY, FULL, NOT_FINITE, ERROR, LOST, STOPPED, DONE_SO)
"""Of several outcomes the first one of these is the group's. Only the first process can find the folder busy, and what
the others then say follows from that; lost is who only heard that another one is gone."""
LOOK = 0.5
"""Seconds between two looks at the group."""
ASK = 3.0
"""Seconds after which the group asks whether its worker is still there."""


def carry_out(
    ledger: Ledger, name: str, size: int, *, tell: Callable[[int, int], object], stop: Callable[[], bool]
) -> Outcome:
    """Have a run done by `size` processes of this machine.

    Args:
        tell: told the last iteration, now and then, and how many there are.
        stop: whether the run is to be saved and ended.
    """
    place = ledger.path(name)
    for old in place.glob("outcome-*.json"):
        old.unlink()
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    alone = {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
        "-m", "dreammapping.sweep.group", str(ledger.folder), name,
    ]  # fmt: skip
    with (place / "group.txt").open("ab") as said:
        group = subprocess.Popen(
            command, env=os.environ | alone, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            start_new_session=True,
        )  # fmt: skip
        try:
            asked = False
            while group.poll() is None:
                time.sleep(LOOK)
                tell(*_far(place / "step.json"))
                if stop() and not asked:
                    group.send_signal(signal.SIGTERM)
                    asked = True
        finally:
            if group.poll() is None:
                os.killpg(group.pid, signal.SIGKILL)
                group.wait()
    return _outcome(place, size, group.returncode, asked)


def _far(path: Path) -> tuple[int, int]:
    try:
        step, iterations = json.loads(path.read_text(encoding="ascii"))
        return int(step), int(iterations)
    except (OSError, ValueError, TypeError):
        return 0, 0


def _outcome(place: Path, size: int, code: int, asked: bool) -> Outcome:
    """How a group of `size` processes has ended, by what each of them has left, and the exit code of all."""
    left = []
    for path in sorted(place.glob("outcome-*.json")):
        tree = json.loads(path.read_text(encoding="utf-8"))
        left.append(Outcome(**{**tree, "seeds": tuple(tree["seeds"])}))
    if asked and code:
        return Outcome(STOPPED)
    found = [each for each in left if each.kind != DONE_SO or code == 0]
    best = min(found, key=lambda each: TELLING.index(each.kind), default=None)
    told = best is not None and best.kind != LOST and not (best.kind == STOPPED and len(left) < size)
    if best is not None and told:
        return best
    return Outcome(LOST, f"a process of the group died (code {code}); see {place / 'group.txt'}")


def stop_without(ledger: Ledger, name: str, worker: Worker) -> None:
    """Have this process save and end as soon as the run is no longer the worker's.

    A worker that is killed cannot end its group, which would go on holding cards and folder.
    """
    while _holds(ledger, name, worker):
        time.sleep(ASK)
    os.kill(os.getpid(), signal.SIGTERM)


def _holds(ledger: Ledger, name: str, worker: Worker) -> bool:
    """Whether a worker lives and has a run, as far as that can be told."""
    if worker.has_died():
        return False
    try:
        status = ledger.read(name)
    except UserError:
        return True
    return status is None or (status.worker is not None and status.worker.token == worker.token)


def main(words: list[str]) -> int:
    """One process of the group; the first one works at the files."""
    folder, name = words
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s")
    ledger, rank = Ledger(Path(folder)), os.environ["RANK"]
    status = ledger.read(name)
    if status is None or status.worker is None:
        return 1
    if rank == "0":  # it tells the others
        threading.Thread(target=stop_without, args=(ledger, name, status.worker), daemon=True).start()

    from dreammapping.sweep.attempt import Priors, attempt

    def tell(*far: int) -> None:
        if rank == "0":
            write_text(ledger.path(name) / "step.json", json.dumps(far), durable=False)

    outcome = attempt(ledger, name, status.changes, Priors(), tell=tell, stop=lambda: False)
    text = json.dumps(dataclasses.asdict(outcome))
    write_text(ledger.path(name) / f"outcome-{rank}.json", text)
    return 0 if outcome.kind == DONE_SO else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
