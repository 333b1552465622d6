"""What rendering and the neighbour search cost: `python -m benchmarks.rasterizer`.

Object-like scenes, one view each (four on a GPU): our kernel, the PyTorch reference and, on a GPU, gsplat where it is
installed, alternating in one process; medians are compared. Gradients go to all parameters, from all images.

The arithmetic bound is what the blended pairs of Gaussian and pixel cost at the machine's peak: 15 fused
multiply-adds a pair forward and 28 more backward. The peak is that of a matrix product on the same threads.

On a CPU set `OMP_WAIT_POLICY=passive`: torch's threads otherwise spin for milliseconds after each of its operations, on
the cores that the kernel is then measured on.
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
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diff_gaussian_rasterization import cpu, rasterize, reference, set_num_threads
from diff_gaussian_rasterization.inputs import gaussians as checked_gaussians
from diff_gaussian_rasterization.inputs import views as checked_views
from scipy.spatial import cKDTree
from simple_knn._C import distCUDA2
from torch import Tensor

from benchmarks.cells import RESULTS
from benchmarks.command import finish_measurement
from utils.errors import UserError

FORWARD_FMAS, BACKWARD_FMAS = 15, 28
RADIUS = 12.0
"""Mean radius of a Gaussian, pixels (three standard deviations)."""
DISTANCE, FOV = 3.0, 0.6
REFERENCE_REPEATS = 2


@dataclass(frozen=True)
class Scene:
    """`parameters` and `cameras` are keyword arguments of `rasterize`."""

    parameters: dict[str, Tensor]
    cameras: dict[str, Any]

    @property
    def views(self) -> int:
        return len(self.cameras["viewmatrix"])


def object_scene(count: int, size: int, views: int, device: torch.device) -> Scene:
    """Four lumps that cover about half of the frame, most Gaussians nearly opaque or faint, harmonics of degree 0."""
    rng = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    centers = torch.tensor([[0.3, 0.3, 0.25], [-0.3, 0.25, -0.2], [0.25, -0.35, -0.1], [-0.25, -0.2, 0.3]])
    lump = torch.randint(4, (count,), generator=rng)
    faint = torch.rand(count, 1, generator=rng) < 0.5
    pixel = 2 * DISTANCE * math.tan(FOV / 2) / size
    parameters = {
        "means3D": centers[lump] + 0.14 * normal(count, 3),
        "opacities": (torch.sigmoid(normal(count, 1)) * torch.where(faint, 0.25, 1.0)).clamp_max(0.985),
        "shs": 0.5 * normal(count, 1, 3),
        "scales": RADIUS / 3.6 * pixel * torch.exp(0.3 * normal(count, 3)),
        "rotations": torch.nn.functional.normalize(normal(count, 4)),
    }
    view, clip, center = zip(*(_camera(2 * math.pi * i / views + 0.4) for i in range(views)), strict=True)
    tangent = torch.full((views,), math.tan(FOV / 2))
    cameras = {
        "viewmatrix": torch.stack(view),
        "projmatrix": torch.stack(clip),
        "campos": torch.stack(center),
        "tanfovx": tangent,
        "tanfovy": tangent,
        "bg": torch.ones(views, 3),
    }
    return Scene(
        {name: value.to(device).requires_grad_() for name, value in parameters.items()},
        {name: value.to(device) for name, value in cameras.items()}
        | {"image_height": size, "image_width": size, "sh_degree": 0},
    )


def _camera(azimuth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Transposed view and clip matrices, and the centre, of a camera at `DISTANCE` that looks at the origin."""
    center = DISTANCE * torch.tensor([math.cos(azimuth), math.sin(azimuth), 0.2]) / math.sqrt(1.04)
    forward = -center / DISTANCE
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    view = torch.eye(4)
    view[:3, :3], view[:3, 3] = rotation, -rotation @ center
    clip = torch.zeros(4, 4)
    clip[0, 0] = clip[1, 1] = 1 / math.tan(FOV / 2)
    clip[2, 2], clip[2, 3], clip[3, 2] = 1.0001, -0.010001, 1.0
    return view.T.contiguous(), (view.T @ clip.T).contiguous(), center


