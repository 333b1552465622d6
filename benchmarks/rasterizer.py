"""What rendering and the neighbour search cost: `python -m benchmarks.rasterizer`.

Object-like scenes, one view each (four on a GPU): our kernel, the PyTorch reference and, on a GPU, gsplat if it is
installed, alternating in one process; medians are compared. All parameters get gradients, from all images.

The arithmetic bound, on the CPU, is what the blended pairs of Gaussian and pixel cost at the machine's peak: 15 fused
multiply-adds a pair forward and 28 more backward. The peak is that of a matrix product on the same threads.
"""

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diff_gaussian_rasterization import cpu, set_num_threads
from scipy.spatial import cKDTree
from simple_knn._C import distCUDA2

from benchmarks.command import RESULTS, finish_measurement
from benchmarks.splat_scenes import blended_pairs, gsplat, object_scene, ours
from utils.errors import UserError
from utils.parser import Parser
from utils.peak_memory import forget_peak, peak_memory, present_memory

FORWARD_FMAS, BACKWARD_FMAS = 15, 28
REFERENCE_REPEATS = 2


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call; waits for the device at both ends."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    function()
    return now() - start


def medians(
    functions: dict[str, Callable[[], object]], repeats: dict[str, int], device: torch.device
) -> dict[str, float]:
    """Median wall time by name; calls alternate, and a first one of each is not counted."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(max(repeats.values())):
        for name, function in functions.items():
            if turn < repeats[name]:
                times[name].append(seconds(function, device))
    return {name: statistics.median(values) for name, values in times.items()}


def fmas_per_second(device: torch.device) -> float:
    """Of a float32 matrix product, the best of a few."""
    side = 1024 if device.type == "cpu" else 8192
    a = torch.rand(side, side, device=device)
    return side**3 / min(seconds(lambda: a @ a, device) for _ in range(12))


def added_memory(count: int, size: int, views: int, device: torch.device, backend: str) -> float:
    """Bytes that a first forward and backward pass adds to what the scene and the images' gradients hold."""
    scene = object_scene(count, size, views, device)
    # Libraries are loaded and threads started; a GPU's own first pass also compiles.
    ours(scene if device.type == "cuda" else object_scene(100, 64, 1, device), backend, backward=True)
    if not forget_peak(device):
        return math.nan
    before = present_memory(device)
    ours(scene, backend, backward=True)
    return peak_memory(device) - before


def measure_scene(
    count: int, size: int, views: int, device: torch.device, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One scene, a row for each number of threads: seconds of each renderer, and what follows from them.

    Calls on one thread and on more alternate like all others, so that what they gain is no matter of the hour.
    """
    scene = object_scene(count, size, views, device)
    kernel = "cuda" if device.type == "cuda" else "cpu"
    threads = options.threads if device.type == "cpu" else options.threads[-1:]
    peers: dict[str, Callable[[bool], None]] = {}
    if device.type == "cuda" and find_spec("gsplat"):
        peers["gsplat"] = lambda backward: gsplat(scene, backward)
    if device.type == "cpu" and not options.no_reference:
        peers["reference"] = lambda backward: ours(scene, "torch", backward)

    def on(number: int) -> Callable[[bool], None]:
        def draw(backward: bool) -> None:
            set_num_threads(number)
            ours(scene, kernel, backward)

        return draw

    kernels = {_threads(number): on(number) for number in threads}
    repeats = {
        name: REFERENCE_REPEATS if name == "reference" else options.repeats for name in peers | kernels
    }
    forward = medians({n: lambda f=f: f(False) for n, f in (kernels | peers).items()}, repeats, device)
    both = medians({n: lambda f=f: f(True) for n, f in (kernels | peers).items()}, repeats, device)
    # Counting takes a CPU a minute where a card draws in milliseconds, so a card has no bound of its own.
    pairs = blended_pairs(scene) if device.type == "cpu" else None
    rows = []
    for name, number in zip(kernels, threads, strict=True):
        torch.set_num_threads(number)
        peak = fmas_per_second(device)
        others = [_threads(threads[0]), *peers] if number != threads[0] else peers
        rows.append({
            "gaussians": count,
            "size": size,
            "views": views,
            "threads": number,
            "blended_pairs": pairs,
            "forward": forward[name],
            "forward_backward": both[name],
            "pairs_per_second": pairs and pairs / both[name],
            "fmas_per_second": peak,
            "over_bound_forward": pairs and forward[name] * peak / (FORWARD_FMAS * pairs),
            "over_bound": pairs and both[name] * peak / ((FORWARD_FMAS + BACKWARD_FMAS) * pairs),
            "speedups": {other: both[other] / both[name] for other in others},
            "peak_memory": _added_memory_alone(count, size, views, device, kernel, number),
        })  # fmt: skip
    return rows


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _added_memory_alone(
    count: int, size: int, views: int, device: torch.device, kernel: str, threads: int
) -> float:
    """`added_memory` in a process of its own."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=set_num_threads, initargs=(threads,)
    ) as fresh:
        return fresh.submit(added_memory, count, size, views, device, kernel).result()


