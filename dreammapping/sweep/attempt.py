"""One attempt at a run, in this process: whatever happens to it is an outcome."""

import contextlib
import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from arguments import Config, GuidanceParams, HardwareParams, load
from dreammapping.optimization import Optimization
from dreammapping.program import optimize
from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.retries import BUSY, DONE_SO, ERROR, FULL, LOST, NOT_FINITE, STOPPED, Outcome
from guidance.prior.memory import plan_of_card
from guidance.prior.score_model import ScoreModel
from utils import checkpoint
from utils.device import choose_device, is_out_of_memory
from utils.errors import Alone, InUse, NotFinite, Occupied, OutOfMemory, UserError
from utils.peak_memory import forget_peak

log = logging.getLogger(__name__)


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


class _Stop(Exception):
    """Ends a run after the present iteration, with everything saved."""


def attempt(
    ledger: Ledger,
    name: str,
    changes: Mapping[str, Any],
    priors: Priors,
    *,
    tell: Callable[[int, int], object],
    stop: Callable[[], bool],
) -> Outcome:
    """Do a run, from its checkpoint where it has one.

    Args:
        changes: settings beside the run's own.
        tell: told every iteration that is done, and how many there are.
        stop: whether the run is to be saved and ended.
    """
    job, folder = ledger.jobs[name], ledger.run_folder(name)
    own = {
        "GuidanceParams.text": job.prompt,
        "seed": job.seed,
        "ModelParams.output_path": folder.parent,
        "ModelParams.workspace": folder.name,
    }
    config: Config | None = None

    def callback(step: int, optimization: Optimization) -> None:
        last = optimization.config.iterations
        tell(step, last)
        if stop() and step < last:
            raise _Stop

    try:
        config, _ = load(["--opt", str(ledger.settings(name))], {**own, **changes})
        tell(0, config.iterations)
        forget_peak(choose_device(config.device))  # of the run before
        resume = start_of(ledger, name) > 0
        result = optimize(config, resume=resume, quiet=True, callback=callback, load=priors.load)
        return Outcome(STOPPED if result.exit_code else DONE_SO)
    except (_Stop, KeyboardInterrupt):
        return Outcome(STOPPED)
    except Occupied as error:  # whose advice is train.py's
        message = (
            f"{folder}: expected no run, or one with a checkpoint to go on from, found neither; move what is there "
            "away and repeat the command with --retry-failed"
        )
        log.error("%s", error)
        return Outcome(ERROR, message)
    # one run's mistake is not the other runs'; what is no user's is told whole in its log
    except Exception as error:
        seeds = (0, 0) if config is None else (config.seed, config.GuidanceParams.noise_seed)
        outcome = Outcome(kind_of(error), told(error), _plan(config, priors), seeds)
        log.error("%s: %s", outcome.kind, outcome.message, exc_info=not isinstance(error, UserError))
        return outcome


def start_of(ledger: Ledger, name: str) -> int:
    """The iteration of a run's newest checkpoint, 0 where there is none."""
    saved = checkpoint.checkpoints(ledger.run_folder(name) / "checkpoints")
    return checkpoint.step_of(saved[-1]) if saved else 0


def _plan(config: Config | None, priors: Priors) -> str:
    """The memory plan of an attempt, as far as it is known."""
    if priors.plan or config is None:
        return priors.plan
    if config.HardwareParams.memory != "auto":
        return config.HardwareParams.memory
    with contextlib.suppress(UserError, RuntimeError):
        device = choose_device(config.device)
        if device.type == "cuda":
            return plan_of_card(torch.cuda.get_device_properties(device).total_memory).name
    return ""


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
    if any(isinstance(each, Alone) for each in chain):
        return LOST
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
