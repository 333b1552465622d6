"""Make a figure of the paper: train and judge what is missing of its runs, and report what is there."""

import dataclasses
import json
import logging
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from arguments import load
from dreammapping.evaluation import encoders
from dreammapping.evaluation.evaluate import Protocol, default_encoder, evaluate
from dreammapping.evaluation.pictures import Source
from dreammapping.reproduction import claims, noise, report
from dreammapping.reproduction.cells import Cell, CellStore, Result, digest_of_runs, is_gone
from dreammapping.reproduction.figures import CONFIGS, FIGURES, Figure, Variant, Words, image_variants
from dreammapping.reproduction.prompts import TUNED_ON, choose_prompts
from dreammapping.reproduction.scores import DISTANCES, Judge, asked, is_outdated, numbers, size
from dreammapping.reproduction.table import Plan, finish_cells, make_cell
from dreammapping.study import build as study
from dreammapping.study import score as ranking
from toybox.recognition import parse_caption
from utils.errors import UserError
from utils.files import write_text
from utils.repository import ROOT

CELLS, STUDY = "cells.json", "study"
"""The finished cells; the first word of the folders of studies."""
VIEWS, VIEWS_OF_DISTANCES = 24, 40
"""Views that judge a run; those of each run, and references of each prompt, whose distances are taken."""
OUTPUT = Path("output") / "reproduction"
_NO_SPHERE = "GenerateCamParams.init_fallback=stop"
"""A system that begins with another shape is another system, unless the user says otherwise."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What is asked for, as `reproduce --help` has it.

    Attributes:
        model: the prior of every run.
        prompts: a file of prompts, one a line, or their number; None: the figure's own number.
        views: that judge each run; None: the figure's own number.
        overrides: settings for every run.
        output: where pictures, numbers, pages and finished cells go.
        train: False: only what is finished is reported.
        write: also keep the numbers and the picture in the repository, for docs/reproduction.md.
    """

    model: str = "toybox"
    opt: Path | None = None
    prompts: str | None = None
    seeds: int | None = None
    iterations: int | None = None
    views: int | None = None
    overrides: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    output: Path = OUTPUT
    jobs: int = 1
    again: bool = False
    train: bool = True
    write: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "iterations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name}: expected at least 1, got {value}; give a larger number")

    @property
    def toybox(self) -> bool:
        return self.model == "toybox"

    def store(self) -> CellStore:
        return CellStore(self.output / CELLS)


@dataclass(frozen=True)
class Work:
    """A figure's runs, as an order has them.

    Attributes:
        cells: every run with the words that `train.py` is given for it.
    """

    figure: Figure
    order: Order
    plan: Plan
    prompts: list[str]
    cells: dict[Cell, list[str]]

    def results(self, store: CellStore) -> list[Result]:
        """Those that are finished, and judged as the order asks, in the order of the cells."""
        return list(self.finished(store).values())

    def finished(self, store: CellStore) -> dict[Cell, Result]:
        """The same by cell."""
        kept = {cell: store.get(cell) for cell in self.cells}
        return {
            cell: run for cell, run in kept.items() if run is not None and not is_outdated(run, self.asked)
        }

    @property
    def stem(self) -> str:
        """The name of its files: priors stand side by side, as in figure 14."""
        model = re.sub(r"[^\w.-]+", "_", self.order.model.rstrip("/").rpartition("/")[2])
        return self.figure.name if self.order.toybox else f"{self.figure.name}_{model}"

    @property
    def asked(self) -> dict[str, Any]:
        """What every run is judged by."""
        return asked(self.prompts, self.plan.views, published=self.figure.name == "table2")


