"""Where a worker carries out its runs: one process, in which the diffusion model stays loaded from run to run."""

import contextlib
import gc
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from arguments import Config, GuidanceParams, HardwareParams, load
from dreammapping.optimization import Optimization
from dreammapping.program import optimize
from dreammapping.sweep.ledger import Beat, Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, NOT_FINITE, STOPPED, Outcome
from dreammapping.sweep.shift import Claim
from dreammapping.sweep.status import Worker
from guidance.prior.memory import plan_of_card
from guidance.prior.score_model import ScoreModel
from utils import checkpoint
from utils.device import choose_device, is_out_of_memory
from utils.errors import InUse, NotFinite, OutOfMemory, UserError

log = logging.getLogger(__name__)

BEAT = 5.0
"""Seconds between two signs of life."""


class Priors:
    """The diffusion model of the last run, kept for the next one that has the same."""

    def __init__(self) -> None:
        self._key: object = None
        self._loaded: ScoreModel | None = None
        self.last: ScoreModel | None = None

    def load(self, params: GuidanceParams, device: torch.device, hardware: HardwareParams) -> ScoreModel:
        """As `ScoreModel.from_pretrained`, without loading what is loaded.

        Raises:
            UserError: as there.
        """
        key = (
            params.model_key, params.base_model_key, params.prediction_type, params.vae_key, params.LoRA_path,
            params.textual_inversion_path, params.fp16, hardware.precision, device,
        )  # fmt: skip
        if self._loaded is None or key != self._key:
            self.drop()
            self._loaded, self._key = ScoreModel.from_pretrained(params, device, hardware), key
        self.last = self._loaded.anew(params, hardware)
        return self.last

    def drop(self) -> None:
        """Forget what is loaded."""
        self._loaded = self.last = None
        free_memory()

    @property
    def plan(self) -> str:
        """The memory plan of the last run, as far as it came to one."""
        plan = None if self.last is None else self.last.__dict__.get("plan")
        return plan.name if plan else ""


class Heart:
    """Says in a thread, within the block, that the worker lives and how far its run is, and hears when it is gone.

    Attributes:
        lost: others have taken the run, because this process was silent for too long.
    """

    def __init__(self, ledger: Ledger, name: str, worker: Worker, seconds: float) -> None:
        self._ledger, self._name, self._worker, self._seconds = ledger, name, worker, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self.step = self.iterations = 0
        self.lost = False

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._ledger.still(self._name, self._worker.token)

    def _go_on(self) -> None:
        count = 0
        while not self._ended.is_set():
            with contextlib.suppress(
                UserError, OSError
            ):  # what is wrong with the folder, the run will find out
                count += 1
                beat = Beat(self._worker.token, count, self.step, self.iterations)
                self._ledger.beat(self._name, beat)
                status = self._ledger.read(self._name)
                holder = None if status is None else status.worker
                self.lost = status is not None and (holder is None or holder.token != self._worker.token)
            self._ended.wait(self._seconds)


class _Stop(Exception):
    """Ends a run after the present iteration, with everything saved."""


class Bench:
    """Carries out claims.

    Args:
        beat: seconds between signs of life.

    Attributes:
        stopping: set, from whatever thread, to have the present run saved and ended.
        broken: the device of this process is of no more use: only a new process gets it back.
    """

    def __init__(self, ledger: Ledger, worker: Worker, *, beat: float = BEAT) -> None:
        self.ledger, self.worker, self.priors = ledger, worker, Priors()
        self.stopping = threading.Event()
        self.broken = False
        self._beat = beat

    def start_of(self, name: str) -> int:
        """The iteration of a run's newest checkpoint, 0 where there is none."""
        saved = checkpoint.checkpoints(self.ledger.run_folder(name) / "checkpoints")
        return checkpoint.step_of(saved[-1]) if saved else 0

    def carry_out(self, claim: Claim) -> Outcome:
        """Do a run, from its checkpoint where it has one; whatever happens to it is an outcome."""
        job, folder = self.ledger.jobs[claim.name], self.ledger.run_folder(claim.name)
        changes = {
            "GuidanceParams.text": job.prompt,
            "seed": job.seed,
            "ModelParams.output_path": str(folder.parent),
            "ModelParams.workspace": folder.name,
            **claim.status.changes,
        }
        config: Config | None = None
        with (
            _log_into(self.ledger.path(claim.name) / "log.txt"),
            Heart(self.ledger, claim.name, self.worker, self._beat) as heart,
        ):
            try:
                config, _ = load(["--opt", str(self.ledger.settings(claim.name))], changes)
                heart.iterations = config.iterations
                return self._optimize(config, heart, resume=self.start_of(claim.name) > 0)
            except KeyboardInterrupt:
                self.stopping.set()
                return Outcome(STOPPED)
            # one run's mistake is not the other runs'; what is no user's is told whole in its log
            except Exception as error:
                outcome = self._outcome(error, config)
                log.error("%s: %s", outcome.kind, outcome.message, exc_info=not isinstance(error, UserError))
        self._clean_up(outcome)
        return outcome

    def _optimize(self, config: Config, heart: Heart, resume: bool) -> Outcome:
        def callback(step: int, optimization: Optimization) -> None:
            del optimization
            heart.step = step
            if (self.stopping.is_set() or heart.lost) and step < config.iterations:
                raise _Stop

        try:
            result = optimize(config, resume=resume, quiet=True, callback=callback, load=self.priors.load)
        except _Stop:
            return Outcome(BUSY if heart.lost else STOPPED)
        if result.exit_code:
            self.stopping.set()
            return Outcome(STOPPED)
        return Outcome(DONE_SO)

    def _outcome(self, error: Exception, config: Config | None) -> Outcome:
        seeds = (0, 0) if config is None else (config.seed, config.GuidanceParams.noise_seed)
        return Outcome(kind_of(error), told(error), self._plan(config), seeds)

    def _plan(self, config: Config | None) -> str:
        if self.priors.plan or config is None:
            return self.priors.plan
        if config.HardwareParams.memory != "auto":
            return config.HardwareParams.memory
        with contextlib.suppress(UserError, RuntimeError):
            device = choose_device(config.device)
            if device.type == "cuda":
                return plan_of_card(torch.cuda.get_device_properties(device).total_memory).name
        return ""

    def _clean_up(self, outcome: Outcome) -> None:
        """Leave room for the next run."""
        self.broken = outcome.kind == ERROR and "CUDA error" in outcome.message
        if outcome.kind == FULL:
            self.priors.drop()
        elif not self.broken:
            free_memory()


def kind_of(error: BaseException) -> str:
    """The kind of outcome that an error, or what it was raised from, stands for."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__
    if any(isinstance(each, OutOfMemory) or is_out_of_memory(each) for each in chain):
        return FULL
    if any(isinstance(each, NotFinite) for each in chain):
        return NOT_FINITE
    return BUSY if isinstance(error, InUse) else ERROR


def told(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"[:500]


def free_memory() -> None:
    """Give back what a run that is over had."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """Within the block, what is logged is also added to a file."""
    handler: Any = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