def measure_neighbors(count: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """distCUDA2 beside scipy's tree, built and queried on all cores."""
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    array, placed = points.double().numpy(), points.to(device)
    functions = {
        "distCUDA2": lambda: distCUDA2(placed),
        "cKDTree": lambda: cKDTree(array).query(array, k=4, workers=-1),
    }
    times = medians(functions, dict.fromkeys(functions, repeats), device)
    return {
        "points": count,
        "threads": torch.get_num_threads(),
        **times,
        "ratio": times["distCUDA2"] / times["cKDTree"],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    named = {"cpu": model, "cores": os.cpu_count(), "instruction_sets": cpu.instruction_sets()}
    named["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "as built")
    if device.type == "cuda":
        named["gpu"] = torch.cuda.get_device_name(device)
    return named | {"torch": torch.__version__, "python": platform.python_version()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All scenes on all numbers of threads."""
    device = torch.device(options.device)
    views, scenes, neighbors = (1 if device.type == "cpu" else 4), [], []
    for size in options.sizes:
        for count in options.gaussians:
            torch.set_num_threads(options.threads[-1])
            rows = measure_scene(count, size, views, device, options)
            sys.stderr.write("".join(_row(row) + "\n" for row in rows))
            scenes += rows
    for threads in options.threads if device.type == "cpu" else options.threads[-1:]:
        torch.set_num_threads(threads)
        neighbors.append(measure_neighbors(options.points, options.repeats, device))
    return {"machine": machine(device), "repeats": options.repeats, "scenes": scenes, "neighbors": neighbors}


HEADER = (
    "| Gaussians, px, views | threads | pairs | forward | f + b | pairs/s | over bound f / f + b | memory | against |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def _row(scene: dict[str, Any]) -> str:
    per_view = 1000.0 / scene["views"]
    bound = [
        scene[name] for name in ("blended_pairs", "pairs_per_second", "over_bound_forward", "over_bound")
    ]
    pairs, rate, forward, both = bound if scene["blended_pairs"] is not None else [math.nan] * 4
    against = ", ".join(f"{ratio:.3g}x {name}" for name, ratio in scene["speedups"].items()) or "-"
    cells = [
        f"{scene['gaussians']}, {scene['size']}, {scene['views']}",
        f"{scene['threads']}",
        f"{pairs / 1e6:.2f} M",
        f"{per_view * scene['forward']:.1f} ms",
        f"{per_view * scene['forward_backward']:.1f} ms",
        f"{rate / 1e6:.0f} M",
        f"{forward:.0f} / {both:.0f}",
        f"{scene['peak_memory'] / 1e6:.0f} MB",
        against,
    ]
    return f"| {' | '.join(cells)} |"


def table(result: dict[str, Any]) -> str:
    """The result in Markdown; times are for one view."""
    named = result["machine"]
    lines = [
        f"{named.get('gpu', named['cpu'])}, torch {named['torch']}, medians of {result['repeats']}",
        "",
        HEADER,
    ]
    lines += [_row(scene) for scene in result["scenes"]]
    for n in result["neighbors"]:
        lines += [
            "",
            f"distCUDA2, {n['points']} points, {_threads(n['threads'])}: {1000 * n['distCUDA2']:.0f} ms, "
            f"{n['ratio']:.2f} times scipy's tree on all cores ({1000 * n['cKDTree']:.0f} ms)",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="python -m benchmarks.rasterizer", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--gaussians", type=int, nargs="+", help="default 10000 50000, on a GPU also 100000 500000"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], help="pixels per side (default 256 512)"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default 1 2)")
    parser.add_argument(
        "--points", type=int, default=100_000, help="points of the neighbour search (default 100000)"
    )
    parser.add_argument("--repeats", type=int, default=30, help="calls of each kernel (default 30)")
    parser.add_argument("--no-reference", action="store_true", help="leave the slow PyTorch reference out")
    parser.add_argument("--json", type=Path, default=RESULTS / "rasterizer.json", help="where the numbers go")
    options = parser.parse_args(argv)

    def measured() -> dict[str, Any]:
        positive = [
            *options.threads,
            *options.sizes,
            options.points,
            options.repeats,
            *(options.gaussians or []),
        ]
        if min(positive) < 1:
            raise UserError(
                f"--threads, --sizes, --gaussians, --points, --repeats: expected at least 1, got {min(positive)}; "
                "raise it"
            )
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(
                f"--device: expected cpu where torch finds no CUDA device, got {options.device}; try --device cpu"
            )
        if options.gaussians is None:
            options.gaussians = [10_000, 50_000] + ([100_000, 500_000] if options.device != "cpu" else [])
        return measure(options)

    return finish_measurement(measured, table, options.json)


if __name__ == "__main__":
    sys.exit(main())
