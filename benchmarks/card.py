"""Everything that only a card can show, in one command and eight minutes: `python -m benchmarks.card`.

Runs the tests that need a GPU, compute-sanitizer on a small scene, the image encoder eager and compiled with its
kernels, the rasterizer beside gsplat if that is installed, floor and iteration of the paper's setting (random weights)
compiled, without CUDA graphs and, in a second start, with them, the same of the quick start, the paper's setting eager
under every memory plan, and the quick start with its scores; and ends with one table. Every part is a process of its
own with a time limit: one that fails, hangs or is missing does not end the others. Parts that only have to pass run
side by side, timed ones run alone. A part has its own seconds for sure, and beside them those that the parts before it
have left over.

A bare machine needs torch, the packages that the list WHEELS in benchmarks/card.py names, and no network.
`--device cpu --tiny` runs all parts as far as a CPU can, on sizes that say nothing about speed.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.card_rows import (
    GRAPHS,
    SETTING,
    encoder_rows,
    graph_rows,
    iteration_rows,
    launch_rows,
    plan_rows,
    quickstart_rows,
    rasterizer_rows,
    sanitizer_summary,
)
from benchmarks.command import RESULTS, finish_measurement
from benchmarks.timed_parts import SIDE_BY_SIDE, Part, carry_out, last_line, longest
from utils.errors import UserError
from utils.parser import Parser
from utils.repository import QUICKSTART, ROOT

WHEELS = (
    "diffusers", "transformers", "peft", "safetensors", "huggingface_hub", "filelock", "omegaconf", "jaxtyping",
    "beartype", "plyfile", "trimesh", "scipy", "cv2", "PIL", "psutil", "imageio", "tqdm", "pytest", "xdist",
    "hypothesis", "diff_gaussian_rasterization", "simple_knn",
)  # fmt: skip
"""What has to be importable beside torch."""
TOTAL = 470
"""Seconds for all parts: under eight minutes."""
SCENE = (
    "import torch; from benchmarks.splat_scenes import object_scene, ours; "
    "scene = object_scene({count}, 96, 2, torch.device('{device}')); "
    "[ours(scene, '{device}', backward=True) for _ in range(2)]"
)
"""A small scene, forward and backward, twice; our kernels have their devices' names."""
GPU_TESTS = (
    "submodules",
    "tests/test_attention.py",
    "tests/test_score_model.py",
    "tests/test_training.py",
    "tests/test_replayed_run.py",
)
SANITIZERS = ("memcheck", "racecheck")
UNTIMED = ("model", "gpu tests", "scene", *SANITIZERS)
"""Parts that only have to pass, and so may run side by side."""


def stages(options: argparse.Namespace) -> list[list[Part]]:
    """The parts in order; those of one stage run side by side.

    On a card what is timed has a stage of its own. Tiny, nothing is timed, and only the model comes first.
    """
    parts = {part.name: part for part in _parts(options)}
    for name, part in parts.items():  # tiny, what takes long is the same for all: to load the program
        limit = options.total if options.tiny else part.limit * options.total / TOTAL
        parts[name] = replace(part, limit=limit)
    if options.parts:
        unknown = sorted(set(options.parts) - set(parts))
        if unknown:
            raise UserError(
                f"--parts: expected some of {', '.join(parts)}, got {', '.join(unknown)}; correct it"
            )
        parts = {name: part for name, part in parts.items() if name in (*options.parts, "model")}
    untimed = [part for part in parts.values() if part.name in UNTIMED]
    timed = [part for part in parts.values() if part not in untimed]
    if options.tiny:
        return [untimed, timed]
    return [untimed, *([part] for part in timed)]


