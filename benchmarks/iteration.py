"""What an iteration costs above what no method can avoid: `python -m benchmarks.iteration`.

The floor is the U-Net's forward pass for classifier-free guidance on the batch, and the image encoder's forward
and backward pass, at the run's own batch and sizes. Floor and whole iterations alternate in one process;
medians are compared. On a card some of each run in a row, as in a training: the host prepares one while the card
computes another, and a clock that waited for each would count its time as well.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import dreammapping.field
import dreammapping.gaussians
from arguments import Config, load
from benchmarks.command import RESULTS, finish_measurement
from benchmarks.stopwatch import Stopwatch
from dreammapping.optimization import Optimization, start
from utils.errors import UserError
from utils.parser import Parser
from utils.repository import QUICKSTART

WARM_UP = 3
IN_A_ROW = 5
"""How many iterations a card computes between two readings of the clock."""


class Floor:
    """The unavoidable part of an iteration, on random tensors of the run's shapes."""

    def __init__(self, optimization: Optimization, batch: int) -> None:
        self.score_model, self.batch = optimization.score_model, batch
        self.rng = torch.Generator().manual_seed(0)
        device, size = optimization.device, self.score_model.image_size
        self.images = torch.rand((batch, 3, *size), generator=self.rng).to(device).requires_grad_()
        self.timesteps = torch.full((2 * batch,), 500, device=device)
        text = optimization.subject.prompts(torch.zeros(batch, device=device))
        self.text = torch.cat([text.positive, text.base])

    def encode(self) -> torch.Tensor:
        """The encoder, forward and backward; returns the latents."""
        latents = self.score_model.encode_images(self.images, self.rng)
        latents.backward(torch.ones_like(latents))
        self.images.grad = None
        return latents.detach()

    @torch.no_grad()
    def predict(self, latents: torch.Tensor) -> None:
        """The U-Net, forward, for the text and for the base of every view."""
        self.score_model.predict_noise(torch.cat([latents, latents]), self.timesteps, self.text)


def measure(config: Config, iterations: int) -> dict[str, Any]:
    """Medians in seconds over `iterations` of each, their ratio, and where an iteration's time goes."""
    optimization = start(config)
    for step in range(1, WARM_UP + 1):
        optimization.iteration(step)
    floor = Floor(optimization, config.GuidanceParams.C_batch_size)
    watch = Stopwatch(optimization.device)
    first, row = WARM_UP + 1, min(IN_A_ROW if optimization.device.type == "cuda" else 1, iterations)
    iterations -= iterations % row
    with _captured(optimization.score_model, "predict_noise") as calls:
        for begin in range(first, first + iterations, row):
            with watch.timed("encoder, forward and backward", row):
                latents = [floor.encode() for _ in range(row)]
            with watch.timed("U-Net for CFG, forward", row):
                for each in latents:
                    floor.predict(each)
            with watch.timed("iteration", row):
                for step in range(begin, begin + row):
                    optimization.iteration(step)
    evaluations = sum(len(latents) for latents, *_ in calls) / iterations - 2 * floor.batch
    parts = _break_down(optimization, range(first + iterations, first + 2 * iterations))
    unavoidable = {name: watch.median(name) for name in watch.seconds if name != "iteration"}
    return {
        "settings": config.ModelParams.workspace,
        "device": str(optimization.device),
        "threads": torch.get_num_threads(),
        "batch": floor.batch,
        "evaluations_per_iteration": evaluations,
        "iterations": iterations,
        "in_a_row": row,
        "warm_up_seconds": optimization.warm_up_seconds,
        "floor_parts": unavoidable,
        "floor": sum(unavoidable.values()),
        "iteration": watch.median("iteration"),
        "ratio": watch.median("iteration") / sum(unavoidable.values()),
        "iteration_parts": parts,
    }


def _break_down(optimization: Optimization, steps: range) -> dict[str, float]:
    """Mean seconds of an iteration's parts (a pass of its own, because the stopwatch makes a GPU wait)."""
    watch = Stopwatch(optimization.device)
    is_field = optimization.config.is_field
    renderer = dreammapping.field if is_field else dreammapping.gaussians
    places: list[tuple[Any, str, str]] = [
        (renderer, "render", "render, forward"),
        (optimization.score_model, "encode_images", "encoder, forward"),
        (optimization.score_model, "predict_noise", "U-Net, forward"),
        (optimization.subject, "grow", "growth, occupancy" if is_field else "density control"),
        (torch.autograd, "backward", "backward, all of it"),
    ]
    if hasattr(optimization.guidance, "mapped"):
        places.append((optimization.guidance, "mapped", "operator, forward"))
    with ExitStack() as stack:
        for owner, name, title in places:
            stack.enter_context(_replaced(owner, name, _clocked(getattr(owner, name), title, watch)))
        for step in steps:
            with watch.timed("iteration"):
                optimization.iteration(step)
    parts = {name: sum(seconds) / len(steps) for name, seconds in watch.seconds.items()}
    total = parts.pop("iteration")
    return parts | {"the rest": total - sum(parts.values())}


def _clocked(function: Callable[..., Any], title: str, watch: Stopwatch) -> Callable[..., Any]:
    def clocked(*arguments: Any, **options: Any) -> Any:
        with watch.timed(title):
            return function(*arguments, **options)

    return clocked


@contextmanager
def _captured(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of every call within the block."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    def capture(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    with _replaced(owner, name, capture):
        yield calls


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` within the block."""
    own = name in vars(owner)
    previous = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, previous)
        else:
            delattr(owner, name)


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    lines = [
        f"{result['settings']}: batch {result['batch']}, {result['evaluations_per_iteration']:.1f} U-Net "
        f"evaluations an iteration, {result['device']}, {result['threads']} threads, "
        f"medians of {result['iterations']}",
        "",
        *(_line(name, seconds) for name, seconds in result["floor_parts"].items()),
        _line("floor", result["floor"]),
        _line("iteration", result["iteration"]),
        f"{'iteration / floor':34}{result['ratio']:10.2f}",
        "",
        "where an iteration goes (means)",
        *(_line(name, seconds) for name, seconds in result["iteration_parts"].items()),
    ]
    return "\n".join(lines)


def _line(name: str, seconds: float) -> str:
    return f"{name:34}{1000.0 * seconds:10.1f} ms"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.iteration", description=__doc__)
    parser.add_argument("--opt", type=Path, default=QUICKSTART, help="settings to measure")
    parser.add_argument(
        "--iterations", type=int, default=40, help="floors and iterations to time (default 40)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "iteration.json", help="where the numbers go")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    def measured() -> dict[str, Any]:
        if options.iterations < 1:
            raise UserError(f"--iterations: expected at least 1, got {options.iterations}; 40 is usual")
        config, _ = load(["--opt", str(options.opt), *options.overrides])
        return measure(config, options.iterations)

    return finish_measurement(measured, table, options.json)


if __name__ == "__main__":
    sys.exit(main())
