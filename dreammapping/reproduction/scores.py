"""The numbers of a figure: what is measured of each run, and which differences its runs can tell."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dreammapping.evaluation import encoders
from dreammapping.evaluation.evaluate import Judges, Protocol, default_encoder, measure
from dreammapping.evaluation.pictures import Source
from dreammapping.evaluation.statistics import Scores, Verdict, compare, interval
from dreammapping.finished import FinishedRun
from dreammapping.reproduction.cells import Result
from dreammapping.reproduction.figures import (
    BACKWARD,
    CLIP,
    CMMD,
    DETAIL,
    DETAIL_OFF,
    EVALUATIONS,
    FID,
    KID,
    MIND,
    PRECISION,
    SATURATION,
    SECONDS,
    Figure,
)
from dreammapping.reproduction.table import of_other_code
from utils.errors import UserError

PUBLISHED = ("vit-l-14", "vit-bigg-14")
"""The CLIPs of the paper's Table 2, for prompts that the toybox's own does not know."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Measures a run's folder; loaded once, and used by all runs of a figure."""

    judges: Judges

    @classmethod
    def load(cls, wanted: dict[str, Any]) -> "Judge":
        """What `asked` says; what is missing is said before anything is trained.

        Raises:
            UserError: weights are missing or broken.
        """
        names = tuple(wanted["encoders"])
        if problems := encoders.missing(names):
            raise UserError("; ".join(problems))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        clips = [encoders.load_encoder(name, device) for name in names]
        return cls(Judges(Protocol(encoders=names, views=wanted["views"]), clips, None, {}))

    def __call__(self, folder: Path) -> Result:
        source = Source.open(folder)
        config = FinishedRun.open(folder).config
        image = config.ModelParams.representation == "image"
        views = config.ImageParams.particles if image else config.GuidanceParams.C_batch_size
        row, protocol = measure(source, self.judges), self.judges.protocol
        judged = {"encoders": list(protocol.encoders), "views": protocol.views}
        return row | {"judged": judged, "views": row["pictures"], "updates": config.iterations * views}


def asked(prompts: Sequence[str], views: int, *, published: bool = False) -> dict[str, Any]:
    """What runs of these prompts are judged by: `encoders` that know them, and `views`.

    Args:
        published: both CLIPs of Table 2, unless the toybox's knows all prompts.
    """
    name = default_encoder(prompts)
    return {"encoders": list(PUBLISHED) if published and name != encoders.TOYBOX else [name], "views": views}


def is_outdated(result: Result, wanted: dict[str, Any]) -> bool:
    """Whether a finished cell was judged otherwise than is `asked`, and must be judged again."""
    judged = result.get("judged", {"encoders": [], "views": None})
    return judged["views"] != wanted["views"] or not {*wanted["encoders"]} <= {*judged["encoders"]}


def _clip(result: Result) -> list[float]:
    return next(iter(result["clip"].values()))["scores"]


def _second_clip(result: Result) -> list[float]:
    return result["clip"].get(PUBLISHED[1], {}).get("scores", [])


def _distance(key: str, factor: float = 1.0) -> Callable[[Result], list[float]]:
    return lambda result: [factor * result["distances"][key]]


def _precision(result: Result) -> list[float]:
    share = next(iter(result["clip"].values())).get("r_precision")
    return [] if share is None else [share]


def _one(key: str) -> Callable[[Result], list[float]]:
    return lambda result: [] if result.get(key) is None else [result[key]]


def _off_in_detail(result: Result) -> list[float]:
    """How far from the true object's, too smooth or too noisy."""
    return [abs(value) for value in _one("fine_detail")(result)]


def _evaluations(result: Result) -> list[float]:
    """Forward and backward, of the iterations alone."""
    counted = result["cost"].get("score_model_evaluations")
    if counted is None:
        return []
    return [(counted["forward"] + counted["backward"] - counted.get("pretraining", 0)) / result["updates"]]


def _backward(result: Result) -> list[float]:
    counted = result["cost"].get("score_model_evaluations")
    return [] if counted is None else [counted["backward"] / result["updates"]]


MEASURES: dict[str, Callable[[Result], list[float]]] = {
    CLIP: _clip,
    f"{CLIP}, {PUBLISHED[1]}": _second_clip,
    PRECISION: _precision,
    SATURATION: _one("saturation"),
    "true saturation": _one("true_saturation"),
    DETAIL: _one("fine_detail"),
    DETAIL_OFF: _off_in_detail,
    SECONDS: _one("seconds"),
    EVALUATIONS: _evaluations,
    BACKWARD: _backward,
}
"""A number for each view, or one for the run; none where it cannot be known of it."""
DISTANCES = {
    FID: _distance("fid"),
    KID: _distance("kid", 1000.0),
    CMMD: _distance("cmmd"),
    MIND: _distance("mind"),
}
"""Of all runs of one variant and seed together."""


def scores(results: Iterable[Result], measured: Callable[[Result], list[float]]) -> Scores:
    """One measure of one variant's runs, by prompt, seed and view."""
    return {
        (result["prompt"], result["seed"], view): value
        for result in results
        for view, value in enumerate(measured(result))
    }


def numbers(
    figure: Figure,
    results: Sequence[Result],
    measures: Mapping[str, Callable[[Result], list[float]]] = MEASURES,
) -> dict[str, Any]:
    """What a figure's results say, as JSON values.

    Keys: `variants`, by name: `caption`, `runs`, and `measures`, each an `Interval`, where a run has it;
    `comparisons`: `first`, `second`, `measure`, and of the difference an interval, `unpaired`, `needed`, `verdict`.
    """
    of = {name: [result for result in results if result["method"] == name] for name in figure.variants}
    variants = {}
    for name, runs in of.items():
        measured = {each: found for each, measure in measures.items() if (found := scores(runs, measure))}
        variants[name] = {
            "caption": figure.variants[name].caption,
            "runs": len(runs),
            "measures": {each: dataclasses.asdict(interval(found)) for each, found in measured.items()},
        }
    comparisons = []
    for pair in figure.pairs:
        first, second = (scores(of[name], measures[pair.measure]) for name in (pair.first, pair.second))
        if first.keys() & second.keys():
            found = compare(first, second)
            # runs that shared the machine took each other's time
            shared = pair.measure == SECONDS and any(result["jobs"] > 1 for result in results)
            verdict: Verdict = "not told apart" if shared else found.verdict
            comparisons.append(dataclasses.asdict(pair) | dataclasses.asdict(found) | {"verdict": verdict})
    return {"variants": variants, "comparisons": comparisons}


def size(results: Sequence[Result]) -> dict[str, Any]:
    """What a figure stands on."""
    return {
        "runs": len(results),
        "prompts": list(dict.fromkeys(result["prompt"] for result in results)),
        "seeds": len({result["seed"] for result in results}),
        "views": max((result["views"] for result in results), default=0),
        "updates": max((result["updates"] for result in results), default=0),
        "jobs": max((result["jobs"] for result in results), default=1),
        "devices": sorted({str(result["cost"].get("device")) for result in results}),
        "encoders": sorted({name for result in results for name in result["clip"]}),
        "of_other_code": sum(map(of_other_code, results)),
        "minutes": statistics.fmean(result["seconds"] or 0.0 for result in results) / 60 if results else 0.0,
    }