def _parts(options: argparse.Namespace) -> list[Part]:
    python, folder, device, tiny = sys.executable, options.folder, options.device, options.tiny
    models = folder / "narrow" if tiny else folder

    def module(name: str, *words: str, file: str) -> list[str]:
        return [python, "-m", f"benchmarks.{name}", *words, "--json", str(folder / f"{file}.json")]

    setting = [
        "--opt",
        str(ROOT / "configs" / "cat.yaml"),
        f"model_key={models / 'random-sd2-base'}",
        "init_shape=sphere",
    ]
    setting += [f"device={device}", f"output_path={folder}"]
    small = ["image_w=32", "image_h=32", "init_num_pts=60", "C_batch_size=1", "perpneg=false"] if tiny else []
    compiled = [] if tiny else ["HardwareParams.compile=always"]
    quickstart = [
        python, str(ROOT / "train.py"), "--opt", str(QUICKSTART), "--force", "--quiet", f"device={device}",
        f"output_path={folder}", "workspace=quickstart", "save_video=false", "save_process=false", "page=false",
    ]  # fmt: skip
    quickstart += ["iterations=2", "init_num_pts=60", "C_batch_size=1", "test_ratio=1"] if tiny else []
    views = "4" if tiny else "24"
    judge = [python, "-m", "dreammapping", "judge", str(folder / "quickstart"), "--views", views]
    # pytest-benchmark, where it is installed, takes several workers for a mistake
    quietly = ("-p", "no:cacheprovider", "-p", "no:benchmark")
    tests = [GPU_TESTS[0] + "/simple-knn/tests/test_knn.py"] if tiny else GPU_TESTS
    size = ["--size", "64", "--views", "1", "--repeats", "1", "--eager"] if tiny else []
    narrow = ["--settings", str(models / "settings" / "sd2-base")] if tiny else []
    build = [python, "-m", "benchmarks.random_model", "--folder", str(models), *["--narrow"] * tiny]
    scenes = ["--gaussians", "10000", "100000", "500000", "--repeats", "20"]
    if tiny:
        scenes = [
            "--gaussians",
            "200",
            "--sizes",
            "32",
            "--threads",
            "1",
            "--points",
            "500",
            "--repeats",
            "1",
        ]
        scenes.append("--no-reference")
    once = "1" if tiny else "30"
    fewer = "1" if tiny else "10"
    toybox = [
        "--opt",
        str(QUICKSTART),
        f"device={device}",
        *(["init_num_pts=60", "C_batch_size=1", "image_w=32", "image_h=32"] if tiny else []),
    ]
    return [
        Part("model", 45, [build], lambda _: []),
        Part(
            "gpu tests", 60,
            [[python, "-m", "pytest", "-q", "-k", "gpu", "-n", "4", *quietly, *tests]],
            lambda folder: [("tests", last_line(folder / "gpu_tests.log"))],
        ),
        *_small_scenes(options),
        Part(
            "encoder", 60,
            [module("encoder", "--device", device, *size, *narrow, file="encoder")],
            encoder_rows,
        ),
        Part(
            "iteration", 130,
            [
                module(
                    "iteration", *setting, *small, *compiled, f"{SETTING}=never", "--iterations", once, file="iteration"
                )
            ],
            iteration_rows,
        ),
        Part(
            "rasterizer", 35,
            [module("rasterizer", "--device", device, *scenes, file="rasterizer")],
            rasterizer_rows,
        ),
        Part(
            "launches", 40,
            [
                module("iteration", *toybox, "--iterations", fewer, f"{SETTING}={graphs}", file=f"toybox_{graphs}")
                for graphs in GRAPHS
            ],
            launch_rows,
        ),
        Part("quick start", 45, [quickstart, [*judge, "--json", str(folder / "judge.json")]], quickstart_rows),
        Part(
            "memory plans", 30,
            [module("plans", *setting, *small, "--iterations", "1" if tiny else "8", file="plans")],
            plan_rows,
        ),
        Part(
            "graphs", 30,
            [module("iteration", *setting, *small, *compiled, f"{SETTING}=auto", "--iterations", fewer, file="graphs")],
            graph_rows,
        ),
    ]  # fmt: skip


