"""What the parts of `benchmarks.card` have measured, as rows of its table: name and value."""

import json
from pathlib import Path
from typing import Any

from benchmarks.timed_parts import Rows

SETTING, GRAPHS = "HardwareParams.graphs", ("auto", "never")
"""Of CUDA graphs, and the values that are compared."""


def encoder_rows(folder: Path) -> Rows:
    """Forward and backward of each form, what its layouts cost, and its longest kernel."""
    result, rows = read(folder / "encoder.json"), []
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
        for scene in read(folder / "rasterizer.json")["scenes"]
    ]


def iteration_rows(folder: Path) -> Rows:
    """Floor, iteration and where it goes."""
    result = read(folder / "iteration.json")
    rows = [(name, f"{1e3 * seconds:.1f} ms") for name, seconds in result["floor_parts"].items()]
    rows.append(("iteration", iteration_line(result)))
    rows.append(("preparation", f"{result['warm_up_seconds']:.0f} s"))
    rows.append(("5000 iterations", f"{5000 * result['iteration'] / 60:.1f} min"))
    return rows + [(f"  {name}", f"{1e3 * s:.1f} ms") for name, s in result["iteration_parts"].items()]


def graph_rows(folder: Path) -> Rows:
    """A second compiled start, and the iteration with CUDA graphs."""
    result = read(folder / "graphs.json")
    preparation = f"{result['warm_up_seconds']:.0f} s, with what was compiled before"
    return [("preparation", preparation), ("iteration", iteration_line(result))]


def iteration_line(result: dict[str, Any]) -> str:
    """An iteration's time, beside its floor."""
    return f"{1e3 * result['iteration']:.1f} ms, {result['ratio']:.2f} times the floor"


def launch_rows(folder: Path) -> Rows:
    """An iteration of the quick start, which is launching more than computing, with and without CUDA graphs."""
    names = ("CUDA graphs", "none")
    results = [read(folder / f"toybox_{graphs}.json") for graphs in GRAPHS]
    return [(name, iteration_line(result)) for name, result in zip(names, results, strict=True)]


def plan_rows(folder: Path) -> Rows:
    """Milliseconds, memory and estimate of every plan."""
    return [
        (
            plan,
            row.get("failed")
            or f"{1e3 * row['seconds']:.0f} ms, {row['peak_bytes'] / 2**30:.2f} GiB, estimate "
            f"{row['estimate_bytes'] / 2**30:.2f} ({row['estimate_bytes'] / row['peak_bytes']:.2f})",
        )
        for plan, row in read(folder / "plans.json")["plans"].items()
    ]


def quickstart_rows(folder: Path) -> Rows:
    """Iterations a second after the first, and what the judge says of asset and truth."""
    from dreammapping.finished import FinishedRun

    finished = FinishedRun.open(folder / "quickstart")
    seconds = sorted(line["seconds_per_iteration"] for line in finished.metrics)
    judged = read(folder / "judge.json")
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


def read(path: Path) -> dict[str, Any]:
    """What a benchmark has kept."""
    return json.loads(path.read_text(encoding="utf-8"))
