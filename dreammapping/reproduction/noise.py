"""Figure 11 of a prior: the noise and its prediction over t, for renders half-way and for its own samples."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dreammapping.evaluation.pictures import Source
from dreammapping.evaluation.references import sample
from dreammapping.evaluation.statistics import interval
from dreammapping.finished import FinishedRun
from dreammapping.reproduction.cells import Cell, CellStore, Result, code_digest, digest_of_runs, is_gone
from dreammapping.reproduction.chart import Line, Panel, write_chart
from dreammapping.reproduction.correlation import STEPS, Point, falls, point
from dreammapping.reproduction.report import counted, shown
from guidance.noise import standard_normal_like
from guidance.prior.score_model import ScoreModel
from utils.repository import ROOT

PICTURES, NOISES = 64, 32
"""Pictures of a prompt, and noises of each at every t."""
BATCH = 32
KINDS = {"renders": "renders, half-way", "samples": "samples of the prior"}
LINES = {
    "variance": "variance of the prediction",
    "lower_bound": "correlation, lower bound",
    "stationary": "correlation, stationary",
    "on_crops": "correlation, on crops",
}
CUTOFF = 300

Draw = Callable[[ScoreModel, FinishedRun, int], Float[Tensor, "V 3 H W"]]


def half_way(prior: ScoreModel, run: FinishedRun, count: int) -> Float[Tensor, "V 3 H W"]:
    """Renders of the saved iteration nearest to the middle of the run."""
    del prior
    middle = min(run.iterations, key=lambda step: abs(2 * step - run.config.iterations))
    return Source.open(run.folder, iteration=middle).pictures(count)


def samples(prior: ScoreModel, run: FinishedRun, count: int) -> Float[Tensor, "V 3 H W"]:
    """What the prior draws of the run's prompt; runs of other seeds have other pictures."""
    seeds = list(range(run.config.seed * count, (run.config.seed + 1) * count))
    return torch.cat([sample(prior, run.prompt, seeds[first : first + 8]) for first in range(0, count, 8)])


DRAWS: dict[str, Draw] = {"renders": half_way, "samples": samples}


@torch.no_grad()
def points(
    prior: ScoreModel, images: Float[Tensor, "V 3 H W"], prompt: str, rng: torch.Generator
) -> Iterator[Point]:
    """The numbers at every t, each over all pictures and `NOISES` noises of each."""
    latents = torch.cat([prior.encode_images(part.to(prior.device), rng) for part in images.split(BATCH)])
    clean = latents.repeat_interleave(NOISES, dim=0)
    text = prior.encode_text([prompt])
    for t in STEPS:
        noise = standard_normal_like(clean, rng)
        signal = prior.alphas_cumprod[t]
        noisy = signal.sqrt() * clean + (1.0 - signal).sqrt() * noise
        predicted = [
            prior.predict_noise(
                part,
                torch.full((len(part),), t, device=prior.device),
                text.expand(len(part), -1, -1),
            ).cpu()
            for part in noisy.split(BATCH)
        ]
        yield point(t, torch.cat(predicted), noise.cpu(), pictures=len(latents))


def measure_missing(
    runs: dict[Cell, Result], store: CellStore, count: int, *, train: bool
) -> dict[str, list[Result]]:
    """The curves of every run, by kind; those that the store has are not made again.

    Args:
        runs: the finished runs.
        count: pictures of each.
        train: False: only what the store has.
    """
    found: dict[str, list[Result]] = {kind: [] for kind in KINDS}
    for cell, run in runs.items():
        for kind, draw in DRAWS.items():
            told = digest_of_runs([(cell, run)], f"{count} {NOISES} {STEPS}")
            stands = Cell(cell.prompt, f"curve of {kind}", cell.seed, told)
            kept = store.get(stands)
            if kept is None and train and not is_gone(run):
                kept = _measure(ROOT / run["run"], draw, count) | {"prompt": cell.prompt, "seed": cell.seed}
                store.put(stands, kept)
            if kept is not None:
                found[kind].append(kept)
    return found


def _measure(folder: Path, draw: Draw, count: int) -> Result:
    run = FinishedRun.open(folder)
    prior = ScoreModel.from_pretrained(
        run.config.GuidanceParams, "cuda" if torch.cuda.is_available() else "cpu"
    )
    rng = torch.Generator().manual_seed(run.config.seed)
    images = draw(prior, run, count)
    found = [dataclasses.asdict(each) for each in points(prior, images, run.prompt, rng)]
    return {"points": found, "pictures": len(images), "noises": NOISES, "code": code_digest()}


def curves(found: dict[str, list[Result]]) -> dict[str, Any]:
    """Means over prompts and seeds as JSON values.

    Keys: `curves`, by kind: `points`, each with `t` and an interval of every number; `falls`, an interval of the rank
    correlation of t and the lower bound; `pictures`, `noises`, `prompts`, `seeds`.
    """
    return {"curves": {kind: _curve(results) for kind, results in found.items() if results}}


def _curve(results: Sequence[Result]) -> dict[str, Any]:
    averaged = []
    for index, t in enumerate(STEPS):
        values: dict[str, Any] = {"t": t}
        for name in LINES:
            known = {
                (result["prompt"], result["seed"], 0): value
                for result in results
                if (value := result["points"][index][name]) is not None
            }
            values[name] = dataclasses.asdict(interval(known)) if known else None
        averaged.append(values)
    falling = {
        (result["prompt"], result["seed"], 0): falls(Point(**each) for each in result["points"])
        for result in results
    }
    return {
        "points": averaged,
        "falls": dataclasses.asdict(interval(falling)),
        "pictures": results[0]["pictures"],
        "noises": results[0]["noises"],
        "prompts": list(dict.fromkeys(result["prompt"] for result in results)),
        "seeds": len({result["seed"] for result in results}),
    }


def draw(found: dict[str, Any], path: Path) -> bool:
    """Both kinds side by side, the cut-off marked. False, and nothing is written, where there is none."""
    panels = [
        Panel(
            KINDS[kind],
            [
                Line(label, [(each["t"], each[name]["mean"]) for each in curve["points"] if each[name]])
                for name, label in LINES.items()
            ],
            mark=(CUTOFF, f"cut-off {CUTOFF}"),
        )
        for kind, curve in found["curves"].items()
    ]
    if panels:
        write_chart(path, panels, x_title="t")
    return bool(panels)


def markdown(found: dict[str, Any], place: str, command: str, picture: str | None, size_note: str) -> str:
    """The page: both curves as tables, and what they stand on."""
    lines = [f"# {place}", "", f"`{command}`", ""]
    if picture is not None:
        lines += [f"![{place}]({picture})", ""]
    for kind, curve in found["curves"].items():
        lines += [
            f"## {KINDS[kind].capitalize()}",
            "",
            "| t | " + " | ".join(LINES.values()) + " |",
            "| --- |" + " --- |" * len(LINES),
            *(
                f"| {each['t']} | " + " | ".join(shown(each[name]) for name in LINES) + " |"
                for each in curve["points"]
            ),
            "",
            f"Rank correlation of t and the lower bound: {shown(curve['falls'])} (1: it falls all the way to 0). "
            f"{counted(len(curve['prompts']), 'prompt')}, {counted(curve['seeds'], 'seed')}, "
            f"{curve['pictures']} pictures of each, "
            f"{curve['noises']} noises of a picture at each t; in brackets 95 % intervals.",
            "",
        ]
    return "\n".join([*lines, size_note, ""])
