"""What a figure is ordered as, and the runs that this takes."""

import dataclasses
import logging
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from arguments import load
from dreammapping.reproduction.cells import Cell, CellStore, Result
from dreammapping.reproduction.figures import CONFIGS, Figure, Variant, Words, image_variants
from dreammapping.reproduction.prompts import TUNED_ON, choose_prompts
from dreammapping.reproduction.scores import asked, is_outdated
from dreammapping.reproduction.table import Plan, make_cell
from toybox.recognition import parse_caption
from utils.errors import UserError
from utils.repository import ROOT

CELLS = "cells.json"
"""The finished cells."""
VIEWS = 24
"""Views that judge a run."""
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

    def stem(self, figure: str) -> str:
        """The name of a figure's files: priors stand side by side, as in figure 14."""
        model = re.sub(r"[^\w.-]+", "_", self.model.rstrip("/").rpartition("/")[2])
        return figure if self.toybox else f"{figure}_{model}"

    def files(self, figure: str) -> list[str]:
        """The names of a figure's picture, numbers and page in `output`."""
        return [f"{self.stem(figure)}.{suffix}" for suffix in ("png", "json", "md")]


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
        """The name of its files."""
        return self.order.stem(self.figure.name)

    @property
    def asked(self) -> dict[str, Any]:
        """What every run is judged by."""
        return asked(self.prompts, self.plan.views, published=self.figure.name == "table2")

    @property
    def command(self) -> str:
        """The command that makes these numbers again."""
        plan, order = self.plan, self.order
        words = ["python -m dreammapping reproduce", self.figure.name]
        if not order.toybox:
            words += ["--model", shlex.quote(order.model)]
        words += [
            "--prompts",
            shlex.quote(order.prompts or str(len(self.prompts))),
            "--seeds",
            str(plan.seeds),
        ]
        for name in ("iterations", "views"):
            if getattr(order, name):
                words += [f"--{name}", str(getattr(order, name))]
        if order.opt:
            words += [
                "--opt",
                str(order.opt.relative_to(ROOT) if order.opt.is_relative_to(ROOT) else order.opt),
            ]
        if order.methods:
            words += ["--methods", shlex.quote(",".join(order.methods))]
        return " ".join([*words, *map(shlex.quote, order.overrides)])


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
