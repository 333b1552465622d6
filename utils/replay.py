"""Functions of tensors that a card runs as one CUDA graph: recorded once for each form of input, then launched at once.

What an eager function launches kernel by kernel, at some microseconds of the host each, a graph launches together. It
runs the recorded kernels on the recorded places in memory and no Python: so a function must depend on its inputs and
its module's parameters alone, and whatever it would decide by is decided when it is recorded.
"""

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

log = logging.getLogger(__name__)

Inputs = tuple[Tensor, ...]
AGREEMENT = 0.05
"""By how much, relative to its norm, a graph's result may differ from the function's own. Kernels that were chosen
anew round otherwise; a graph that holds on to old numbers is wrong by about 1, or by what `STEP` makes of it."""
STEP, LEAST = 0.2, 0.1
"""How far parameters are moved for the check: relative to their size, which counts as `LEAST` where it is less."""


class _Open:
    """A result whose gradient is still to come."""

    done = False


class Replayed:
    """A function, or a module with its parameters, that is replayed for inputs of the forms that were recorded.

    Other inputs, and those that come while the gradient of an earlier result is still to be taken (a graph has one
    place for what its backward pass needs), are computed by the function itself. A gradient of parameters lies in a
    place of the graph, too: it is to be used, and let go of, before the next one is taken.

    Args:
        name: what a warning calls it.
        function: tensors to a tensor, with gradient to the inputs that ask for it, and to a module's parameters.
    """

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self.name, self.function = name, function
        self._graphs: dict[Any, Callable[..., Tensor]] = {}
        self._pool: Any = None
        self._open: weakref.ref[_Open] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        graph = self._graphs.get(_form(inputs))
        if graph is None or self._is_open():
            return self.function(*inputs)
        output = graph(*inputs).clone()  # the next replay writes into the same place
        if output.requires_grad:
            self._watch(output)
        return output

    def record(self, sample: Callable[[], Inputs]) -> bool:
        """Be replayed for inputs of this form from now on, if that gives the function's own numbers; else warn.

        Args:
            sample: makes inputs, other ones each time, of the form of those to come: shapes, types, device, which of
                them ask for a gradient. Gradients are taken or not as where this is called.

        Returns:
            Whether it is.

        Raises:
            UserError: recording failed. A run cannot go on: a capture that breaks off leaves PyTorch's stream and
                allocator in the middle of it.
        """
        inputs = sample()
        try:
            graph = self._recorded(inputs)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"HardwareParams.graphs: {self.name} cannot be recorded as a CUDA graph ({reason}); start again with "
                "HardwareParams.graphs=never"
            ) from error
        with _moved(self._trained()):
            # twice: the first replay may leave something for the second
            distances = torch.stack([self._distance(graph, sample()) for _ in range(2)])
        far = float(distances.max())  # NaN if any is
        if not far <= AGREEMENT:
            log.warning("%s runs without a CUDA graph: its results were others (by %.2g)", self.name, far)
            return False
        self._graphs[_form(inputs)] = graph
        return True

    def _recorded(self, inputs: Inputs) -> Callable[..., Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        held = _Held(self.function) if isinstance(self.function, nn.Module) else self.function
        with torch.cuda.device(inputs[0].device):  # whose streams are recorded
            return torch.cuda.make_graphed_callables(held, inputs, pool=self._pool)  # pyright: ignore[reportReturnType]

    def _trained(self) -> list[Tensor]:
        parameters = self.function.parameters() if isinstance(self.function, nn.Module) else ()
        return [each for each in parameters if each.requires_grad]

    def _distance(self, graph: Callable[..., Tensor], inputs: Inputs) -> Tensor:
        """How far the graph's result and gradients are from the function's, relative to their norms: the largest."""
        wanted = [*(each for each in inputs if each.requires_grad), *self._trained()]

        def results(function: Callable[..., Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            output = function(*inputs)
            taken = output.requires_grad
            gradients = torch.autograd.grad(output.square().sum(), wanted) if taken else ()
            return [output.detach().float().clone()], [each.float().clone() for each in gradients]

        pairs = zip(results(graph), results(self.function), strict=True)
        return torch.stack([_apart(found, own) for found, own in pairs if own]).max()

    def _is_open(self) -> bool:
        opened = self._open() if self._open is not None else None
        return opened is not None and not opened.done

    def _watch(self, output: Tensor) -> None:
        """Remember the result until its gradient has come, or nobody can ask for it any more."""
        opened = _Open()

        def close(_gradient: Tensor) -> None:
            opened.done = True

        output.register_hook(close)
        self._open = weakref.ref(opened)


class _Held(nn.Module):
    """A module behind a forward of its own: what records it puts its graph in that one's place."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*inputs)


@contextmanager
def _moved(parameters: list[Tensor]) -> Iterator[None]:
    """Within the block parameters are others than when a graph was recorded, as they will be once they are trained.

    A graph that holds on to old ones then gives other results, and so does what zeros had hidden from the result.
    """
    kept = [each.detach().clone() for each in parameters]
    with torch.no_grad():
        for each in parameters:
            rng = torch.Generator(each.device).manual_seed(0)
            step = torch.randn(each.shape, generator=rng, device=each.device, dtype=each.dtype)
            each += STEP * each.square().mean().sqrt().clamp_min(LEAST) * step
    try:
        yield
    finally:
        with torch.no_grad():
            for each, value in zip(parameters, kept, strict=True):
                each.copy_(value)


def _apart(found: list[Tensor], own: list[Tensor]) -> Tensor:
    """How far tensors are from a function's own, the largest of them: relative to a tensor's norm, or where that is
    less, to a tenth of what is usual among them, because some gradients are nothing but rounding."""
    norms = torch.stack([each.norm() for each in own])
    apart = torch.stack([(mine - its).norm() for mine, its in zip(found, own, strict=True)])
    return (apart / norms.maximum(0.1 * norms.square().mean().sqrt()).clamp_min(1e-12)).max()


def _form(inputs: Inputs) -> Any:
    """What a graph is recorded for."""
    taken = torch.is_grad_enabled()
    return taken, tuple(
        (each.shape, each.dtype, each.device, taken and each.requires_grad) for each in inputs
    )