def plan_work(figure: Figure, order: Order) -> Work:
    """The runs that a figure needs; two figures with the same run have the same cell.

    Raises:
        UserError: a prompt, a method or a setting cannot be used.
    """
    if order.methods:
        figure = _chosen(figure, order.methods)
    here = figure.size[torch.cuda.is_available()]
    prompts = read_prompts(order.prompts, here[0], toybox=order.toybox)
    iterations = order.iterations or figure.iterations
    setting = "ImageParams.steps" if figure.kind == "image" else "OptimizationParams.iterations"
    plan = Plan(
        opt=order.opt or figure.settings(toybox=order.toybox),
        overrides=(
            f"GuidanceParams.model_key={order.model}",
            *([f"{setting}={iterations}"] if iterations else []),
            *order.overrides,
        ),
        prompts=len(prompts),
        seeds=order.seeds or here[1],
        views=VIEWS if order.views is None else order.views,
        jobs=order.jobs,
        again=order.again,
    )
    cells, fallback = {}, () if any("init_fallback" in word for word in order.overrides) else (_NO_SPHERE,)
    settings_of = {name: _settings(plan, variant, order) for name, variant in figure.variants.items()}
    for prompt in prompts:
        for seed in range(plan.seeds):
            for name, (own, words, starts_from_text) in settings_of.items():
                start = (f"GenerateCamParams.init_prompt={prompt}", *fallback) if starts_from_text else ()
                cell, settings = make_cell(own, prompt, name, (*words, *start), seed)
                cells[cell] = settings
    return Work(figure, order, plan, prompts, cells)


def _settings(plan: Plan, variant: Variant, order: Order) -> tuple[Plan, Words, bool]:
    """What a variant's runs are given, and whether they start from a shape that is made of the prompt."""
    words = variant.words
    if variant.file is not None and not order.toybox:
        plan, words = dataclasses.replace(plan, opt=variant.file), ()
    config, _ = load([*plan.words, *words, "ModelParams.workspace=bench"])
    return plan, words, config.starts_from_text


def _chosen(figure: Figure, names: tuple[str, ...]) -> Figure:
    """A figure of these variants alone; in 2D any method can be named, with its scale."""
    variants = image_variants(names) if figure.kind == "image" else figure.variants
    if unknown := [name for name in names if name not in variants]:
        raise UserError(f"--methods: expected some of {', '.join(variants)}, got {unknown[0]}; correct it")
    kept = {name: variants[name] for name in names}
    pairs = tuple(pair for pair in figure.pairs if {pair.first, pair.second} <= kept.keys())
    return dataclasses.replace(figure, variants=kept, pairs=pairs)


def read_prompts(given: str | None, default: int, *, toybox: bool) -> list[str]:
    """The prompts of a file, or the first so many of our own: the toybox's, or those of the paper's settings.

    Raises:
        UserError: it is neither a file nor such a number, or the file has no line.
    """
    if given is not None and not given.isdecimal():
        try:
            lines = [line.strip() for line in Path(given).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts: expected a number, or a file with a prompt a line, got {given} ({error}); correct it"
            ) from error
        found = list(dict.fromkeys(line for line in lines if line))
        if not found:
            raise UserError(f"--prompts: expected a prompt a line, got none in {given}; write some")
        if toybox:
            _warn_of(tuple(prompt for prompt in found if parse_caption(prompt) is None))
        return found
    count = default if given is None else int(given)
    if toybox:
        known = choose_prompts(max(count, 2), TUNED_ON)
    else:
        known = paper_prompts()
        count = count if given is not None else min(count, len(known))
    if not 1 <= count <= len(known):
        raise UserError(f"--prompts: expected 1 to {len(known)}, got {count}; give fewer, or a file")
    return known[:count]


@cache
def _warn_of(unknown: tuple[str, ...]) -> None:
    """Say once which prompts are none of the toybox's."""
    if unknown:
        log.warning(
            "--prompts: the toybox does not know %s; all runs are judged by ViT-L/14 instead of its own CLIP",
            ", ".join(map(repr, unknown)),
        )


