"""Every method of Table 1 on the same toybox prompts and seeds: `python -m dreammapping.reproduction.methods`.

Every cell (prompt, method, seed) is one `train.py` run and its judgement, at the settings of the quick start with
each method's own numbers; finished cells are kept, so the command can be stopped and repeated.
"""

import argparse
import logging
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from arguments import load
from benchmarks.command import finish_cells_and_report
from dreammapping.evaluation.exhibit import Exhibit
from dreammapping.reproduction.cells import QUICKSTART, RESULTS, ROOT, Cell, CellStore
from dreammapping.reproduction.operator_chain import chain, train_chain
from dreammapping.reproduction.prompts import finish_cells, make_cells, write_report
from scene.cameras import orbit
from utils.errors import UserError
from utils.images import grid, write_picture

LORA = ("GuidanceParams.lora_lr=0.0001", "GuidanceParams.lora_warmup_iter=70")
METHODS: dict[str, tuple[str, ...]] = {
    "vdm": (),
    "vdm_without_dca": ("GuidanceParams.guidance=vdm", "GuidanceParams.dca=false"),
    "vdm_dca_learned": ("GuidanceParams.guidance=vdm", "GuidanceParams.dca_learned=true"),
    "vdm_lookahead": ("GuidanceParams.guidance=vdm", "GuidanceParams.lookahead=true"),
    "vdm_linear": ("GuidanceParams.guidance=vdm", "GuidanceParams.operator=linear"),
    "vdm_ulite_noise": ("GuidanceParams.guidance=vdm", "GuidanceParams.operator=ulite_noise"),
    "vdm_warm": ("GuidanceParams.guidance=vdm",),  # and the operator of `chain`
    "sds": (),
    "sds_100": ("GuidanceParams.guidance=sds", "GuidanceParams.guidance_scale=100"),
    "vsd": LORA,
    "dreamflow": (*LORA, "GuidanceParams.dreamflow_t_range=[0.02,0.98]"),
    "asd": LORA,
    "lods": ("GuidanceParams.lambda_guidance=0.75",),  # its bracket is 1/s of SDS's
    "lods_lora": ("GuidanceParams.lambda_guidance=0.75", "GuidanceParams.lods_lora_lr=0.00001"),
    "lmc": (),
    "csd": (),
    "nfsd": (),
    "ism": ("GuidanceParams.delta_t=50",),
    "ssd": (),
    "consistent3d": ("GuidanceParams.consistent3d_t_range=[0.02,0.7]",),
}
"""What each method is given beside the quick start; `guidance` is the row's name where it is not said."""
HEADINGS = ("R-precision", "over the start", "view word", "similarity", "saturation", "minutes")
REPORT = ROOT / "docs" / "methods.md"
PICTURE = ROOT / "docs" / "images" / "methods_grid.png"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
TILE, A_ROW = 96, 3

Result = dict[str, Any]


def settings_of(methods: list[str]) -> dict[str, tuple[str, ...]]:
    """The overrides of each row, complete.

    Raises:
        UserError: a name is no row of the table.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: expected some of {', '.join(METHODS)}, got {unknown[0]}; correct it")
    named = {}
    for name in methods or METHODS:
        said = any(word.startswith("GuidanceParams.guidance=") for word in METHODS[name])
        named[name] = METHODS[name] if said else (f"GuidanceParams.guidance={name}", *METHODS[name])
    return named


def saturation(images: Float[Tensor, "V 3 H W"]) -> float:
    """Mean of (max - min) / max over the channels of the pixels that have colour at all, in [0, 1]."""
    high, low = images.amax(dim=1), images.amin(dim=1)
    share = (high - low) / high.clamp_min(1e-6)
    coloured = share > 0.05
    return share[coloured].mean().item() if coloured.any() else 0.0


def pictures(folder: Path) -> Float[Tensor, "V 3 H W"]:
    """Front, side and back of a run's asset."""
    exhibit = Exhibit.of_run(folder, lambda params: orbit(4, params)[:3])
    return exhibit.render(exhibit.asset())