def _small_scenes(options: argparse.Namespace) -> list[Part]:
    """Both of the sanitizer's tools on a small scene; on a CPU the scene alone."""
    scene = [sys.executable, "-c", SCENE.format(device=options.device, count=200 if options.tiny else 3000)]
    if options.device == "cpu":
        return [Part("scene", 40, [scene], lambda _: [("drawn", "without compute-sanitizer")])]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in _cuda_homes())]
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    return [
        Part(
            name, 40,
            [[tool or "", "--tool", name, "--error-exitcode", "9", *scene]],
            lambda folder, name=name: [("compute-sanitizer", sanitizer_summary(folder / f"{name}.log"))],
            missing=None if tool else "compute-sanitizer",
            # memory out of PyTorch's pool would hide a step beyond a tensor's end
            environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
        )
        for name in SANITIZERS
    ]  # fmt: skip


def _cuda_homes() -> list[str]:
    return [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ] + [
        "/usr/local/cuda"
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts; their states, seconds and rows."""
    options.folder.mkdir(parents=True, exist_ok=True)
    order, began, stop = stages(options), time.monotonic(), threading.Event()
    deadline, found = began, {}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            for stage in order:
                left_over = max(deadline - time.monotonic(), 0.0)
                deadline = min(deadline + longest(stage), began + options.total)
                running = {
                    part.name: pool.submit(
                        carry_out, replace(part, limit=part.limit + left_over), options.folder, deadline, stop
                    )
                    for part in stage
                }
                for name, future in running.items():
                    found[name] = future.result()
                    sys.stderr.write(f"{name}: {found[name].state}, {found[name].seconds:.0f} s\n")
        except BaseException:
            stop.set()  # an interrupt: nothing that was started outlives this command
            raise
    return {
        "device": options.device,
        "tiny": options.tiny,
        "seconds": round(time.monotonic() - began, 1),
        "missing": [name for name in WHEELS if find_spec(name) is None],
        "gsplat": find_spec("gsplat") is not None,
        "parts": {
            name: {
                "state": each.state,
                "good": each.good,
                "seconds": round(each.seconds, 1),
                "rows": each.rows,
            }
            for name, each in found.items()
        },
    }


def table(result: dict[str, Any]) -> str:
    """The parts, how each ended, and what it says."""
    lines = [f"{result['device']}{', tiny' * result['tiny']}, {result['seconds']:.0f} s in all"]
    if result["missing"]:
        lines.append(f"not installed: {', '.join(result['missing'])}")
    if not result["gsplat"]:
        lines.append("gsplat is not installed: the rasterizer is measured alone")
    for name, part in result["parts"].items():
        lines.append(f"{name:14}{part['state']} ({part['seconds']:.0f} s)")
        lines += [f"{'':14}{title:34}{value}" for title, value in part["rows"]]
    return "\n".join(lines)


def parser() -> Parser:
    """The options."""
    found = Parser(prog="python -m benchmarks.card", description=__doc__)
    found.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="default cuda")
    found.add_argument("--tiny", action="store_true", help="sizes that only try out that every part runs")
    found.add_argument("--parts", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    found.add_argument(
        "--total", type=float, default=TOTAL, help=f"seconds for all parts together (default {TOTAL})"
    )
    found.add_argument(
        "--folder", type=Path, default=ROOT / ".models" / "card", help="for models, runs, logs"
    )
    found.add_argument("--json", type=Path, default=RESULTS / "card.json", help="where the numbers go")
    return found


def main(argv: list[str] | None = None) -> int:
    """The command line; the exit code is 1 if a part failed or had no time, 2 for a user's mistake."""
    options = parser().parse_args(argv)
    options.folder = options.folder.resolve()
    failed: list[bool] = []

    def measured() -> dict[str, Any]:
        if not options.total > 0:
            raise UserError(f"--total: expected more than 0 seconds, got {options.total}; {TOTAL} is usual")
        if options.device == "cuda":
            import torch  # takes seconds, and the wrong options need none of them

            if not torch.cuda.is_available():
                raise UserError(
                    "--device: expected cpu where torch finds no CUDA device, got cuda; try --device cpu --tiny"
                )
        result = measure(options)
        failed.extend(not part["good"] for part in result["parts"].values())
        return result

    return finish_measurement(measured, table, options.json) or int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
