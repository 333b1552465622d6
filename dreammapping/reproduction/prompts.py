"""VDM against SDS over prompts that no setting was tuned on: `python -m dreammapping.reproduction.prompts`.

Half of the prompts are (object, colour) pairs that the prior never saw. Every cell (prompt, method, seed) is
one `train.py` run and its judgement; finished cells are kept, so the command can be stopped and repeated.
"""

import argparse
import json
import logging
import os
import random
import re
import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from arguments import load as load_settings
from arguments import to_yaml
from benchmarks.command import finish_cells_and_report
from dreammapping.evaluation.exhibit import Exhibit, parse_caption
from dreammapping.evaluation.judge import judge_run
from dreammapping.reproduction.cells import (
    QUICKSTART,
    RESULTS,
    ROOT,
    Cell,
    CellStore,
    Trainer,
    digest,
    run_missing,
)
from scene.cameras import orbit
from toybox import world
from toybox.clip import PRIOR, Clip
from utils.errors import UserError
from utils.files import atomic
from utils.images import to_uint8

METHODS: dict[str, tuple[str, ...]] = {
    "vdm": ("GuidanceParams.guidance=vdm", "GuidanceParams.dca=true"),
    "sds": ("GuidanceParams.guidance=sds", "GuidanceParams.guidance_scale=7.5"),
}
TITLES = {"truth": "true objects", "vdm": "VDM + DCA", "sds": "SDS, CFG 7.5", "start": "untrained start"}
HEADINGS = (
    "R-precision",
    "seen pairs",
    "held-out pairs",
    "object",
    "colour",
    "view word",
    "similarity",
    "minutes",
)
TUNED_ON = "an orange cat"
"""What the settings of the quick start were tuned on."""
REPORT = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "images" / "prompts_grid.png"
BEGIN, END = "<!-- prompts: begin -->", "<!-- prompts: end -->"

_SHUFFLE_SEED = 2
_PICTURE_LIMIT = 600_000
_TILES = (128, 112, 96, 80, 64)

Result = dict[str, Any]


def choose_prompts(count: int, exclude: str) -> list[str]:
    """Captions of different objects, every other one held out; a longer list begins like a shorter one.

    The object that the caption `exclude` names (the one that settings were tuned on) is left out.
    """
    tuned = parse_caption(exclude)
    names = [name for name in world.OBJECTS if tuned is None or name != tuned[0]]
    if not 2 <= count <= len(names):
        raise UserError(f"--prompts: expected 2 to {len(names)}, got {count}; give a number in that range")
    rng = random.Random(_SHUFFLE_SEED)
    rng.shuffle(names)
    prompts = []
    for index, name in enumerate(names[:count]):
        held_out = index % 2 == 1
        colours = [colour for colour in world.COLOURS if ((name, colour) in world.HELD_OUT) == held_out]
        prompts.append(world.caption(name, rng.choice(colours)))
    return prompts


def make_cells(
    options: argparse.Namespace, methods: dict[str, tuple[str, ...]] | None = None
) -> dict[Cell, list[str]]:
    """The table's cells, each with the settings that `train.py` is given for it.

    Args:
        methods: settings of each method; those of this table if None.
    """
    return dict(
        make_cell(options, prompt, method, overrides, seed)
        for prompt in choose_prompts(options.prompts, exclude=TUNED_ON)
        for seed in range(options.seeds)
        for method, overrides in (METHODS if methods is None else methods).items()
    )


def make_cell(
    options: argparse.Namespace, prompt: str, method: str, overrides: tuple[str, ...], seed: int
) -> tuple[Cell, list[str]]:
    """One cell and its settings."""
    base = ["--opt", str(options.opt), "save_video=false", *options.overrides]
    settings = [*base, *overrides, f"GuidanceParams.text={prompt}", f"seed={seed}"]
    resolved, _ = load_settings([*settings, "ModelParams.workspace=bench"])
    return Cell(prompt, method, seed, digest(to_yaml(resolved), _prior())), settings


@cache
def _prior() -> str:
    """Stands for the prior's weights."""
    return digest(*sorted(PRIOR.rglob("*.safetensors")))