def paper_prompts() -> list[str]:
    """Those of the settings in configs/."""
    files = [path for path in sorted(CONFIGS.glob("*.yaml")) if path.name != "quickstart.yaml"]
    return [load(["--opt", str(path)])[0].GuidanceParams.text for path in files]


def reproduce(name: str, order: Order) -> tuple[list[str], str]:
    """Make one figure; the messages of what failed, and its page.

    Raises:
        UserError: something cannot be used, or weights are missing.
    """
    work, store = plan_work(FIGURES[name], order), order.store()
    failures = finish(work, store) if order.train else []
    results = work.results(store)
    return failures, _LEFT.get(name, _compared)(work, store, results)


def finish(work: Work, store: CellStore) -> list[str]:
    """Train and judge what is missing; the messages of what failed."""
    opened = work.figure.name in _LEFT

    def outdated(kept: Result) -> bool:
        return is_outdated(kept, work.asked) or (opened and is_gone(kept))

    return finish_cells(work.cells, store, work.plan, Judge.load(work.asked), outdated)


def _compared(work: Work, _store: CellStore, results: list[Result]) -> str:
    """A figure that compares runs."""
    found = numbers(work.figure, results) | {"size": size(results)}
    return leave(
        work,
        results,
        found,
        draw=lambda path: report.draw(work.figure, results, path),
        page=lambda picture: report.markdown(work.figure, found, command(work), picture),
    )


def _curves(work: Work, store: CellStore, results: list[Result]) -> str:
    """Figure 11."""
    count = work.order.views or noise.PICTURES
    found = noise.curves(noise.measure_missing(work.finished(store), store, count, train=work.order.train))
    return leave(
        work,
        results,
        found,
        draw=lambda path: noise.draw(found, path),
        page=lambda picture: noise.markdown(
            found, work.figure.place, command(work), picture, report.size_note(size(results))
        ),
    )


def _distances(work: Work, store: CellStore, results: list[Result]) -> str:
    """Table 3: distances of all views of a system to pictures that the prior draws of the same prompts."""
    pooled = distances_of(work, store, results)
    found = numbers(work.figure, pooled, DISTANCES) | {"size": size(results)}
    features = sorted({each["distances"]["features"] for each in pooled})
    counts = sorted({(each["distances"]["pictures"], each["distances"]["references"]) for each in pooled})
    notes = [
        f"Features of {', '.join(features)}; pictures and references of each seed: "
        f"{', '.join(f'{first} and {second}' for first, second in counts)}. Distances of other numbers or features "
        "do not compare with these.",
        "",
    ]
    return leave(
        work,
        results,
        found | {"features": features, "pictures_and_references": counts},
        draw=lambda path: report.draw(work.figure, results, path),
        page=lambda picture: report.markdown(
            work.figure, found, command(work), picture, notes if pooled else ()
        ),
    )


def distances_of(work: Work, store: CellStore, results: list[Result]) -> list[Result]:
    """The distances of each system and seed whose runs are all finished; those that the store has stand."""
    toybox = default_encoder(work.prompts) == encoders.TOYBOX
    views = work.order.views or VIEWS_OF_DISTANCES
    protocol = Protocol(
        features=None if toybox else encoders.INCEPTION,
        encoders=(default_encoder(work.prompts),),
        views=views,
        references=views,
        cache=work.order.output / "references",
    )
    pooled = []
    for name in work.figure.variants:
        for seed in range(work.plan.seeds):
            cells = [cell for cell in work.cells if (cell.method, cell.seed) == (name, seed)]
            runs = [each for each in results if (each["method"], each["seed"]) == (name, seed)]
            told = json.dumps([protocol.views, protocol.references, protocol.features])
            made = digest_of_runs(((cell, store.get(cell)) for cell in cells), told)
            stands = Cell("all prompts", f"3D-FID of {name}", seed, made)
            kept = store.get(stands)
            complete = len(runs) == len(cells) and not any(map(is_gone, runs))
            if kept is None and work.order.train and complete:
                sources = [Source.open(ROOT / run["run"]) for run in runs]
                row = evaluate(sources, protocol, pool=True)[0]
                kept = {"prompt": stands.prompt, "method": name, "seed": seed, "distances": row["distances"]}
                store.put(stands, kept)
            pooled += [] if kept is None else [kept]
    return pooled


