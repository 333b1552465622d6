"""Workers as Ray actors: of this machine, or of a cluster whose machines share the sweep's folder.

The files decide what is run, as without Ray; Ray says where there is room, gives cards, and starts what dies anew.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dreammapping.sweep.processes import LOOK, PATIENCE, Deaths
from dreammapping.sweep.progress import Shows
from dreammapping.sweep.retries import Patience
from utils.errors import UserError
from utils.repository import ROOT

WANTED = (2, 60)
"""The first release that this is written for; the next major one may be another."""
GRACE = 10.0
"""Seconds that the other actors get once one has found all runs over, or to hear that they are to stop: Ray may never
have found a place for some."""


@dataclass(frozen=True)
class Crew:
    """What each actor gets, and what its shift is.

    Attributes:
        workers: actors; None is one for each `cards` cards of the cluster, or for each `cpus` cores where it has none.
        cards: of each actor; a fraction lets several share one.
        cpus: cores of each actor.
        address: of a running cluster; empty starts one on this machine, which listens on the loopback alone.
    """

    workers: int | None = None
    cards: float = 1.0
    cpus: float = 1.0
    address: str = ""
    shard: str = "1/1"
    losses: int = Patience.losses
    stale: float = 90.0


def check_ray() -> None:
    """Refuse to go on without a Ray that this is written for; it is not loaded yet.

    Raises:
        UserError: it is missing, or of another version.
    """
    try:
        found = metadata.version("ray")
    except metadata.PackageNotFoundError:
        found = "none"
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if release < WANTED or release[0] != WANTED[0]:
        raise UserError(
            f"--ray: expected Ray {'.'.join(map(str, WANTED))} or newer below {WANTED[0] + 1}, got {found}; "
            "pip install -c constraints.txt '.[sweep]', or leave --ray out"
        )


class Actor:
    """A worker inside Ray; its process keeps the diffusion model from run to run."""

    def __init__(self, folder: str, index: int, count: int, crew: Crew) -> None:
        self._folder, self._index, self._count, self._crew = Path(folder), index, count, crew
        self._bench: Any = None
        self._stopping = threading.Event()

    def work(self) -> int:
        """Work until nothing is left; where the device is lost, the process ends."""
        from dreammapping.sweep.bench import BEAT, Bench
        from dreammapping.sweep.ledger import Ledger
        from dreammapping.sweep.shift import carry_on, shift
        from dreammapping.sweep.status import Worker
        from dreammapping.sweep.worker import AGAIN, shard

        crew, ledger, worker = self._crew, Ledger(self._folder), Worker.me()
        bench = Bench(ledger, worker, beat=min(BEAT, crew.stale / 5), processes=max(int(crew.cards), 1))
        bench.stopping = self._stopping
        actions = shift(
            ledger,
            worker,
            shard(list(ledger.jobs), crew.shard),
            start_of=bench.start_of,
            index=self._index,
            count=self._count,
            patience=Patience(losses=crew.losses),
            stale=crew.stale,
        )
        carry_on(actions, bench.carry_out, bench.stopping.wait, lambda: bench.over)
        if bench.broken:
            os._exit(AGAIN)  # the device comes back with a new process, which Ray starts
        return 0

    def stop(self) -> None:
        """Have the present run saved and ended."""
        self._stopping.set()


def run(folder: Path, crew: Crew, progress: Shows) -> None:
    """Have actors go through a sweep until all its runs are over.

    Raises:
        UserError: Ray cannot be started or joined, or no machine has what an actor asks for.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once all actors have saved and ended.
    """
    with _cluster(crew) as ray:
        count, cards = _room(ray, crew)
        # `stop` has a thread of its own, so that it is heard while `work` goes on
        remote = ray.remote(concurrency_groups={"control": 1})(_in_groups(ray))
        options = {"num_gpus": cards, "num_cpus": crew.cpus, "max_restarts": -1, "max_task_retries": 0}
        actors = [remote.options(**options).remote(str(folder), index, count, crew) for index in range(count)]
        working = {actor.work.remote(): actor for actor in actors}
        deaths, end = Deaths(crew.losses), math.inf
        try:
            while working and time.monotonic() < end:
                ended, _ = ray.wait(list(working), num_returns=1, timeout=LOOK)
                progress.show()
                for each in ended:
                    actor = working.pop(each)
                    if _is_over(ray, each):
                        end = min(end, time.monotonic() + GRACE)
                    else:
                        deaths.count(actors.index(actor), "see the logs of Ray, /tmp/ray/session_latest/logs")
                        working[actor.work.remote()] = actor  # Ray has started it anew, or is about to
            progress.show(last=True)
        finally:
            _end(ray, working)


def _in_groups(ray: Any) -> type:
    """The actor, its `stop` in a group of its own."""
    return type("Worker", (Actor,), {"stop": ray.method(concurrency_group="control")(Actor.stop)})


def _is_over(ray: Any, work: Any) -> bool:
    """Whether an actor has found all runs over; False where it, or its node, has died.

    Raises:
        UserError: it cannot work at all.
    """
    try:
        ray.get(work)
    except ray.exceptions.RayTaskError as error:
        cause = error.as_instanceof_cause()
        raise UserError(" ".join(str(error.cause or cause).split())[:500]) from error
    except ray.exceptions.RayError as error:  # dead, or out of the machine's memory
        logging.warning("a worker has died (%s); it is started anew", type(error).__name__)
        time.sleep(LOOK)
        return False
    return True


def _end(ray: Any, working: dict[Any, Any]) -> None:
    """Ask actors to save and end; those that do not hear it were never placed, or are gone."""
    if not working:
        return
    with contextlib.suppress(ray.exceptions.RayError, KeyboardInterrupt):
        asked = {actor.stop.remote(): work for work, actor in working.items()}
        heard, _ = ray.wait(list(asked), num_returns=len(asked), timeout=GRACE)
        if heard:
            ray.wait([asked[each] for each in heard], num_returns=len(heard), timeout=PATIENCE)


@contextlib.contextmanager
def _cluster(crew: Crew) -> Iterator[Any]:
    """Ray, which runs within the block: a cluster that is there, or one on this machine, which ends with the block."""
    # a cluster of our own inherits this; on another one, workers look where this process does, in the shared folder
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    common = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    # these are read when Ray is loaded
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not crew.address:  # its word, whatever the system, for a node of its own that is at the loopback alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    kept = signal.getsignal(signal.SIGTERM)
    try:
        if crew.address:
            ray.init(address=crew.address, **common)
        else:
            # without the word, Ray joins whatever cluster the environment or its files name
            ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **common)
    except Exception as error:  # a start that takes too long is no more than that
        where = crew.address or "this machine"
        raise UserError(
            f"--ray: expected Ray on {where}, got: {' '.join(str(error).split())[:300]}; without --ray, plain "
            "processes do the same"
        ) from error
    signal.signal(signal.SIGTERM, kept)  # Ray's own would end this process at once
    try:
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, crew: Crew) -> tuple[int, float]:
    """How many actors there are to be, and the cards of each: none where the cluster has none.

    Raises:
        UserError: there is no room for one.
    """
    there = ray.cluster_resources()
    cards, cpus = there.get("GPU", 0.0), there.get("CPU", 0.0)
    most = int(cards // crew.cards) if cards else max(int(cpus // crew.cpus), 1)
    if (cards and most < 1) or cpus < crew.cpus:
        raise UserError(
            f"--ray: expected room for a worker with {crew.cards:g} cards and {crew.cpus:g} cores, got {cards:g} cards "
            f"and {cpus:g} cores; ask for less with --cards or --cpus"
        )
    return min(crew.workers or most, most), crew.cards if cards else 0.0
