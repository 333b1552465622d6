"""The paper's claims: what it says and printed, the command that tries each, and what the kept numbers say of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreammapping.reproduction.cells import RESULTS, CellStore
from dreammapping.reproduction.figures import (
    CLIP,
    DETAIL,
    DETAIL_OFF,
    FID,
    FIGURES,
    PRECISION,
    SATURATION,
    SECONDS,
    SYSTEMS,
)
from dreammapping.reproduction.report import write_json
from dreammapping.reproduction.table import write_report
from dreammapping.reproduction.verdicts import (
    Finding,
    Kept,
    counted,
    differs,
    falls,
    first_of,
    is_better_method,
    with_detail,
)
from utils.files import atomic
from utils.repository import ROOT

PAGE = ROOT / "docs" / "reproduction.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
NOT_RUN = "not run yet"
NO_ANSWERS = "nobody was asked yet"
_IN_TABLE_3 = ("table2", "table4")
"""Whose runs are some of Table 3's, and their pictures part of its picture."""
NOTHING = "-"
"""Came out, where there are no numbers."""


@dataclass(frozen=True)
class Claim:
    """One row.

    Attributes:
        figure: whose numbers decide: a figure or table of the paper, or the documents' table `methods`.
        printed: the paper's own evidence; a number that it took from elsewhere says so.
        judge: the finding of the figure's numbers; None where they lack what it takes.
        why: what is known of why it came out so.
    """

    statement: str
    figure: str
    printed: str
    judge: Callable[[Kept], Finding | None]
    why: str = ""


_COPIED = "copied from GaussianDreamer's paper"
_CEILING = "R-precision is at its ceiling"
_RECOGNISED = "every view of all runs is recognised"
"""Said only where the kept numbers say so."""
_MORE_WORK = "VSD evaluates the U-Net more often, once of it backward (Table 1)"


def _beats(name: str, measure: str, expected: str, printed: str, why: str = "") -> Claim:
    system = SYSTEMS[name].caption
    table = "table3" if measure == FID else "table2"
    word = {"higher": "a higher", "lower": "a lower"}[expected]
    return Claim(
        f"DreamMapping has {word} {measure} than {system}",
        table,
        printed,
        differs("vdm", name, measure, expected),
        why,
    )


CLAIMS = (
    Claim(
        "VDM adds detail to SDS at CFG 7.5, which is over-smooth",
        "fig6",
        "pictures",
        with_detail(differs("vdm_without_dca", "sds", DETAIL_OFF, "lower"), "sds", "lower"),
    ),
    Claim(
        "DCA takes away the saturation that VDM alone has",
        "fig6",
        "pictures",
        differs("vdm", "vdm_without_dca", SATURATION, "lower"),
        "VDM alone is no more saturated than the true objects here",
    ),
    Claim(
        "VDM + DCA fits the text better than SDS at CFG 7.5 (ours)",
        "fig6",
        "pictures",
        differs("vdm", "sds", CLIP, "higher"),
        _RECOGNISED,
    ),
    Claim(
        "VDM + DCA fits the text better than VDM alone (ours)",
        "fig6",
        "pictures",
        differs("vdm", "vdm_without_dca", CLIP, "higher"),
        _RECOGNISED,
    ),
    Claim(
        "a nonlinear operator is better than a linear one; by text fit (ours)",
        "fig7",
        "pictures",
        differs("vdm", "vdm_linear", CLIP, "higher"),
        _RECOGNISED,
    ),
    Claim(
        "a linear operator leaves more noise",
        "fig7",
        "pictures",
        with_detail(differs("vdm", "vdm_linear", DETAIL, "lower"), "vdm_linear", "higher"),
        "renders of both are smoother than the true objects here",
    ),
    Claim(
        "learnable noise behind the operator makes it no better, but worse; by text fit (ours)",
        "fig7",
        "pictures, artifacts in some",
        differs("vdm_ulite_noise", "vdm", CLIP, "lower"),
        _RECOGNISED,
    ),
    Claim(
        "a cut-off of 100 saturates more than 300",
        "fig8",
        "pictures",
        differs("vdm", "vdm_cutoff_100", SATURATION, "lower"),
        "on average none is more saturated than the true objects here",
    ),
    Claim(
        "a cut-off of 500 is smoother than 300",
        "fig8",
        "pictures",
        differs("vdm", "vdm_cutoff_500", DETAIL, "higher"),
    ),
    *(
        Claim(
            f"a cut-off of 300 fits the text better than {other} (ours)",
            "fig8",
            "pictures",
            differs("vdm", f"vdm_cutoff_{other}", CLIP, "higher"),
            _RECOGNISED,
        )
        for other in (100, 500)
    ),
    Claim(
        "on a radiance field VDM + DCA fits the text better than SDS at CFG 7.5 (ours)",
        "fig9",
        "pictures",
        differs("vdm", "sds", CLIP, "higher"),
        _RECOGNISED,
    ),
    Claim(
        "on a radiance field VDM + DCA takes less time than VSD",
        "fig9",
        f"1.9 h; VSD 10 h, {_COPIED}",
        differs("vdm", "vsd", SECONDS, "lower"),
        f"{_MORE_WORK}; alone it was timed in [radiance_fields.md](radiance_fields.md)",
    ),
    Claim(
        "in 2D VDM + DCA fits the text better than SDS at CFG 7.5 (ours)",
        "fig10",
        "pictures",
        differs("vdm", "sds@7.5", CLIP, "higher"),
    ),
    Claim(
        "in 2D VDM + DCA saturates less than SDS at CFG 100",
        "fig10",
        "pictures",
        differs("vdm", "sds@100", SATURATION, "lower"),
    ),
    Claim(
        "in 2D VDM + DCA takes less time than VSD",
        "fig10",
        "pictures",
        differs("vdm", "vsd", SECONDS, "lower"),
        _MORE_WORK,
    ),
    Claim(
        "the noise and its prediction correlate the less, the smaller t is, in renders",
        "fig11",
        "a curve",
        falls("renders"),
    ),
    Claim("the same in the prior's own samples", "fig11", "a curve", falls("samples")),
    Claim(
        "an iteration of VDM takes as many evaluations of the U-Net as one of SDS",
        "table1",
        "in words",
        counted("vdm", "sds", "equal"),
    ),
    Claim(
        "and fewer than one of VSD, with none backward",
        "table1",
        "Figure 3, in words",
        counted("vdm", "vsd", "fewer"),
    ),
    _beats("dreamfusion", CLIP, "higher", f"30.16; 23.60, {_COPIED}", _RECOGNISED),
    _beats("dreamgaussian", CLIP, "higher", "30.16; 20.85", _RECOGNISED),
    _beats("gaussiandreamer", CLIP, "higher", f"30.16; 27.23, {_COPIED}", _RECOGNISED),
    _beats(
        "prolificdreamer",
        CLIP,
        "higher",
        f"ViT-L/14: 30.16; 27.39, {_COPIED}; of ViT-bigG/14 it prints the reverse, 42.10; 42.98",
        _RECOGNISED,
    ),
    Claim(
        "DreamMapping takes less time than ProlificDreamer",
        "table2",
        f"15 min; 10 h, {_COPIED}",
        differs("vdm", "prolificdreamer", SECONDS, "lower"),
        _MORE_WORK,
    ),
    _beats("dreamfusion", FID, "lower", "139.03; 191.82, copied from ProlificDreamer's paper"),
    _beats("prolificdreamer", FID, "lower", "139.03; 159.84"),
    _beats("dreamgaussian", FID, "lower", "139.03; 265.88"),
    _beats("gaussiandreamer", FID, "lower", "139.03; 156.71"),
    _beats("luciddreamer", FID, "lower", "139.03; 142.63"),
    Claim(
        "people find that DreamMapping fits the text best",
        "table4",
        "mean rank 1.05; the next 2.50",
        first_of("alignment", "DreamMapping"),
    ),
    Claim(
        "people find that DreamMapping looks best",
        "table4",
        "mean rank 1.49; the next 2.34",
        first_of("quality", "DreamMapping"),
    ),
    Claim(
        "a cut-off that is learned would be better, one of the paper's closing wishes; by R-precision (ours)",
        "methods",
        "none",
        is_better_method("vdm_dca_learned", "vdm"),
        _CEILING,
    ),
    Claim(
        "an operator trained before the run would be better, another closing wish; by R-precision (ours)",
        "methods",
        "none",
        is_better_method("vdm_warm", "vdm"),
        _CEILING,
    ),
)