def _preferred(work: Work, store: CellStore, results: list[Result]) -> str:
    """Table 4: a page for participants, and the ranks of what they have answered. Other runs have another page."""
    made = digest_of_runs((cell, store.get(cell)) for cell in work.cells)
    folder = work.order.output / f"{STUDY}_{made}"
    answers = sorted(folder.glob("answers*.json"))
    complete = len(results) == len(work.cells) and not any(map(is_gone, results))
    if work.order.train and not answers and complete:
        entries = [
            study.Entry(work.figure.variants[each["method"]].caption, Source.open(ROOT / each["run"]))
            for each in results
        ]
        study.build(entries).write(folder)
    ranks = ranking.score(answers, folder / study.KEY) if answers else None
    if ranks is not None:
        said = ranking.markdown(ranks)
    elif (folder / study.PAGE).is_file():
        said = (
            f"Nobody has answered yet: {folder / study.PAGE} is for participants, whose files go beside it."
        )
    else:
        said = "There is no page for participants yet."
    lines = [f"# {work.figure.place}", "", f"`{command(work)}`", ""]
    return leave(
        work,
        results,
        {"study": None if ranks is None else ranks.as_dict()},
        draw=lambda path: report.draw(work.figure, results, path),
        page=lambda picture: "\n".join(
            [
                *lines,
                *([f"![{work.figure.place}]({picture})", ""] if picture else []),
                said,
                "",
                report.size_note(size(results)),
                "",
            ]
        ),
    )


_LEFT: dict[str, Callable[[Work, CellStore, list[Result]], str]] = {
    "fig11": _curves,
    "table3": _distances,
    "table4": _preferred,
}
"""Figures that open the folders of their runs once these are finished."""


def leave(
    work: Work,
    results: list[Result],
    found: dict[str, Any],
    draw: Callable[[Path], bool],
    page: Callable[[str | None], str],
) -> str:
    """Write a figure's picture, numbers and page; returns the page. A picture that cannot be drawn again stays.

    Args:
        draw: writes the picture, if there is something to draw.
        page: makes the page of the picture's name.
    """
    name, stem, output = work.figure.name, work.stem, work.order.output
    picture = output / f"{stem}.png"
    shown = picture.name if draw(picture) or picture.is_file() else None
    missing = len(work.cells) - len(results)
    text = page(shown) + (f"\nUnfinished: {missing} of {len(work.cells)} runs.\n" if missing else "")
    told = {"figure": name, "command": command(work), "model": work.order.model, "unfinished": missing}
    found = told | {"size": size(results)} | found
    report.write_json(output / f"{stem}.json", found)
    write_text(output / f"{stem}.md", text)
    if work.order.write:
        claims.keep(name, found, picture if shown else None)
    return text


def command(work: Work) -> str:
    """The command that makes these numbers again."""
    plan, order = work.plan, work.order
    words = ["python -m dreammapping reproduce", work.figure.name]
    if not order.toybox:
        words += ["--model", shlex.quote(order.model)]
    words += ["--prompts", shlex.quote(order.prompts or str(len(work.prompts))), "--seeds", str(plan.seeds)]
    for name in ("iterations", "views"):
        if getattr(order, name):
            words += [f"--{name}", str(getattr(order, name))]
    if order.opt:
        words += ["--opt", str(order.opt.relative_to(ROOT) if order.opt.is_relative_to(ROOT) else order.opt)]
    if order.methods:
        words += ["--methods", shlex.quote(",".join(order.methods))]
    return " ".join([*words, *map(shlex.quote, order.overrides)])