def ours(scene: Scene, backend: str, backward: bool) -> None:
    """One call of `rasterize`, with the gradients of all parameters if `backward`."""
    like = scene.parameters["means3D"]
    screen = torch.zeros((scene.views, len(like), 3), device=like.device, requires_grad=backward)
    with torch.set_grad_enabled(backward):
        drawn = rasterize(means2D=screen, backend=backend, **scene.parameters, **scene.cameras)
        if backward:
            images = (drawn.color, drawn.depth, drawn.alpha)
            torch.autograd.backward(images, [torch.ones_like(image) for image in images])
    for parameter in scene.parameters.values():
        parameter.grad = None


def gsplat(scene: Scene, backward: bool) -> None:
    """The same by gsplat: colour, depth and alpha."""
    rasterization = import_module("gsplat").rasterization  # not a dependency, and asks for CUDA
    given, cameras = scene.parameters, scene.cameras
    size = cameras["image_width"]
    focal = size / (2 * math.tan(FOV / 2))
    intrinsics = torch.tensor(
        [[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], device=given["means3D"].device
    )
    with torch.set_grad_enabled(backward):
        image, alpha, _ = rasterization(
            given["means3D"],
            given["rotations"],
            given["scales"],
            given["opacities"][:, 0],
            given["shs"],
            cameras["viewmatrix"].mT.contiguous(),
            intrinsics.expand(scene.views, 3, 3).contiguous(),
            size,
            size,
            near_plane=reference.NEAR,
            sh_degree=0,
            backgrounds=cameras["bg"],
            render_mode="RGB+D",
        )
        if backward:
            torch.autograd.backward((image, alpha), [torch.ones_like(image), torch.ones_like(alpha)])
    for parameter in given.values():
        parameter.grad = None


@torch.no_grad()
def blended_pairs(scene: Scene) -> int:
    """Pairs of Gaussian and pixel that enter the images, counted by the reference's rules."""
    given, cameras = scene.parameters, scene.cameras
    screen = torch.zeros((scene.views, len(given["means3D"]), 3), device=given["means3D"].device)
    gaussians = checked_gaussians(
        given["means3D"],
        screen,
        given["opacities"],
        given["shs"],
        None,
        given["scales"],
        given["rotations"],
        None,
        scene.views,
    )
    views = checked_views(
        *(cameras[n] for n in ("viewmatrix", "projmatrix", "campos", "bg", "tanfovx", "tanfovy")),
        *(cameras[n] for n in ("image_height", "image_width", "sh_degree")),
        scale_modifier=1.0,
        antialiasing=False,
        like=given["means3D"],
        shs=given["shs"],
    )
    return sum(_blended_pairs(reference.project(gaussians, views, c)) for c in range(scene.views))


def _blended_pairs(splats: reference.Splats) -> int:
    tile = reference.TILE
    columns, rows = (-(-side // tile) for side in splats.size)
    lists, counts = reference.tile_lists(splats.tiles, columns, rows)
    total = 0
    for index, members in enumerate(lists.split(counts.tolist())):
        y, x = divmod(index, columns)
        low = torch.tensor([x * tile, y * tile])
        high = torch.minimum(low + tile, torch.tensor(splats.size))
        pixels = torch.cartesian_prod(torch.arange(low[0], high[0]), torch.arange(low[1], high[1])).to(
            splats.xy
        )
        dx, dy = (splats.xy[members, None] - pixels).unbind(-1)
        a, b, c = splats.conic[members, :, None].unbind(1)
        power = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
        alpha = (splats.opacity[members, None] * power.exp()).clamp_max(reference.MAX_ALPHA)
        alpha = torch.where(alpha >= reference.MIN_ALPHA, alpha, 0.0)
        passed = (1 - alpha).cumprod(0) >= reference.MIN_TRANSMITTANCE
        total += int(((alpha > 0) & passed).sum())
    return total


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


def peak_memory(count: int, size: int, views: int, device: torch.device, backend: str) -> float:
    """Bytes that a first forward and backward pass adds to what the scene and the images' gradients hold."""
    scene = object_scene(count, size, views, device)
    if device.type == "cuda":
        ours(scene, backend, backward=True)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        ours(scene, backend, backward=True)
        return torch.cuda.max_memory_allocated(device) - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return math.nan
    ours(object_scene(100, 64, 1, device), backend, backward=True)  # libraries are loaded, threads started

    def kilobytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    reset.write_text("5")  # the high-water mark begins anew
    before = kilobytes("VmRSS:")
    ours(scene, backend, backward=True)
    return 1024.0 * (kilobytes("VmHWM:") - before)


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

    kernels = {f"{number} thread{'s' * (number > 1)}": on(number) for number in threads}
    first = next(iter(kernels))
    repeats = {
        name: REFERENCE_REPEATS if name == "reference" else options.repeats for name in peers | kernels
    }
    forward = medians({n: lambda f=f: f(False) for n, f in (kernels | peers).items()}, repeats, device)
    both = medians({n: lambda f=f: f(True) for n, f in (kernels | peers).items()}, repeats, device)
    pairs = blended_pairs(object_scene(count, size, views, torch.device("cpu")))
    rows = []
    for name, number in zip(kernels, threads, strict=True):
        torch.set_num_threads(number)
        peak = fmas_per_second(device)
        others = [*({first} - {name}), *peers]
        rows.append({
            "gaussians": count,
            "size": size,
            "views": views,
            "threads": number,
            "blended_pairs": pairs,
            "forward": forward[name],
            "forward_backward": both[name],
            "pairs_per_second": pairs / both[name],
            "fmas_per_second": peak,
            "over_bound_forward": forward[name] * peak / (FORWARD_FMAS * pairs),
            "over_bound": both[name] * peak / ((FORWARD_FMAS + BACKWARD_FMAS) * pairs),
            "speedups": {other: both[other] / both[name] for other in others},
            "peak_memory": _peak_memory_alone(count, size, views, device, kernel, number),
        })  # fmt: skip
    return rows


def _peak_memory_alone(
    count: int, size: int, views: int, device: torch.device, kernel: str, threads: int
) -> float:
    """`peak_memory` in a process of its own."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=set_num_threads, initargs=(threads,)
    ) as fresh:
        return fresh.submit(peak_memory, count, size, views, device, kernel).result()


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
    lines = info.read_text().splitlines() if info.exists() else []
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
    against = ", ".join(f"{ratio:.3g}x {name}" for name, ratio in scene["speedups"].items()) or "-"
    cells = [
        f"{scene['gaussians']}, {scene['size']}, {scene['views']}",
        f"{scene['threads']}",
        f"{scene['blended_pairs'] / 1e6:.2f} M",
        f"{per_view * scene['forward']:.1f} ms",
        f"{per_view * scene['forward_backward']:.1f} ms",
        f"{scene['pairs_per_second'] / 1e6:.0f} M",
        f"{scene['over_bound_forward']:.0f} / {scene['over_bound']:.0f}",
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
            f"distCUDA2, {n['points']} points, {n['threads']} threads: {1000 * n['distCUDA2']:.0f} ms, "
            f"{n['ratio']:.2f} times scipy's tree on all cores ({1000 * n['cKDTree']:.0f} ms)",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rasterizer", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--gaussians", type=int, nargs="+", help="default 10000 50000, on a GPU also 100000 500000"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[256, 512], help="pixels a side (default 256 512)"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the CPU (default 1 2)")
    parser.add_argument(
        "--points", type=int, default=100_000, help="of the neighbour search (default 100000)"
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
                f"--threads, --sizes, --gaussians, --points, --repeats: expected at least 1, got {min(positive)}"
            )
        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError("--device: expected cpu where torch finds no CUDA device, got " + options.device)
        if options.gaussians is None:
            options.gaussians = [10_000, 50_000] + ([100_000, 500_000] if options.device != "cpu" else [])
        return measure(options)

    return finish_measurement(measured, table, options.json)


if __name__ == "__main__":
    sys.exit(main())
