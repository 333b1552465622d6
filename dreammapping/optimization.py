"""Algorithm 1 of the paper over any subject, iteration by iteration, and all that a restart needs."""

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from arguments import Config, GuidanceParams, HardwareParams
from dreammapping.known_prompts import warn_of_unknown_prompt
from dreammapping.pace import warn_of_pace
from dreammapping.subject import Shown, Subject
from guidance import GuidanceOutput, build_guidance
from guidance.models import go_offline, missing_models
from guidance.prior.memory import PLANS
from guidance.prior.score_model import ScoreModel
from utils.checkpoint import check_form, first_line
from utils.device import choose_device, fullness, is_out_of_memory
from utils.distributed import (
    averaged,
    from_first,
    is_broken_off,
    part_of_mean,
    parted,
    processes,
    rank,
    sum_gradients,
    total_of,
)
from utils.errors import Alone, NotFinite, OutOfMemory, UserError
from utils.optimizers import load_moments, not_finite, step_unless
from utils.readback import Readback

log = logging.getLogger(__name__)

NON_FINITE_LIMIT = 10
"""Skipped steps in a row after which a run stops."""
REPLICAS_INTERVAL = 500
"""Iterations after which processes that share the work are compared."""
COMPILE_FROM = 1000
"""Iterations from which compiling pays for itself."""

Build = Callable[[Config, Callable[[], ScoreModel], torch.Generator, torch.device], Subject]
"""Makes a subject of settings, what gives the prior, a generator for the start, and a device."""
Load = Callable[[GuidanceParams, torch.device, HardwareParams], ScoreModel]
"""Gives the prior."""


