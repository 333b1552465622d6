"""One stage of training: a learning rate that ends annealed, running averages of the weights, and checkpoints."""

import logging
import math
import pickle
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from utils.device import is_out_of_memory
from utils.errors import UserError
from utils.files import atomic
from utils.inputs import regular_file

_WARM_UP, _LAST_RATE = 0.02, 1e-5
_CHECKPOINT_SECONDS, _LOG_SECONDS = 120.0, 20.0
_MOST_GRADIENT = 1.0
_DAMAGED = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    pickle.UnpicklingError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: so many minutes, or, where `steps` is given, so many steps.

    `deadline` (of `time.monotonic`) cuts the minutes so that the stage ends by then.
    """

    minutes: float
    steps: int | None = None
    deadline: float | None = None

    def progress(self, steps: int, seconds: float) -> float:
        """The done share, in [0, 1]."""
        done = seconds / (60.0 * self.minutes) if self.steps is None else steps / self.steps
        return min(done, 1.0)

    def from_now(self, seconds: float) -> "Budget":
        """The budget of a stage that has trained for `seconds` and goes on at once."""
        if self.deadline is None:
            return self
        left = self.deadline - time.monotonic()
        return replace(self, minutes=min(self.minutes, (seconds + max(left, 1.0)) / 60.0), deadline=None)


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first 2 %, then a cosine from `peak` to 1e-5 at the end."""
    if progress < _WARM_UP:
        return peak * max(progress / _WARM_UP, 0.01)
    phase = (progress - _WARM_UP) / (1.0 - _WARM_UP)
    return _LAST_RATE + (peak - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * phase))


class Average:
    """Exponential running average of a module's parameters; young averages forget faster."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        weight = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self.values, list(module.parameters()), weight)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the parameters of a module of the same architecture."""
        for parameter, value in zip(module.parameters(), self.values, strict=True):
            parameter.copy_(value)


def share() -> tuple[int, int]:
    """This process's number and the count of processes that train together: (0, 1) unless `torchrun` started them."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


class Loop:
    """Trains `module` until the budget is spent; goes on from the checkpoint at `path` where there is one.

    Draw from `generator`, on the module's device: seeded by the first step, so that a resumed run repeats no draws.
    Between two notes in the log nothing waits for the device.
    """

    def __init__(
        self, name: str, module: nn.Module, rate: float, budget: Budget, path: Path, decay: float = 0.998
    ):
        self.name, self.module, self.rate, self.budget, self.path = name, module, rate, budget, path
        self.step, self.seconds = 0, 0.0
        self.device = next(module.parameters()).device
        self.optimizer = torch.optim.AdamW(_decay_groups(module), lr=rate, betas=(0.9, 0.99), fused=True)
        self._finished = False
        self.average = Average(module, decay)
        if path.exists():
            self._restore()
        self.rank, self.processes = share()
        self.generator = torch.Generator(self.device).manual_seed(self.step + 1_000_003 * self.rank)
        self._clock = time.monotonic()

    @property
    def progress(self) -> float:
        return 1.0 if self._finished else self.budget.progress(self.step, self.seconds)

    def run(
        self, loss: Callable[[], Tensor], publish: Callable[[], None] | None = None, every: float = 600.0
    ) -> None:
        """Minimise `loss`; call `publish` about every `every` seconds of training.

        Raises:
            UserError: the loss is not finite.
        """
        self.module.train()
        if not self._finished:
            self.budget = self.budget.from_now(self.seconds)
        published = logged = saved = self.seconds
        self._clock = time.monotonic()
        while self.progress < 1.0 or self.step == 0:
            value = self._advance(loss)
            if self.rank > 0:
                continue
            if self.seconds - logged >= _LOG_SECONDS:
                logged = self.seconds
                log.info("%s: step %d, %.0f s, %.0f %%, loss %.4f", *self._state(), value.item())
                if not math.isfinite(value.item()):
                    raise UserError(
                        f"toybox {self.name}: the loss is not finite; delete {self.path} and start again"
                    )
            if self.seconds - saved >= _CHECKPOINT_SECONDS:
                saved = self.seconds
                self.save()
            if publish is not None and self.seconds - published >= every:
                published = self.seconds
                publish()
        self._finished = self.step > 0 and self.budget.steps is None
        if self.rank == 0:
            self.save()
        self.module.eval()

    def save(self) -> None:
        """Write the checkpoint."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "finished": self._finished,
        }
        with atomic(self.path) as partial:
            torch.save(state, partial)

    def _advance(self, loss: Callable[[], Tensor]) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.progress, self.rate)
        value = loss()
        value.backward()
        self._agree()
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), _MOST_GRADIENT)
        # A gradient that is not finite is left out, without asking the device whether there is one.
        self.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.module, self.step)
        self.step += 1
        return value.detach()

    def _agree(self) -> None:
        """Average the gradients and the clock over the processes."""
        now = time.monotonic()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        if self.processes == 1:
            return
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        clock = gradients[0].new_tensor([self.seconds])
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [clock])
        distributed.all_reduce(flat)
        flat /= self.processes
        parts = flat[:-1].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        self.seconds = flat[-1].item()

    def _state(self) -> tuple[str, int, float, float]:
        return self.name, self.step, self.seconds, 100.0 * self.progress

    def _restore(self) -> None:
        try:
            state = torch.load(regular_file(self.path), map_location=self.device, weights_only=True)
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.values = state["average"]
            self.step, self.seconds = state["step"], state["seconds"]
            finished = state["finished"]
        except _DAMAGED as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{self.path}: expected a checkpoint of this architecture, got another or a damaged one; move it away "
                "to start again"
            ) from error
        self._finished = finished and self.budget.deadline is not None
        log.info("%s: continues from step %d, %.0f s, %.0f %%", *self._state())


def _decay_groups(module: nn.Module) -> list[dict]:
    """Weight decay for matrices and kernels alone, not for biases, norms and scales."""
    wide = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    narrow = [parameter for parameter in module.parameters() if parameter.ndim <= 1]
    return [{"params": wide, "weight_decay": 0.01}, {"params": narrow, "weight_decay": 0.0}]