def markdown(results: list[Result], expected: int) -> str:
    """A row for each method, the mean over its cells with their spread, and the table's own size."""
    lines = ["| | " + " | ".join(HEADINGS) + " |", "| --- |" + " --- |" * len(HEADINGS)]
    for name in METHODS:
        cells = [result for result in results if result["method"] == name]
        if cells:
            gains = [cell["asset"]["r_precision"] - cell["start"]["r_precision"] for cell in cells]
            columns = (
                [cell["asset"]["r_precision"] for cell in cells],
                gains,
                [cell["asset"]["view_accuracy"] for cell in cells],
                [cell["asset"]["similarity"] for cell in cells],
                [cell["saturation"] for cell in cells],
                [cell["seconds"] / 60 for cell in cells],
            )
            lines.append(f"| `{name}` | " + " | ".join(map(_spread, columns)) + " |")
    prompts = {result["prompt"] for result in results}
    seeds = {result["seed"] for result in results}
    note = (
        f"{len(prompts)} prompt{'s' * (len(prompts) > 1)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"{results[0]['views']} views of each; ± is the standard deviation between runs."
    )
    if len(results) < expected:
        note += f" Unfinished: {len(results)} of {expected} runs."
    return "\n".join([*lines, "", note])


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def draw_grid(results: list[Result], path: Path = PICTURE) -> str | None:
    """Front, side and back of every method, `A_ROW` to a row, for the first prompt and seed; returns their caption.

    Where a run's folder is gone, as in a fresh clone, the picture that is there stays, and None is returned.
    """
    first = [each for each in results if (each["prompt"], each["seed"]) == (results[0]["prompt"], 0)]
    runs = {each["method"]: ROOT / each["run"] for each in first}
    names = [name for name in METHODS if name in runs]
    if not all(runs[name].is_dir() for name in names):
        return None
    tiles = [functional.interpolate(pictures(runs[name]), (TILE, TILE), mode="area") for name in names]
    write_picture(path, grid([torch.cat(tiles[i : i + A_ROW]) for i in range(0, len(tiles), A_ROW)]))
    return caption(results[0]["prompt"], names)


def caption(prompt: str, names: list[str]) -> str:
    """The picture and what is in it, as Markdown."""
    shown = f"{prompt}, front, side and back by each: {', '.join(names)}"
    return f"![{shown}](images/{PICTURE.name})\n\n{shown}."


def present_caption(page: str) -> str:
    """The caption that stands on the page, with its picture; empty if there is none."""
    found = re.search(rf"!\[[^\]]*\]\(images/{PICTURE.name}\)\n\n.*", page)
    return found.group() if found else ""


def report(cells: dict[Cell, list[str]], store: CellStore) -> str:
    """Write the table and the picture of what is finished into `docs/methods.md`; returns the table."""
    results = [result for cell in cells if (result := store.get(cell)) is not None]
    if not results:
        return "no finished cells yet"
    shown = draw_grid(results) or present_caption(REPORT.read_text(encoding="utf-8"))
    text = f"{markdown(results, expected=len(cells))}\n\n{shown}".rstrip()
    write_report(text, REPORT, BEGIN, END)
    return text


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dreammapping.reproduction.methods", description=__doc__)
    parser.add_argument("--opt", type=Path, default=QUICKSTART, help="settings of every run")
    parser.add_argument("--methods", default="", help="names with commas between (default: all)")
    gpu = torch.cuda.is_available()
    parser.add_argument("--prompts", type=int, default=6 if gpu else 2, help="default 2, with a GPU 6")
    parser.add_argument("--seeds", type=int, default=3 if gpu else 1, help="default 1, with a GPU 3")
    parser.add_argument("--views", type=int, default=24, help="views that judge each (default 24)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, sharing the cores (default 1)")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def work() -> tuple[list[str], str]:
        methods = settings_of([name for name in options.methods.split(",") if name])
        config, _ = load(["--opt", str(options.opt), *options.overrides])
        output = Path(config.ModelParams.output_path)
        operators = chain(options, output) if "vdm_warm" in methods else {}
        if operators:
            last = list(operators)[-1].workspace
            methods["vdm_warm"] += (f"GuidanceParams.operator_init={output / last}",)
        cells = make_cells(options, methods)
        store, failures = CellStore(RESULTS / "quality.json"), []
        if not options.report:
            if any(cell.method == "vdm_warm" and store.get(cell) is None for cell in cells):
                failures += train_chain(operators, output)
            failures += finish_cells(
                cells, store, options, lambda run: {"saturation": saturation(pictures(run))}
            )
        return failures, report(cells, store)

    return finish_cells_and_report(work)


if __name__ == "__main__":
    sys.exit(main())