def finish_cells(
    cells: dict[Cell, list[str]],
    store: CellStore,
    options: argparse.Namespace,
    measure: Callable[[Path], Result] | None = None,
) -> list[str]:
    """Train and judge what is missing; the messages of the cells that failed.

    Args:
        measure: what else to keep of a run's folder.
    """
    config, _ = load_settings(["--opt", str(options.opt), *options.overrides])
    threads = None if options.jobs == 1 else max(1, (os.cpu_count() or 1) // options.jobs)
    trainer = Trainer(ROOT / config.ModelParams.output_path, threads)
    clip = Clip.from_pretrained()

    def finish(cell: Cell) -> Result:
        folder = trainer.train(cell, cells[cell])
        manifest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        kept = {key: manifest.get(key) for key in ("seconds", "peak_memory_bytes")}
        known = {"method": cell.method, "seed": cell.seed, "jobs": options.jobs}
        known["run"] = os.path.relpath(folder, ROOT)
        further = measure(folder) if measure is not None else {}
        return judge_run(folder, options.views, clip=clip) | known | kept | further

    return run_missing(cells, store, finish, options.jobs, trainer.stop)


def rows(results: list[Result]) -> dict[str, list[tuple[Result, Result]]]:
    """(scores, cell) of every line of the table; truth and start are taken once for each prompt and seed."""
    lines: dict[str, list[tuple[Result, Result]]] = {name: [] for name in TITLES}
    references = set()
    for result in results:
        lines[result["method"]].append((result["asset"], result))
        if (result["prompt"], result["seed"]) not in references:
            references.add((result["prompt"], result["seed"]))
            for name in ("truth", "start"):
                lines[name].append((result[name], result))
    return {name: line for name, line in lines.items() if line}


def markdown(results: list[Result], expected: int) -> str:
    """The table over all cells, and R-precision prompt by prompt."""
    lines = [
        "| | " + " | ".join(HEADINGS) + " |",
        "| --- |" + " --- |" * len(HEADINGS),
    ]
    table = rows(results)
    for name, line in table.items():
        precision = [scores["r_precision"] for scores, _ in line]
        seen = [scores["r_precision"] for scores, cell in line if not cell["held_out"]]
        held_out = [scores["r_precision"] for scores, cell in line if cell["held_out"]]
        others = ("object_accuracy", "colour_accuracy", "view_accuracy")
        cells = [
            TITLES[name],
            _mean(precision) + (f" ± {statistics.stdev(precision):.2f}" if len(precision) > 1 else ""),
            _mean(seen),
            _mean(held_out),
            *(_mean([scores[key] for scores, _ in line]) for key in others),
            f"{statistics.fmean(scores['similarity'] for scores, _ in line):.1f}",
            _minutes([cell for _, cell in line]) if name in METHODS else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _note(results, expected), "", *_prompt_table(table)]
    return "\n".join(lines)


def _note(results: list[Result], expected: int) -> str:
    prompts = {result["prompt"] for result in results}
    seeds = {result["seed"] for result in results}
    text = (
        f"{len(prompts)} prompts, {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"{results[0]['views']} views of each; ± is the standard deviation between runs."
    )
    if len(results) < expected:
        text += f" Unfinished: {len(results)} of {expected} runs."
    if any(result["jobs"] > 1 for result in results):
        text += " Minutes marked * were taken with several runs at once on the same machine."
    return text


def _prompt_table(table: dict[str, list[tuple[Result, Result]]]) -> list[str]:
    """R-precision (mean over seeds) of every prompt."""
    prompts = {cell["prompt"]: cell["held_out"] for line in table.values() for _, cell in line}
    lines = [
        "| R-precision | " + " | ".join(TITLES[name] for name in table) + " |",
        "| --- |" + " --- |" * len(table),
    ]
    for prompt, held_out in prompts.items():
        values = (
            _mean([scores["r_precision"] for scores, cell in line if cell["prompt"] == prompt])
            for line in table.values()
        )
        lines.append(f"| {prompt}{' (held out)' if held_out else ''} | " + " | ".join(values) + " |")
    return lines


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f}" if values else "-"


def _minutes(cells: list[Result]) -> str:
    seconds = [cell["seconds"] for cell in cells if cell["seconds"] is not None]
    if not seconds:
        return "-"
    return f"{statistics.fmean(seconds) / 60.0:.1f}" + (
        "*" if any(cell["jobs"] > 1 for cell in cells) else ""
    )


