"""Everything that only a card can show, in one command and eight minutes: `python -m benchmarks.card`.

Runs the tests that need a GPU, compute-sanitizer on a small scene, the image encoder by layout and algorithm with
its kernels, the rasterizer beside gsplat if that is installed, floor and iteration of the paper's setting (random
weights) compiled, with and without CUDA graphs, the same of the quick start, the paper's setting eager under every
memory plan, a second compiled start, the encoder with several kernels tried, and the quick start with its scores; and
ends with one table. Every part is a process of its own with a time limit: one that fails, hangs or is missing does not
end the others. Parts that only have to pass run side by side, timed ones run alone.

A bare machine needs torch, the packages that the list WHEELS in benchmarks/card.py names, and no network.
`--device cpu --tiny` runs all parts as far as a CPU can, on sizes that say nothing about speed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.command import RESULTS, finish_measurement
from utils.errors import UserError
from utils.repository import QUICKSTART, ROOT

WHEELS = (
    "diffusers", "transformers", "peft", "safetensors", "huggingface_hub", "filelock", "omegaconf", "jaxtyping",
    "beartype", "plyfile", "trimesh", "scipy", "cv2", "PIL", "psutil", "imageio", "tqdm", "pytest", "hypothesis",
    "diff_gaussian_rasterization", "simple_knn",
)  # fmt: skip
"""What has to be importable beside torch."""
TOTAL = 470
"""Seconds for all parts: under eight minutes."""
SIDE_BY_SIDE = 2
"""Processes at once of what is not timed."""
POLL = 0.2
SCENE = (
    "import torch; from benchmarks.splat_scenes import object_scene, ours; "
    "scene = object_scene({count}, 96, 2, torch.device('{device}')); "
    "[ours(scene, '{device}', backward=True) for _ in range(2)]"
)
"""A small scene, forward and backward, twice; our kernels have their devices' names."""
GPU_TESTS = ("submodules", "tests/test_score_model.py", "tests/test_training.py")
SANITIZERS = ("memcheck", "racecheck")
SETTING, GRAPHS = "HardwareParams.graphs", ("auto", "never")
"""Of CUDA graphs, and the values that are compared."""
UNTIMED = ("model", "gpu tests", "scene", *SANITIZERS)
"""Parts that only have to pass, and so may run side by side."""

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """One process after another, within a limit.

    Attributes:
        name: what the table calls it, and without spaces its log.
        limit: seconds for all of its commands.
        commands: words of each.
        rows: what its files say, by name and value, once all its commands have ended well.
        missing: what it cannot run without and is not here.
        environment: variables that it sets.
    """

    name: str
    limit: float
    commands: Sequence[Sequence[str]]
    rows: Callable[[Path], Rows]
    missing: str | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def log(self, folder: Path) -> Path:
        """Where all that it prints goes."""
        return folder / f"{self.name.replace(' ', '_')}.log"


@dataclass
class Outcome:
    """How a part ended: "done", "left out: ...", "no time left", "over its limit of ...", "failed: ..."."""

    state: str
    seconds: float
    rows: Rows

    @property
    def good(self) -> bool:
        return self.state == "done" or self.state.startswith("left out")


