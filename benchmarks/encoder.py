"""The image encoder eager and compiled, and the operator by how it is run: `python -m benchmarks.encoder`.

Times forward and backward of the encoder of Stable Diffusion 2.1 base (random weights: what it takes does not depend
on them), lists the kernels that each form runs, by time, and those among them that only change a tensor's layout. Then
a step of the degradation operator, eager, compiled and as a CUDA graph, and a large product of matrices, which is the
most that the device can do. If one fails, its row says so, and the rest goes on.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.command import RESULTS, finish_measurement
from benchmarks.random_model import SD2_BASE
from benchmarks.stopwatch import Stopwatch
from guidance.degradation import ULite
from guidance.prior.attention import set_wide_heads
from guidance.prior.channels_last import backend
from guidance.prior.group_norm import adopt
from utils.errors import UserError
from utils.parser import Parser

WARM_UP, KERNELS = 3, 16
LAYOUT_WORDS = ("nchwtonhwc", "nhwctonchw", "transpose", "copy", "convert")
"""In the names of kernels that move numbers and compute none; `_to_copy` in those that PyTorch generates is a cast."""


def encoder_of(settings: Path, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The encoder of a family's AutoencoderKL, frozen, with random weights."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    kind = diffusers.AutoencoderKL
    with torch.device(device):
        encoder = kind.from_config(kind.load_config(settings / "vae")).encoder
    return encoder.to(dtype).eval().requires_grad_(False)


@dataclass(frozen=True)
class Form:
    """A way to run the encoder.

    Attributes:
        search: cuDNN searches for algorithms. how: eager, plain (compiled, with PyTorch's own norms and attention), or
            compiled (with those of `guidance.prior`, as in a run).
    """

    name: str
    search: bool = False
    how: str = "eager"


def forms(device: torch.device, compiled: bool) -> Iterator[Form]:
    """What is measured."""
    yield Form("eager")
    if device.type == "cuda":
        yield Form("eager, search", search=True)
    if compiled:
        yield Form("compiled as PyTorch does", search=True, how="plain")
        yield Form("compiled as in a run", search=True, how="compiled")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every form, its kernels, and those of the operator."""
    device = torch.device(options.device)
    encoder: dict[str, Any] = {}
    for form in forms(device, not options.eager):
        with torch.backends.cudnn.flags(enabled=True, benchmark=form.search):  # its defaults disable cuDNN
            encoder[form.name] = _or_why(lambda: _encoder_row(options, device, form))  # noqa: B023
        sys.stderr.write(_line(form.name, encoder[form.name]) + "\n")
    steps = operators(device, not options.eager)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "images": [options.views, 3, options.size, options.size],
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "encoder": encoder,
        "operator": {
            name: _or_why(lambda: step_time(make, options, device))  # noqa: B023
            for name, make in steps.items()
        },
        "product_tflops": _product(device),
    }