def write_report(text: str, path: Path = REPORT, begin: str = BEGIN, end: str = END) -> None:
    """Put `text` between the report's markers.

    Raises:
        UserError: the report or its markers are missing.
    """
    report = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in report or end not in report:
        raise UserError(
            f"{path}: expected the lines {begin} and {end}, found none; put them where the table goes"
        )
    between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    with atomic(path) as temporary:
        temporary.write_text(between.sub(lambda _: f"{begin}\n{text}\n{end}", report), encoding="utf-8")


def draw_grid(results: list[Result], path: Path = PICTURE) -> None:
    """Front, side and back of every prompt (first seed): VDM, SDS, the true object. Under 600 KB.

    Needs the run folders; does nothing but say so where one is gone.
    """
    gone = [result["run"] for result in results if not (ROOT / result["run"]).is_dir()]
    if gone:
        logging.warning("%s: left as it is, because the run folder %s is gone", path, gone[0])
        return
    first = [result for result in results if result["seed"] == 0]
    lines = []
    for prompt in dict.fromkeys(result["prompt"] for result in first):
        by_method = {result["method"]: result for result in first if result["prompt"] == prompt}
        if by_method.keys() == METHODS.keys():
            lines.append((prompt, torch.cat(_pictures(list(by_method.values())))))
    for size in _TILES if lines else ():
        if _write_grid(lines, size, path) < _PICTURE_LIMIT:
            return


def _pictures(results: list[Result]) -> list[Float[Tensor, "V 3 S S"]]:
    """Front, side and back of each run of one prompt, and of its true object."""
    images = []
    for result in results:
        exhibit = Exhibit.of_run(ROOT / result["run"], lambda params: orbit(4, params)[:3])
        images.append(
            functional.interpolate(exhibit.render(exhibit.asset()), (_TILES[0], _TILES[0]), mode="area")
        )
    return [*images, exhibit.render_truth(_TILES[0])]


def _write_grid(lines: list[tuple[str, Tensor]], size: int, path: Path) -> int:
    """Write the grid with square tiles of `size` pixels; returns the bytes it takes."""
    from PIL import Image, ImageDraw

    headings = [TITLES[name] for name in (*METHODS, "truth")]
    gap, label = 6, 14
    block = 3 * size + gap
    picture = Image.new("RGB", (len(headings) * block - gap, label + len(lines) * (size + label)), "white")
    draw = ImageDraw.Draw(picture)
    for index, heading in enumerate(headings):
        draw.text((index * block + 2, 1), f"{heading}: front, side, back", fill="black")
    for row, (prompt, images) in enumerate(lines):
        top = label + row * (size + label)
        draw.text((2, top + 1), prompt, fill="dimgray")
        for column, image in enumerate(to_uint8(images)):
            tile = Image.fromarray(image).resize((size, size), Image.Resampling.BOX)
            picture.paste(tile, (column // 3 * block + column % 3 * size, top + label))
    with atomic(path) as temporary:
        picture.save(temporary, optimize=True)
    return path.stat().st_size


def report(cells: dict[Cell, list[str]], store: CellStore) -> str:
    """Write the table and the picture of what is finished into `docs/`; returns the table."""
    results = [result for cell in cells if (result := store.get(cell)) is not None]
    if not results:
        return "no finished cells yet"
    text = markdown(results, expected=len(cells))
    write_report(text)
    draw_grid(results)
    return text


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dreammapping.reproduction.prompts", description=__doc__)
    parser.add_argument("--opt", type=Path, default=QUICKSTART, help="settings of every run")
    parser.add_argument("--prompts", type=int, default=6, help="how many, half of them held out (default 6)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (default 1)")
    parser.add_argument("--views", type=int, default=24, help="views that judge each (default 24)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, sharing the cores (default 1)")
    parser.add_argument("--report", action="store_true", help="run nothing, only write the table")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    def work() -> tuple[list[str], str]:
        if min(options.seeds, options.jobs) < 1 or options.views < 4:
            raise UserError("expected --seeds and --jobs of at least 1 and --views of at least 4; raise them")
        cells = make_cells(options)
        store = CellStore(RESULTS / "prompts.json")
        failures = [] if options.report else finish_cells(cells, store, options)
        return failures, report(cells, store)

    return finish_cells_and_report(work)


if __name__ == "__main__":
    sys.exit(main())