def stages(options: argparse.Namespace) -> list[list[Part]]:
    """The parts in order; those of one stage run side by side.

    On a card what is timed has a stage of its own. Tiny, nothing is timed, and only the model comes first.
    """
    parts = {part.name: part for part in _parts(options)}
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
        Part("model", 75, [build], lambda _: []),
        Part(
            "gpu tests", 75,
            [[python, "-m", "pytest", "-q", "-k", "gpu", "-p", "no:cacheprovider", *tests]],
            lambda folder: [("tests", _last_line(folder / "gpu_tests.log"))],
        ),
        *_small_scenes(options),
        Part(
            "encoder", 90,
            [module("encoder", "--device", device, *size, *narrow, file="encoder")],
            encoder_rows,
        ),
        Part(
            "iteration", 150,
            [module("iteration", *setting, *small, *compiled, "--iterations", once, file="iteration")],
            iteration_rows,
        ),
        Part(
            "rasterizer", 80,
            [module("rasterizer", "--device", device, *scenes, file="rasterizer")],
            rasterizer_rows,
        ),
        Part(
            "launches", 120,
            [
                module("iteration", *toybox, "--iterations", fewer, f"{SETTING}={graphs}", file=f"toybox_{graphs}")
                for graphs in GRAPHS
            ],
            launch_rows,
        ),
        Part("quick start", 70, [quickstart, [*judge, "--json", str(folder / "judge.json")]], quickstart_rows),
        Part(
            "memory plans", 75,
            [module("plans", *setting, *small, "--iterations", "1" if tiny else "8", file="plans")],
            plan_rows,
        ),
        Part(
            "second start", 60,
            [module("iteration", *setting, *small, *compiled, "--iterations", "1", file="second_start")],
            lambda _: [],
        ),
        Part(
            "graphs", 60,
            [module("iteration", *setting, *small, *compiled, f"{SETTING}=auto", "--iterations", fewer, file="graphs")],
            lambda folder: [("iteration", _iteration_line(_json(folder / "graphs.json")))],
        ),
        Part(
            "autotuned", 90,
            [module("encoder", "--device", device, *size, *narrow, *["--autotune"] * (not tiny), file="autotuned")],
            lambda folder: encoder_rows(folder, "autotuned"),
        ),
    ]  # fmt: skip


