"""Every method of Table 1 on the same toybox prompts and seeds: `python -m dreammapping reproduce methods`.

Every method has the settings of the quick start with its own numbers.
"""

import re
import statistics
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from arguments import load
from dreammapping.evaluation.appearance import saturation
from dreammapping.evaluation.exhibit import Exhibit, front_side_back
from dreammapping.reproduction.cells import RESULTS, CellStore, Result
from dreammapping.reproduction.operator_chain import CHAIN, chain, train_chain
from dreammapping.reproduction.prompts import TUNED_ON, all_prompts, choose_prompts
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
from utils.contact_sheet import contact_sheet
from utils.errors import UserError
from utils.images import write_picture
from utils.repository import ROOT

LORA = ("LoRAParams.lora_lr=0.0001", "LoRAParams.lora_warmup_iter=70")
METHODS: Overrides = {
    "vdm": (),
    "vdm_without_dca": ("GuidanceParams.guidance=vdm", "VDMParams.dca=false"),
    "vdm_dca_learned": ("GuidanceParams.guidance=vdm", "VDMParams.dca_learned=true"),
    "vdm_lookahead": ("GuidanceParams.guidance=vdm", "VDMParams.lookahead=true"),
    "vdm_linear": ("GuidanceParams.guidance=vdm", "VDMParams.operator=linear"),
    "vdm_ulite_noise": ("GuidanceParams.guidance=vdm", "VDMParams.operator=ulite_noise"),
    "vdm_warm": ("GuidanceParams.guidance=vdm",),  # and the operator of `chain`
    "sds": (),
    "sds_100": ("GuidanceParams.guidance=sds", "GuidanceParams.guidance_scale=100"),
    "vsd": LORA,
    "dreamflow": (*LORA, "DreamFlowParams.dreamflow_t_range=[0.02,0.98]"),
    "asd": LORA,
    "lods": ("GuidanceParams.lambda_guidance=0.75",),  # its bracket is 1/s of SDS's
    "lods_lora": ("GuidanceParams.lambda_guidance=0.75", "LODSParams.lods_lora_lr=0.00001"),
    "lmc": (),
    "csd": (),
    "nfsd": (),
    "ism": ("GuidanceParams.delta_t=50",),
    "ssd": (),
    "consistent3d": ("Consistent3DParams.consistent3d_t_range=[0.02,0.7]",),
}
"""What each method is given beside the quick start; `guidance` is the row's name where it is not said."""
HEADINGS = ("R-precision", "over the start", "view word", "similarity", "saturation", "minutes")
REPORT = ROOT / "docs" / "methods.md"
PICTURE = ROOT / "docs" / "images" / "methods_grid.png"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"
TILE, A_ROW = 96, 3


def settings_of(methods: list[str]) -> Overrides:
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


def pictures(folder: Path) -> Float[Tensor, "V 3 H W"]:
    """Front, side and back of a run's asset."""
    exhibit = Exhibit.of_run(folder, front_side_back)
    return exhibit.render(exhibit.asset())


def markdown(results: list[Result], expected: int, outdated: int = 0) -> str:
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
    return "\n".join([*lines, "", size_note(results, expected - len(results), outdated)])


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
    strips = [contact_sheet([(name, pictures(runs[name]))], tile=TILE) for name in names]
    rows = [("", np.stack(strips[first : first + A_ROW])) for first in range(0, len(strips), A_ROW)]
    write_picture(path, contact_sheet(rows))
    return caption(results[0]["prompt"], names)


def caption(prompt: str, names: list[str]) -> str:
    """The picture and what is in it, as Markdown."""
    shown = f"{prompt}, front, side and back, by each method"
    return f"![{shown}](images/{PICTURE.name})\n\n{shown}: {', '.join(names)}."


def present_caption(page: str) -> str:
    """The caption that stands on the page, with its picture; empty if there is none."""
    found = re.search(rf"!\[[^\]]*\]\(images/{PICTURE.name}\)\n\n.*", page)
    return found.group() if found else ""


def reproduce(
    plan: Plan, methods: list[str], *, train: bool = True, write: bool = False
) -> tuple[list[str], str]:
    """Train and judge what is missing; returns the messages of what failed, and the table of all methods.

    Args:
        methods: rows to train; all if empty. The others stay in the table as they are.
        train: without it, the table has only what is finished.
        write: also put the table and its picture into the documents.
    """
    rows, wanted = settings_of([]), settings_of(methods)
    config, _ = load(plan.words)
    output = Path(config.ModelParams.output_path)
    operators = chain(plan, output)
    rows["vdm_warm"] += (f"VDMParams.operator_init={output / CHAIN / list(operators)[-1].workspace}",)
    store, failures = CellStore(RESULTS / "methods.json"), []
    cells = make_cells(plan, choose_prompts(plan.prompts, TUNED_ON), {name: rows[name] for name in wanted})
    if train:
        if any(cell.method == "vdm_warm" and store.get(cell) is None for cell in cells):
            failures += train_chain(operators, output)
        judge = toybox_judge(plan)
        failures += finish_cells(
            cells, store, plan, lambda run: judge(run) | {"saturation": saturation(pictures(run))}
        )
    results, outdated = standing(store, plan, rows, all_prompts(TUNED_ON))
    if not results:
        return failures, "no finished cells yet"
    places = {(result["prompt"], result["method"], result["seed"]) for result in results}
    missing = sum((cell.prompt, cell.method, cell.seed) not in places for cell in cells)
    text = markdown(results, len(results) + missing, outdated)
    if write:
        shown = draw_grid(results) or present_caption(REPORT.read_text(encoding="utf-8"))
        write_report(f"{text}\n\n{shown}".rstrip(), REPORT, BEGIN, END)
    return failures, text
