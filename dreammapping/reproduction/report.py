"""What a figure leaves: a picture, its numbers as JSON, and a page in Markdown."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.nn import functional as F

from dreammapping.evaluation.pictures import Source
from dreammapping.reproduction.cells import Result
from dreammapping.reproduction.chart import write_bars
from dreammapping.reproduction.figures import BACKWARD, EVALUATIONS, Figure
from utils.contact_sheet import contact_sheet
from utils.files import write_text
from utils.images import to_uint8, write_picture
from utils.repository import ROOT

TILE = 128
"""Pixels of a view in the picture."""
SIDES = 2
"""Views of each run in the picture: the front and a side; a picture in 2D is one."""

log = logging.getLogger(__name__)


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write numbers, whole or not at all."""
    write_text(path, json.dumps(found, indent=1, allow_nan=False) + "\n")


def draw(figure: Figure, results: Sequence[Result], path: Path) -> bool:
    """Prompts as rows, variants as columns, first seed of each; False, and nothing is written, where runs are gone."""
    first = [result for result in results if result["seed"] == 0]
    prompts = list(dict.fromkeys(result["prompt"] for result in first))
    names = [name for name in figure.variants if any(result["method"] == name for result in first)]
    place = {(result["prompt"], result["method"]): ROOT / result["run"] for result in first}
    if gone := [str(folder) for folder in place.values() if not folder.is_dir()]:
        log.warning("%s: left as it is, because the run folder %s is gone", path, gone[0])
        return False
    tiles = {key: _tile(folder) for key, folder in place.items()}
    if not tiles:
        return False
    blank = np.full_like(next(iter(tiles.values())), 255)
    rows = [(prompt, np.stack([tiles.get((prompt, name), blank) for name in names])) for prompt in prompts]
    captions = [figure.variants[name].caption for name in names]
    write_picture(path, contact_sheet(rows, captions))
    return True


def _tile(folder: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The same views of every run side by side, squares of `TILE`: runs of one figure can have renders of any size.

    Those that are not square stand in white.
    """
    views = Source.open(folder).around(4)[:SIDES]
    height, width = views.shape[2:]
    side = max(height, width)
    above, left = (side - height) // 2, (side - width) // 2
    views = F.pad(views, (left, side - width - left, above, side - height - above), value=1.0)
    views = F.interpolate(views, (TILE, TILE), mode="area")
    return np.concatenate(list(to_uint8(views)), axis=1)


def draw_counts(found: dict[str, Any], path: Path) -> bool:
    """Evaluations of each method, forward and backward, as bars; False, and nothing is written, where none ran."""
    counted = {
        each["caption"]: [each["measures"][name]["mean"] for name in (EVALUATIONS, BACKWARD)]
        for each in found["variants"].values()
        if EVALUATIONS in each["measures"]
    }
    if not counted:
        return False
    parts = {
        "forward": [every - backward for every, backward in counted.values()],
        "backward": [backward for _, backward in counted.values()],
    }
    write_bars(path, list(counted), parts, EVALUATIONS)
    return True


def markdown(
    figure: Figure, found: dict[str, Any], command: str, picture: str | None, notes: Sequence[str] = ()
) -> str:
    """The page of a figure that compares runs."""
    lines = [f"# {figure.place}", "", f"`{command}`", ""]
    if picture is not None:
        lines += [f"![{figure.place}]({picture})", ""]
    return "\n".join([*lines, *tables(found), "", size_note(found["size"]), "", *notes])


def tables(found: dict[str, Any]) -> list[str]:
    """A row for each variant, then a row for each comparison."""
    measures = list(dict.fromkeys(name for each in found["variants"].values() for name in each["measures"]))
    lines = ["| | runs | " + " | ".join(measures) + " |", "| --- | --- |" + " --- |" * len(measures)]
    for variant in found["variants"].values():
        cells = (shown(variant["measures"].get(name)) for name in measures)
        lines.append(f"| {variant['caption']} | {variant['runs']} | " + " | ".join(cells) + " |")
    if found["comparisons"]:
        lines += ["", "| difference | of | | runs that would tell |", "| --- | --- | --- | --- |"]
    for each in found["comparisons"]:
        first, second = (found["variants"][each[key]]["caption"] for key in ("first", "second"))
        lines.append(
            f"| {first} less {second} | {each['measure']} | {shown(each['difference'])}: {each['verdict']} | "
            f"{each['needed'] or '-'} |"
        )
    return lines


def shown(found: dict[str, Any] | None) -> str:
    """A mean with its interval; alone where one run gives none."""
    if found is None:
        return "-"
    digits = 1 if abs(found["mean"]) >= 100 else 2 if abs(found["mean"]) >= 1 else 3
    mean = f"{found['mean']:.{digits}f}"
    if found["low"] is None:
        return mean
    return f"{mean} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def counted(count: int, word: str) -> str:
    """Such as `1 seed` and `2 seeds`."""
    return f"{count} {word}{'s' * (count != 1)}"


def size_note(size: dict[str, Any]) -> str:
    """What the numbers stand on."""
    if not size["runs"]:
        return "No run is finished yet."
    prompts, seeds, views = (
        counted(count, word)
        for count, word in (
            (len(size["prompts"]), "prompt"),
            (size["seeds"], "seed"),
            (size["views"], "view"),
        )
    )
    text = (
        f"{size['runs']} runs: {prompts}, {seeds}, {views} of each, judged by {', '.join(size['encoders'])}; on "
        f"{', '.join(size['devices'])}, {size['minutes']:.1f} minutes a run. In brackets: 95 % intervals over prompts "
        "and seeds; differences are of the same prompt, seed and view."
    )
    if size["jobs"] > 1:
        text += " Several runs shared the machine, so that seconds do not compare with those of other tables."
    if size["of_other_code"]:
        text += f" {size['of_other_code']} of {size['runs']} runs were made by other code (`--again`)."
    return text
