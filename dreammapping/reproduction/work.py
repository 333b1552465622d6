"""Make a figure of the paper: train and judge what is missing of its runs, and report what is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreammapping.evaluation import encoders
from dreammapping.evaluation.evaluate import Protocol, default_encoder, evaluate
from dreammapping.evaluation.pictures import Source
from dreammapping.reproduction import claims, noise, report
from dreammapping.reproduction.cells import Cell, CellStore, Result, digest_of_runs, is_gone
from dreammapping.reproduction.figures import BACKWARD, EVALUATIONS, FIGURES
from dreammapping.reproduction.order import Order, Work, plan_work
from dreammapping.reproduction.scores import DISTANCES, MEASURES, Judge, is_outdated, numbers, size
from dreammapping.reproduction.table import finish_cells
from dreammapping.study import build as study
from dreammapping.study import score as ranking
from utils.files import write_text
from utils.own_files import making
from utils.repository import ROOT

STUDY = "study"
"""The first word of the folders of studies."""
VIEWS_OF_DISTANCES = 40
"""Views of each run, and references of each prompt, whose distances are taken."""


def reproduce(name: str, order: Order) -> tuple[list[str], str]:
    """Make one figure; the messages of what failed, and its page.

    Raises:
        UserError: something cannot be used, weights are missing, or somebody else's files are in the place of its
            own, which is best asked before: `refuse_others`.
    """
    work, store = plan_work(FIGURES[name], order), order.store()
    failures = finish(work, store) if order.train else []
    results = work.results(store)
    return failures, _LEFT.get(name, _compared)(work, store, results)


def finish(work: Work, store: CellStore) -> list[str]:
    """Train and judge what is missing; the messages of what failed."""
    opened = work.figure.name in _OPENS_RUNS

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
        page=lambda picture: report.markdown(work.figure, found, work.command, picture),
    )


def _counted(work: Work, _store: CellStore, results: list[Result]) -> str:
    """Table 1: evaluations alone, which one short run tells; what it looks like then says nothing."""
    counts = {name: MEASURES[name] for name in (EVALUATIONS, BACKWARD)}
    found = numbers(work.figure, results, counts) | {"size": size(results)}
    return leave(
        work,
        results,
        found,
        draw=lambda path: report.draw_counts(found, path),
        page=lambda picture: report.markdown(work.figure, found, work.command, picture),
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
            found, work.figure.place, work.command, picture, report.size_note(size(results))
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
            work.figure, found, work.command, picture, notes if pooled else ()
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
    lines = [f"# {work.figure.place}", "", f"`{work.command}`", ""]
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
    "table1": _counted,
    "table3": _distances,
    "table4": _preferred,
}
"""Those that do not compare runs by what each was judged."""
_OPENS_RUNS = ("fig11", "table3", "table4")
"""Those whose runs must still have their folders."""


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
    name, output = work.figure.name, work.order.output
    files = work.order.files(name)
    picture, numbers_file, page_file = (output / each for each in files)
    missing = len(work.cells) - len(results)
    told = {"figure": name, "command": work.command, "model": work.order.model, "unfinished": missing}
    found = told | {"size": size(results)} | found
    with making(output, files):
        shown = picture.name if draw(picture) or picture.is_file() else None
        text = page(shown) + (f"\nUnfinished: {missing} of {len(work.cells)} runs.\n" if missing else "")
        report.write_json(numbers_file, found)
        write_text(page_file, text)
    if work.order.write:
        claims.keep(name, found, picture if shown else None)
    return text
