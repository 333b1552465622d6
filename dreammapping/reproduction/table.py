"""What the tables of runs share: their cells, trained and judged, and their place in a page of the documents."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from arguments import load, to_yaml
from dreammapping.evaluation.judge import judge_run
from dreammapping.finished import FinishedRun
from dreammapping.reproduction.cells import Cell, CellStore, Result, code_digest, digest
from dreammapping.reproduction.train import train
from toybox.clip import PRIOR, Clip
from utils.errors import UserError
from utils.files import atomic
from utils.repository import QUICKSTART, ROOT

Overrides = dict[str, tuple[str, ...]]
"""The settings of each row of a table."""


@dataclass(frozen=True)
class Plan:
    """What a table is asked for.

    Attributes:
        opt: settings of every run, with `overrides` on top.
        prompts: how many prompts.
        seeds: runs of each.
        views: how many views judge each run.
        jobs: runs at once, which share the cores.
        again: run finished cells again that other code has made.
    """

    opt: Path = QUICKSTART
    overrides: tuple[str, ...] = ()
    prompts: int = 6
    seeds: int = 1
    views: int = 24
    jobs: int = 1
    again: bool = False

    def __post_init__(self) -> None:
        for name, least in (("prompts", 1), ("seeds", 1), ("views", 4), ("jobs", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"--{name}: expected at least {least}, got {getattr(self, name)}; give a larger number"
                )

    @property
    def words(self) -> list[str]:
        """What `train.py` is given for every run."""
        return ["--opt", str(self.opt), *self.overrides]

    @property
    def asked(self) -> list[str]:
        """The settings by name, by which finished cells are known to belong to the same table."""
        path = self.opt.resolve()
        name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
        return [name, *self.overrides]

    @property
    def output(self) -> Path:
        """The folder of all sweeps."""
        config, _ = load(self.words)
        return ROOT / config.ModelParams.output_path


def make_cell(
    plan: Plan, prompt: str, method: str, overrides: tuple[str, ...], seed: int
) -> tuple[Cell, list[str]]:
    """One cell, and the settings that `train.py` is given for it."""
    given = [f"GuidanceParams.text={prompt}", f"seed={seed}"]
    settings = ["--opt", str(plan.opt), "save_video=false", *plan.overrides, *overrides, *given]
    resolved, _ = load([*settings, "ModelParams.workspace=bench"])
    weights = _prior(resolved.GuidanceParams.model_key)
    return Cell(prompt, method, seed, digest(to_yaml(resolved), weights)), settings


@cache
def _prior(model_key: str | None) -> str:
    """Stands for the prior's weights, where they lie on this machine; a hub's model is its name, in the settings."""
    folder = PRIOR if model_key in (None, "toybox") else Path(model_key)
    return digest(*([folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))))


def make_cells(plan: Plan, prompts: list[str], rows: Overrides) -> dict[Cell, list[str]]:
    """Every cell that a plan asks for, with its settings."""
    return dict(
        make_cell(plan, prompt, method, overrides, seed)
        for prompt in prompts
        for seed in range(plan.seeds)
        for method, overrides in rows.items()
    )


def finish_cells(
    cells: dict[Cell, list[str]],
    store: CellStore,
    plan: Plan,
    judge: Callable[[Path], Result],
    outdated: Callable[[Result], bool] = lambda _: False,
) -> list[str]:
    """Train and judge what is missing; the messages of the cells that failed.

    Args:
        judge: the numbers of a run's folder.
        outdated: which of the finished cells are judged again, and trained again where other code has made them.

    Raises:
        UserError, KeyboardInterrupt: as `train`.
    """
    missing = {
        cell: words
        for cell, words in cells.items()
        if (kept := store.get(cell)) is None or outdated(kept) or (plan.again and of_other_code(kept))
    }

    def keep(cell: Cell, folder: Path) -> None:
        manifest = FinishedRun.open(folder).manifest
        known = {"method": cell.method, "seed": cell.seed, "jobs": plan.jobs}
        known |= {"run": os.path.relpath(folder, ROOT), "asked": plan.asked, "code": code_digest()}
        known |= {key: manifest.get(key) for key in ("seconds", "peak_memory_bytes")}
        store.put(cell, judge(folder) | known)

    # a folder for each state of the code: what other code has begun is begun again
    return train(missing, plan.output / f"bench_{code_digest()}", plan.jobs, keep)


def toybox_judge(plan: Plan) -> Callable[[Path], Result]:
    """What `judge` says of a run, by the toybox's CLIP, which is loaded once."""
    clip = Clip.from_pretrained()
    return lambda folder: judge_run(folder, plan.views, clip=clip)


def of_other_code(result: Result) -> bool:
    """Whether other code than today's has made a cell."""
    return result.get("code") != code_digest()


def standing(store: CellStore, plan: Plan, rows: Overrides, prompts: list[str]) -> tuple[list[Result], int]:
    """All finished cells of a table, of whatever prompts, seeds and rows; and how many are outdated.

    A cell that today's settings, prior and code would make otherwise stays in the table until it is run again.

    Args:
        prompts: all that the table can have, in its order.
    """
    newest: dict[tuple[str, int, str], Result] = {}
    for result in store.results.values():
        if result.get("asked") == plan.asked and result["method"] in rows and result["prompt"] in prompts:
            newest[result["prompt"], result["seed"], result["method"]] = result
    names, results, outdated = list(rows), [], 0
    for place in sorted(newest, key=lambda place: (prompts.index(place[0]), place[1], names.index(place[2]))):
        prompt, seed, method = place
        today = store.get(make_cell(plan, prompt, method, rows[method], seed)[0])
        results.append(today or newest[place])
        outdated += today is None or of_other_code(today)
    return results, outdated


def size_note(results: list[Result], missing: int = 0, outdated: int = 0) -> str:
    """What a table stands on, in a sentence or three."""
    counts = []
    for word, key in (("prompt", "prompt"), ("seed", "seed")):
        count = len({result[key] for result in results})
        counts.append(f"{count} {word}{'s' * (count > 1)}")
    text = (
        f"{', '.join(counts)}, {results[0]['views']} views of each; ± is the standard deviation between runs."
    )
    if missing:
        text += f" Unfinished: {len(results)} of {len(results) + missing} runs."
    if outdated:
        text += f" {outdated} of {len(results)} runs were made by earlier code, settings or prior."
    return text


def write_report(text: str, path: Path, begin: str, end: str) -> None:
    """Put `text` between a page's markers.

    Raises:
        UserError: the page or its markers are missing.
    """
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in page or end not in page:
        raise UserError(
            f"{path}: expected the lines {begin} and {end}, found none; put them where the table goes"
        )
    between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    with atomic(path) as temporary:
        temporary.write_text(between.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")