def _or_why(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a measurement gives, or why it gives nothing: one form that a library refuses ends no other."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - whatever compilers and drivers raise
        return {"failed": (str(error) or type(error).__name__).splitlines()[0][:160]}


def _encoder_row(options: argparse.Namespace, device: torch.device, form: Form) -> dict[str, Any]:
    last = torch.channels_last
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    encoder = encoder_of(options.settings, device, dtype).to(memory_format=last)
    if form.how == "compiled":
        adopt(encoder)
        set_wide_heads(encoder, fused=device.type == "cpu")
    if form.how != "eager":
        encoder.compile(backend=backend(trained=True) if form.how == "compiled" else "inductor")
    images = torch.rand(options.views, 3, options.size, options.size, device=device, dtype=dtype)
    images = images.to(memory_format=last).requires_grad_()

    def both() -> None:
        images.grad = None
        encoder(images).sum().backward()

    @torch.no_grad()
    def forward() -> None:
        encoder(images)

    began = time.perf_counter()
    both()
    return {
        "first_seconds": round(time.perf_counter() - began, 2),
        "forward_ms": median_ms(forward, options.repeats, device),
        "both_ms": median_ms(both, options.repeats, device),
        "kernels": kernels(both, device),
    }


def median_ms(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Milliseconds of one call, the median after some that are not counted."""
    for _ in range(min(WARM_UP, repeats)):
        function()
    watch = Stopwatch(device)
    for _ in range(repeats):
        with watch.timed("call"):
            function()
    return 1000.0 * statistics.median(watch.seconds["call"])


def kernels(function: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """What one call runs: milliseconds in all, of what changes layouts, and of each kernel, the longest first.

    A kernel's name says which of cuDNN's algorithms was taken. On a CPU operators stand in the place of kernels.
    """
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        function()
        if cuda:
            torch.cuda.synchronize(device)
    times = [
        (
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1000.0,
            event.count,
            event.key,
        )
        for event in seen.key_averages()
    ]
    times = sorted((each for each in times if each[0] > 0), reverse=True)
    return {
        "total_ms": sum(ms for ms, _, _ in times),
        "layout_ms": sum(ms for ms, _, name in times if is_of_layout(name)),
        "longest": [{"ms": ms, "calls": calls, "name": name[:110]} for ms, calls, name in times[:KERNELS]],
    }


def is_of_layout(kernel: str) -> bool:
    """Whether a kernel of this name only moves numbers to another layout or type."""
    return not kernel.startswith("triton_") and any(word in kernel.lower() for word in LAYOUT_WORDS)


def operators(device: torch.device, compiled: bool) -> dict[str, Callable[[Tensor, Tensor], nn.Module]]:
    """The degradation operator by how it is run; a graph replays what was captured, so that nothing is launched."""

    def eager(_latents: Tensor, _timesteps: Tensor) -> nn.Module:
        return ULite().to(device)

    def compile_(latents: Tensor, timesteps: Tensor) -> nn.Module:
        operator = eager(latents, timesteps)
        operator.compile()
        return operator

    def graph(latents: Tensor, timesteps: Tensor) -> nn.Module:
        return torch.cuda.make_graphed_callables(eager(latents, timesteps), (latents, timesteps))  # pyright: ignore[reportReturnType]

    found: dict[str, Callable[[Tensor, Tensor], nn.Module]] = {"eager": eager}
    if compiled:
        found["compiled"] = compile_
    if device.type == "cuda":
        found["CUDA graph"] = graph
    return found


def step_time(
    make: Callable[[Tensor, Tensor], nn.Module], options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Milliseconds of forward, backward and Adam's step."""
    side = options.size // 8
    latents, noise = torch.randn(2, options.views, 4, side, side, device=device)
    timesteps = torch.full((options.views,), 300, device=device)
    operator = make(latents, timesteps)
    optimizer = torch.optim.Adam(operator.parameters(), lr=0.01, fused=True)

    def step() -> None:
        F.mse_loss(operator(latents, timesteps), noise).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"both_ms": median_ms(step, options.repeats, device)}


def _product(device: torch.device) -> float:
    """10^12 operations a second of a large product in half precision (a small float32 one on a CPU)."""
    side, dtype = (8192, torch.float16) if device.type == "cuda" else (256, torch.float32)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / (median_ms(lambda: matrix @ matrix, 5, device) * 1e9)


def _line(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{name:34}failed: {row['failed']}"
    forward = f"{row['forward_ms']:9.1f}" if "forward_ms" in row else 9 * " "
    layout = f"{row['kernels']['layout_ms']:9.1f}" if "kernels" in row else ""
    return f"{name:34}{forward}{row['both_ms']:9.1f}{layout}"


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    head = f"{result['device']}, encoder of {'x'.join(map(str, result['images']))}, ms"
    lines = [head, f"{'':34}{'forward':>9}{'f + b':>9}{'layout':>9}"]
    lines += [_line(name, row) for name, row in result["encoder"].items()]
    lines += ["", "operator: forward, backward, Adam"]
    lines += [_line(name, row) for name, row in result["operator"].items()]
    lines += ["", f"product of matrices: {result['product_tflops']:.3g} TFLOP/s"]
    for name, row in result["encoder"].items():
        for kernel in row.get("kernels", {}).get("longest", [])[:8]:
            lines.append(f"{name:34}{kernel['ms']:9.2f} ms x{kernel['calls']:4} {kernel['name']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.encoder", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument("--settings", type=Path, default=SD2_BASE, help="a family's settings")
    parser.add_argument("--size", type=int, default=512, help="pixels a side, a multiple of 64 (default 512)")
    parser.add_argument("--views", type=int, default=4, help="images in a batch (default 4)")
    parser.add_argument("--repeats", type=int, default=12, help="calls that are timed (default 12)")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--json", type=Path, default=RESULTS / "encoder.json", help="where the numbers go")
    options = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        if min(options.views, options.repeats) < 1 or options.size < 64 or options.size % 64:
            raise UserError(
                "--views, --repeats, --size: expected at least 1, 1 and a multiple of 64, got "
                f"{options.views}, {options.repeats} and {options.size}; 4, 12 and 512 are usual"
            )
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--device: expected cpu where torch finds no CUDA device, got {options.device}; try --device cpu"
            )
        return measure(options)

    return finish_measurement(measured, table, options.json)


if __name__ == "__main__":
    sys.exit(main())
