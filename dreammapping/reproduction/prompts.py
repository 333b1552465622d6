"""VDM against SDS over prompts that no setting was tuned on: `python -m dreammapping reproduce prompts`.

Half of the prompts are (object, colour) pairs that the prior never saw.
"""

import logging
import random
import statistics
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dreammapping.evaluation.exhibit import Exhibit, front_side_back
from dreammapping.reproduction.cells import RESULTS, CellStore, Result
from dreammapping.reproduction.table import (
    Overrides,
    Plan,
    finish_cells,
    make_cells,
    size_note,
    standing,
    toybox_judge,
    write_report,
)
from toybox import world
from toybox.recognition import parse_caption
from utils.contact_sheet import contact_sheet
from utils.errors import UserError
from utils.images import write_picture
from utils.repository import ROOT

METHODS: Overrides = {
    "vdm": ("GuidanceParams.guidance=vdm", "VDMParams.dca=true"),
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
FRONT_PAGE = ROOT / "README.md"
"""It has the table in a few sentences, between the same marks."""

_SHUFFLE_SEED = 2
_PICTURE_LIMIT = 600_000
_TILES = (128, 112, 96, 80, 64)

log = logging.getLogger(__name__)


def all_prompts(exclude: str) -> list[str]:
    """Every prompt that a table can have: see `choose_prompts`."""
    return choose_prompts(len(_objects(exclude)), exclude)


def choose_prompts(count: int, exclude: str) -> list[str]:
    """Captions of different objects, every other one held out; a longer list begins like a shorter one.

    The object that the caption `exclude` names (the one that settings were tuned on) is left out.
    """
    names = _objects(exclude)
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


def _objects(exclude: str) -> list[str]:
    tuned = parse_caption(exclude)
    return [name for name in world.OBJECTS if tuned is None or name != tuned[0]]


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


def markdown(results: list[Result], expected: int, outdated: int = 0) -> str:
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
            _with_spread(precision),
            _mean(seen),
            _mean(held_out),
            *(_mean([scores[key] for scores, _ in line]) for key in others),
            f"{statistics.fmean(scores['similarity'] for scores, _ in line):.1f}",
            _minutes([cell for _, cell in line]) if name in METHODS else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _note(results, expected, outdated), "", *_prompt_table(table)]
    return "\n".join(lines)


def summary(results: list[Result]) -> str:
    """The table in a few sentences: both methods with their spread, and whether the runs can tell them apart."""
    table = rows(results)
    if not {"vdm", "sds", "truth"} <= table.keys():
        return "Not measured yet."
    spread = {
        name: _with_spread([scores["r_precision"] for scores, _ in table[name]])
        for name in ("vdm", "sds", "truth")
    }
    views = {name: _mean([scores["view_accuracy"] for scores, _ in table[name]]) for name in ("vdm", "sds")}
    prompts, seeds = (len({each[key] for each in results}) for key in ("prompt", "seed"))
    return (
        f"On prompts that no setting was tuned on ({prompts} prompts, {seeds} seed{'s' * (seeds > 1)} each), "
        f"R-precision is {spread['vdm']} with VDM + DCA, {spread['sds']} with SDS and {spread['truth']} for the true "
        f"objects; the view word is right in {views['vdm']} and {views['sds']} of the views. {_verdict(table)}"
    )


def _verdict(table: dict[str, list[tuple[Result, Result]]]) -> str:
    """Whether R-precision, run by run, differs by more than twice its standard error."""
    first, second = (
        {(cell["prompt"], cell["seed"]): scores["r_precision"] for scores, cell in table[name]}
        for name in ("vdm", "sds")
    )
    differences = [first[place] - second[place] for place in first if place in second]
    if len(differences) < 2:
        return "Too few runs to compare the two."
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    told = f"Run by run, R-precision differs by {mean:+.2f}, with a standard error of {error:.2f}: "
    return told + ("a difference." if abs(mean) > 2 * error else "no difference between the two is shown.")


def _with_spread(values: list[float]) -> str:
    return _mean(values) + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _note(results: list[Result], expected: int, outdated: int) -> str:
    text = size_note(results, expected - len(results), outdated)
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


def draw_grid(results: list[Result], path: Path = PICTURE) -> None:
    """Front, side and back of every prompt (first seed): VDM, SDS, the true object. Under 600 KB.

    Needs the run folders; does nothing but say so where one is gone.
    """
    gone = [result["run"] for result in results if not (ROOT / result["run"]).is_dir()]
    if gone:
        log.warning("%s: left as it is, because the run folder %s is gone", path, gone[0])
        return
    first = [result for result in results if result["seed"] == 0]
    rows = []
    for prompt in dict.fromkeys(result["prompt"] for result in first):
        by_method = {result["method"]: result for result in first if result["prompt"] == prompt}
        if by_method.keys() == METHODS.keys():
            label = prompt + " (held out)" * by_method["vdm"]["held_out"]
            rows.append((label, torch.cat(_pictures([by_method[name] for name in METHODS]))))
    captions = [
        f"{TITLES[name]}: {view}" for name in (*METHODS, "truth") for view in ("front", "side", "back")
    ]
    for tile in _TILES if rows else ():
        write_picture(path, contact_sheet(rows, captions, tile=tile))
        if path.stat().st_size < _PICTURE_LIMIT:
            return


def _pictures(results: list[Result]) -> list[Float[Tensor, "V 3 S S"]]:
    """Front, side and back of each run of one prompt, and of its true object."""
    size = (_TILES[0], _TILES[0])
    exhibits = [Exhibit.of_run(ROOT / result["run"], front_side_back) for result in results]
    images = [F.interpolate(exhibit.render(exhibit.asset()), size, mode="area") for exhibit in exhibits]
    return [*images, exhibits[0].render_truth(_TILES[0])]


def reproduce(plan: Plan, *, train: bool = True, write: bool = False) -> tuple[list[str], str]:
    """Train and judge what is missing; returns the messages of what failed, and the table.

    Args:
        train: without it, the table has only what is finished.
        write: also put the table and its picture into the documents, and its sum into the README.
    """
    store = CellStore(RESULTS / "prompts.json")
    cells = make_cells(plan, choose_prompts(plan.prompts, TUNED_ON), METHODS)
    failures = finish_cells(cells, store, plan, toybox_judge(plan)) if train else []
    results, outdated = standing(store, plan, METHODS, all_prompts(TUNED_ON))
    if not results:
        return failures, "no finished cells yet"
    places = {(result["prompt"], result["method"], result["seed"]) for result in results}
    missing = sum((cell.prompt, cell.method, cell.seed) not in places for cell in cells)
    text = markdown(results, len(results) + missing, outdated)
    if write:
        write_report(text, REPORT, BEGIN, END)
        write_report(summary(results), FRONT_PAGE, BEGIN, END)
        draw_grid(results)
    return failures, text