class Optimization:
    """The state of one optimisation.

    Args:
        config: the resolved settings.
        device: where the subject and the prior live; default: the one that the settings name.
        build: makes the subject; default: the one that `ModelParams.representation` names.
        load: gives the prior for settings, a device and hardware; default: it is loaded.

    Attributes:
        subject: what is optimised.
        guidance: the loss.
        step: iterations done. skipped: those in a row, up to now, whose numbers were not finite.
        other_seeds: whether the state that was loaded has draws of other seeds; None where that is not known.

    Raises:
        UserError: a model, a start or a prompt of the settings cannot be used; or the device is too full for them.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device | None = None,
        build: Build | None = None,
        load: Load | None = None,
    ) -> None:
        if config.offline:
            go_offline()
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device or choose_device(config.device)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.noise_rng = torch.Generator().manual_seed(config.GuidanceParams.noise_seed)

        @cache
        def load_prior() -> ScoreModel:
            given = load or ScoreModel.from_pretrained
            return given(config.GuidanceParams, self.device, config.HardwareParams)

        self.subject = (build or representation(config))(config, load_prior, self.rng, self.device)
        if processes() > 1 and not self.subject.replicas:
            raise UserError(
                f"torchrun: expected one process for {type(self.subject).__name__}, whose views cannot be shared, got "
                f"{processes()}; start it without torchrun"
            )
        self.score_model = load_prior()
        torch.manual_seed(config.seed)  # whatever was loaded or cached before
        self.guidance = build_guidance(config, self.score_model)
        if self._compiles():
            self.score_model.compile()
        self.step = 0
        self.skipped = 0
        self.other_seeds: bool | None = None
        self.warm_up_seconds = 0.0
        self._counted = self.score_model.evaluations.state_dict()
        self._changing = False
        self._checks: deque[Readback] = deque()
        self._guided: GuidanceOutput | None = None

    def iteration(self, step: int) -> dict[str, Tensor | float]:
        """One pass of Algorithm 1 over a batch of views; returns what is worth logging.

        Raises:
            OutOfMemory: the device is full; if it says `whole`, this object is as before and can be saved.
            Alone: another process of this run has ended.
            UserError: too many steps in a row were not finite.
        """
        take_back = self._bookmark()
        try:
            return self._iterate(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                if is_broken_off(error):
                    raise Alone(
                        f"iteration {step}: another process of this run has ended, and may have said why; the last "
                        "checkpoint is kept; to continue from it, repeat the command with --resume"
                    ) from error
                raise
            whole = not self._changing
            if whole:
                take_back()
            raise OutOfMemory(f"iteration {step}: {self.advice()}", whole=whole) from error

    def _iterate(self, step: int) -> dict[str, Tensor | float]:
        shown = self.subject.show(step, self.rng)                         # x_0 = g(θ, c), and y
        guided = self._guide(shown, step)                                 # L_VDM and L_op, Eq. 19 and 17
        losses = {**guided.losses, **shown.losses()}
        total = torch.stack([self._part(name, loss) for name, loss in losses.items()]).sum()
        total.backward()                                                  # θ and ψ receive disjoint gradients
        self._changing = True
        self._apply_gradients(total)                                      # ψ, then θ
        self.subject.grow(step, self.rng)
        self._changing = False
        self.step, self._guided = step, guided
        self._check_replicas()
        return averaged({**{f"loss/{name}": loss.detach() for name, loss in losses.items()}, **guided.stats})

    def _part(self, name: str, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """What a loss of this process's views adds to that of all: the guidance's is a sum over views, others means."""
        return loss if name == self.guidance.name else part_of_mean(loss)

    def _guide(self, shown: Shown, step: int) -> GuidanceOutput:
        guide = self.guidance.distill if shown.latent else self.guidance
        return guide(shown.seen, shown.text, step, self.noise_rng)

    def _apply_gradients(self, total: Float[Tensor, ""]) -> None:
        """Step every optimiser; a step with a number that is not finite is skipped and counted.

        On a card the decision stays on the device, and the count follows an iteration later.

        Raises:
            NotFinite: `NON_FINITE_LIMIT` steps in a row were skipped.
        """
        optimizers = self._optimizers()
        parameters = self._parameters()
        (total,) = sum_gradients(parameters, total)
        broken = not_finite(total, parameters)
        for optimizer in optimizers:
            step_unless(optimizer, broken)
            optimizer.zero_grad(set_to_none=True)
        self._checks.append(Readback({"broken": broken}))
        self._count_skipped(keep=0 if self.device.type == "cpu" else 1)

    def _count_skipped(self, keep: int = 0) -> None:
        """Take in which steps were skipped, all but the last `keep`."""
        while len(self._checks) > keep:
            if not self._checks.popleft().values()["broken"]:
                self.skipped = 0
                continue
            self.skipped += 1
            log.warning("iteration %d: a loss or gradient is not finite; the step is skipped", self.step + 1)
            if self.skipped >= NON_FINITE_LIMIT:
                raise NotFinite(
                    f"iteration {self.step + 1}: losses or gradients were not finite in {NON_FINITE_LIMIT} steps in a "
                    "row; the last checkpoint stays; lower guidance_scale or learning rates, or set fp16=false, "
                    "then --resume"
                )

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [each for each in (self.guidance.optimizer, self.subject.optimizer) if each is not None]

    def _parameters(self) -> list[Tensor]:
        return [p for each in self._optimizers() for group in each.param_groups for p in group["params"]]

    def align(self) -> None:
        """Where several processes share the work: begin with what the first one has."""
        if processes() == 1:
            return
        state = from_first(self.state_dict() if rank() == 0 else None)
        if rank() > 0:
            self.load_state_dict(state)
        self._counted = self.score_model.evaluations.state_dict()

    def _check_replicas(self) -> None:
        """Count the evaluations of all processes, and now and then compare what they have.

        Raises:
            UserError: they have not the same any more.
        """
        if processes() == 1:
            return
        now = self.score_model.evaluations.state_dict()
        self._counted = {name: known + total_of(now[name] - known) for name, known in self._counted.items()}
        self.score_model.evaluations.load_state_dict(self._counted)
        if self.step % REPLICAS_INTERVAL in (0, 1) and parted(self._parameters()):
            raise UserError(
                f"iteration {self.step}: expected the same parameters in all processes, got different ones; use cards "
                "of one kind, then --resume, which begins with those of the first process"
            )

    def _bookmark(self) -> Callable[[], None]:
        """What makes this object what it is now, as long as no optimiser has stepped."""
        rng, noise_rng, subject = self.rng.get_state(), self.noise_rng.get_state(), self.subject.bookmark()

        def take_back() -> None:
            self.rng.set_state(rng)
            self.noise_rng.set_state(noise_rng)
            subject()
            for optimizer in self._optimizers():
                optimizer.zero_grad(set_to_none=True)

        return take_back

    def _compiles(self) -> bool:
        wanted = self.config.HardwareParams.compile
        worth = self.device.type == "cuda" and self.config.iterations >= COMPILE_FROM
        return wanted in ("always", "autotune") or (wanted == "auto" and worth)

    def warm_up(self) -> None:
        """Compile what will be compiled and record what will be replayed, so that no iteration has to."""
        began, views = time.perf_counter(), self.subject.views
        batches = self.guidance.batches(views)
        if self.score_model.compiled:
            self.score_model.warm_up(views, batches)
        if self._records():
            self._record(views, batches)
        if self.score_model.compiled or self._records():
            self.warm_up_seconds = round(time.perf_counter() - began, 2)

    def _record(self, views: int, batches: set[int]) -> None:
        is_picture = self.config.ModelParams.representation == "image"
        encodes = not (is_picture and self.config.ImageParams.particle == "latent")
        if self.score_model.record(views, batches, encodes=encodes):
            self.guidance.record(views)
            self.subject.record()
        else:
            log.info("memory is too short for CUDA graphs: none is recorded")

    def _records(self) -> bool:
        """Whether kernels are replayed as CUDA graphs: in one process, because recording hears of others' messages."""
        wanted = self.config.HardwareParams.graphs == "auto"
        return wanted and self.device.type == "cuda" and processes() == 1

    def memory(self) -> dict[str, int]:
        """Bytes that an iteration will need, by part, counted without running one."""
        views = self.subject.views
        branches = -(-max(self.guidance.batches(views)) // views)
        model = self.score_model.estimate_bytes(views, branches)
        return {"diffusion model": model, **self.subject.memory()}

    def advice(self) -> str:
        """What to say and try when the device is full."""
        names, used = list(PLANS), self.score_model.plan.name
        smaller = names[max(names.index(used) - 1, 0)]
        tries = [] if used == smaller else [f"HardwareParams.memory={smaller} (now {used})"]
        return f"{fullness(self.device)}; try {', '.join([*tries, *self.subject.savings()])}, then --resume"

    def pictures(self) -> dict[str, Float[Tensor, "B _ H W"]]:
        """Rows of one picture, a column for each view: what was last shown, and what the prior made of it.

        The prior's x̂_0 is that without and that with guidance; before the first iteration there is none.
        """
        rows = self.subject.pictures()
        if self._guided is not None:
            size = next(iter(rows.values())).shape[-2:]
            predicted = self.guidance.predicted_images(self._guided)
            names = ("prior without guidance", "prior with guidance")
            rows |= {
                name: F.interpolate(image, size, mode="bilinear")
                for name, image in zip(names, predicted, strict=True)
            }
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs to go on with the same numbers."""
        self._count_skipped()
        return {
            "step": self.step,
            "skipped": self.skipped,
            "subject": self.subject.state_dict(),
            "guidance": self.guidance.state_dict(),
            "guidance_optimizer": self.guidance.optimizer.state_dict() if self.guidance.optimizer else None,
            "rng": self.rng.get_state(),
            "noise_rng": self.noise_rng.get_state(),
            "evaluations": self.score_model.evaluations.state_dict(),
            "seeds": self._seeds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            UserError: the state belongs to other settings.
        """
        try:
            state = {"subject": state, **state}  # earlier checkpoints had it all on one level,
            state["evaluations"] = {"pretraining": 0, **state["evaluations"]}  # and none of these
            check_form(state, self._form())
            self.subject.load_state_dict(state["subject"])
            self.guidance.load_state_dict(state["guidance"])
            if self.guidance.optimizer is not None:
                load_moments(self.guidance.optimizer, state["guidance_optimizer"])
            self.rng.set_state(state["rng"])
            self.noise_rng.set_state(state["noise_rng"])
            self.score_model.evaluations.load_state_dict(state["evaluations"])
            self.step, self.skipped = state["step"], state["skipped"]
            self.other_seeds = None if "seeds" not in state else state["seeds"] != self._seeds
        except (LookupError, ValueError, RuntimeError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"checkpoint: does not fit these settings ({first_line(error)}); resume with the settings that it was "
                "made with"
            ) from error

    @property
    def _seeds(self) -> list[int]:
        return [self.config.seed, self.config.GuidanceParams.noise_seed]

    def reseed(self) -> None:
        """Go on with other draws: those that the settings' seeds give at this iteration."""
        self.rng.manual_seed(self.config.seed + self.step)
        self.noise_rng.manual_seed(self.config.GuidanceParams.noise_seed + self.step)
        self.skipped = 0

    def _form(self) -> dict[str, Any]:
        """What a checkpoint holds, but for the optimisers, which look after that themselves."""
        form = self.state_dict()
        del form["guidance"], form["guidance_optimizer"], form["seeds"]  # earlier checkpoints have no seeds
        return form


def representation(config: Config) -> Build:
    """The kind of subject that `ModelParams.representation` names."""
    match config.ModelParams.representation:
        case "image":
            from dreammapping.picture import Picture

            return Picture
        case "grid" | "hash":
            from dreammapping.field import Field

            return Field
        case _:
            from dreammapping.gaussians import Gaussians

            return Gaussians


def start(config: Config, build: Build | None = None, load: Load | None = None) -> Optimization:
    """An `Optimization` that is ready to iterate: loaded, compiled where it is compiled.

    Raises:
        UserError: as `Optimization`; a model is missing (all that is missing is named at once, before anything is
            loaded); or the device is too full for the models.
    """
    warn_of_pace(config)
    warn_of_unknown_prompt(config.GuidanceParams)
    try:
        problems = missing_models(config)
        if problems:
            raise UserError("; ".join(problems))
        optimization = Optimization(config, build=build, load=load)
        optimization.warm_up()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"device {config.device}: {fullness(choose_device(config.device))} and does not hold the models; end what "
            "else uses it, or try HardwareParams.memory=8gb, or device=cpu"
        ) from error
    return optimization