def _small_scenes(options: argparse.Namespace) -> list[Part]:
    """Both of the sanitizer's tools on a small scene; on a CPU the scene alone."""
    scene = [sys.executable, "-c", SCENE.format(device=options.device, count=200 if options.tiny else 3000)]
    if options.device == "cpu":
        return [Part("scene", 60, [scene], lambda _: [("drawn", "without compute-sanitizer")])]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in _cuda_homes())]
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    return [
        Part(
            name, 60,
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


def carry_out(part: Part, folder: Path, deadline: float, stop: threading.Event) -> Outcome:
    """Run a part's commands until its limit or `deadline` (of `time.monotonic`); never raises for what they do."""
    if part.missing:
        return Outcome(f"left out: {part.missing} is not installed", 0.0, [])
    began = time.monotonic()
    if began >= deadline:
        return Outcome("no time left", 0.0, [])
    until = min(began + part.limit, deadline)
    log = part.log(folder)
    log.write_bytes(b"")
    for command in part.commands:
        code = _run(command, log, until, stop, dict(part.environment))
        spent = time.monotonic() - began
        if code is None:
            return Outcome(f"over its limit of {until - began:.0f} s", spent, [])
        if code != 0:
            return Outcome(f"failed: exit code {code}: {_last_line(log)}", spent, [])
    spent = time.monotonic() - began
    try:
        return Outcome("done", spent, part.rows(folder))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, UserError) as error:
        return Outcome(f"failed: its results cannot be read ({error!r})", spent, [])


def _run(
    command: Sequence[str], log: Path, until: float, stop: threading.Event, variables: dict[str, str]
) -> int | None:
    """The exit code of a command; None where it was ended because its time was over or all were told to stop."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        while (code := process.poll()) is None:
            if time.monotonic() >= until or stop.is_set():
                _end(process)
                return None
            time.sleep(POLL)
    return code


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and what it started: compilers and workers would go on and spoil the next measurement."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts; their states, seconds and rows."""
    options.folder.mkdir(parents=True, exist_ok=True)
    order, began, stop = stages(options), time.monotonic(), threading.Event()
    deadline, found = began + options.total, {}
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        try:
            for stage in order:
                running = {
                    part.name: pool.submit(carry_out, part, options.folder, deadline, stop) for part in stage
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


def encoder_rows(folder: Path, file: str = "encoder") -> Rows:
    """Forward and backward of each form, what its layouts cost, and its longest kernel."""
    result, rows = _json(folder / f"{file}.json"), []
    for name, row in result["encoder"].items():
        if "failed" in row:
            rows.append((name, f"failed: {row['failed']}"))
            continue
        kernels = row["kernels"]
        longest = kernels["longest"][0]
        rows.append((name, f"{row['both_ms']:.1f} ms, forward {row['forward_ms']:.1f}"))
        rows.append(("", f"kernels {kernels['total_ms']:.1f} ms, of it layouts {kernels['layout_ms']:.1f}"))
        rows.append(("", f"longest {longest['ms']:.1f} ms {longest['name'][:48]}"))
    for name, row in result["operator"].items():
        rows.append((f"operator {name}", row.get("failed") or f"{row['both_ms']:.2f} ms"))
    return [*rows, ("product of matrices", f"{result['product_tflops']:.3g} TFLOP/s")]


def rasterizer_rows(folder: Path) -> Rows:
    """Forward, and forward with backward, of all views in one call, memory, and how much faster than others."""
    return [
        (
            f"{scene['gaussians']} @ {scene['size']}",
            f"{1e3 * scene['forward']:.2f}, {1e3 * scene['forward_backward']:.2f} ms, "
            + f"{scene['peak_memory'] / 1e6:.0f} MB"
            + "".join(
                f", {ratio:.2f} x {name}" for name, ratio in scene["speedups"].items() if name == "gsplat"
            ),
        )
        for scene in _json(folder / "rasterizer.json")["scenes"]
    ]


def iteration_rows(folder: Path) -> Rows:
    """Floor, iteration and where it goes."""
    result = _json(folder / "iteration.json")
    rows = [(name, f"{1e3 * seconds:.1f} ms") for name, seconds in result["floor_parts"].items()]
    rows.append(("iteration", _iteration_line(result)))
    rows.append(("5000 iterations", f"{5000 * result['iteration'] / 60:.1f} min"))
    return rows + [(f"  {name}", f"{1e3 * s:.1f} ms") for name, s in result["iteration_parts"].items()]


def _iteration_line(result: dict[str, Any]) -> str:
    return f"{1e3 * result['iteration']:.1f} ms, {result['ratio']:.2f} times the floor"


def launch_rows(folder: Path) -> Rows:
    """An iteration of the quick start, which is launching more than computing, with and without CUDA graphs."""
    names = ("CUDA graphs", "none")
    results = [_json(folder / f"toybox_{graphs}.json") for graphs in GRAPHS]
    return [(name, _iteration_line(result)) for name, result in zip(names, results, strict=True)]


def plan_rows(folder: Path) -> Rows:
    """Milliseconds, memory and estimate of every plan."""
    return [
        (
            plan,
            row.get("failed")
            or f"{1e3 * row['seconds']:.0f} ms, {row['peak_bytes'] / 2**30:.2f} GiB, estimate "
            f"{row['estimate_bytes'] / 2**30:.2f} ({row['estimate_bytes'] / row['peak_bytes']:.2f})",
        )
        for plan, row in _json(folder / "plans.json")["plans"].items()
    ]


def quickstart_rows(folder: Path) -> Rows:
    """Iterations a second after the first, and what the judge says of asset and truth."""
    from dreammapping.finished import FinishedRun

    finished = FinishedRun.open(folder / "quickstart")
    seconds = sorted(line["seconds_per_iteration"] for line in finished.metrics)
    judged = _json(folder / "judge.json")
    rows = [
        ("iterations a second", f"{1 / max(seconds[len(seconds) // 2], 1e-6):.1f}"),
        ("Gaussians", str(judged["gaussians"])),
    ]
    for name in ("asset", "truth"):
        scores = judged[name]
        rows.append((name, f"R-precision {scores['r_precision']:.2f}, similarity {scores['similarity']:.1f}"))
    return rows


def sanitizer_summary(log: Path) -> str:
    """The line in which a tool says how much it found."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.strip("= ") for line in lines if "SUMMARY" in line), "it gave no summary")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next(
        (line.strip("= ")[:120] for line in reversed(lines) if line.strip("= ")), "it printed nothing"
    )


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


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.card", description=__doc__)
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