def table() -> str:
    """A row for each claim, of the kept numbers alone."""
    lines = [
        "| the paper's claim | it printed | command | came out | verdict | what is known of why |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        said, verdict, command = finding(claim)
        why = "" if said == NOTHING else known(claim)
        lines.append(f"| {claim.statement} | {claim.printed} | `{command}` | {said} | {verdict} | {why} |")
    return "\n".join([*lines, *_pictures()])


def _pictures() -> list[str]:
    """Those of the figures that are kept."""
    kept = {name: f"reproduction_{name}.png" for name in FIGURES if (RESULTS / f"{name}.json").is_file()}
    return [
        line
        for name, picture in kept.items()
        if (IMAGES / picture).is_file()
        for line in ("", f"![{FIGURES[name].place}](images/{picture})", "", f"{FIGURES[name].place}.")
    ]


def known(claim: Claim) -> str:
    """What is known of why it came out so: of the toybox alone, and what numbers tell only where they do."""
    kept = _kept(claim)
    if kept.get("model", "toybox") != "toybox":
        return ""
    measured = [each.get("measures", {}).get(PRECISION, {}) for each in kept.get("variants", {}).values()]
    if claim.why == _RECOGNISED and not all(each.get("mean") == 1.0 for each in measured):
        return ""
    return claim.why


def _kept(claim: Claim) -> Kept:
    """The numbers of its figure; none where that has not been made."""
    path = RESULTS / f"{claim.figure}.json"
    if not path.is_file():
        return {}
    if claim.figure == "methods":
        return {"cells": CellStore(path).results}
    return json.loads(path.read_text(encoding="utf-8"))


def finding(claim: Claim) -> tuple[str, str, str]:
    """What the kept numbers say of a claim: what came out with its runs and prior, the verdict, and the command."""
    kept = _kept(claim)
    command = kept.get("command", f"python -m dreammapping reproduce {claim.figure}")
    found = claim.judge(kept) if kept else None
    if found is None:
        asks_people = "study" in kept and kept["study"] is None
        return NOTHING, NO_ANSWERS if asks_people else NOT_RUN, command
    said, verdict = found
    if "model" in kept:
        runs, model = kept["size"]["runs"], kept["model"].rpartition("/")[2]
        said += f"; {runs} run{'s' * (runs != 1)}, {model}"
    return said, verdict, command


def keep(name: str, found: Kept, picture: Path | None) -> None:
    """Keep a figure's numbers and picture in the repository, and write the page anew.

    Raises:
        UserError: a file cannot be written, or the page has no place for the table.
    """
    write_json(RESULTS / f"{name}.json", found)
    if picture is not None and name not in _IN_TABLE_3:
        with atomic(IMAGES / f"reproduction_{name}.png") as temporary:
            shutil.copy(picture, temporary)
    write_page()


def write_page() -> None:
    """Write the page anew, of the kept numbers alone.

    Raises:
        UserError: as `keep`.
    """
    write_report(table(), PAGE, BEGIN, END)
