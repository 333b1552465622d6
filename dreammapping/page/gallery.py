"""Several runs beside each other: one page that sorts them and opens the pages of some of them side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreammapping.finished import FinishedRun
from dreammapping.page.document import link, refuse_to_replace, render, write
from dreammapping.page.facts import Fact, facts_of, front_of, metrics_of, number_in, read_or_none, title_of
from dreammapping.page.plots import number


def write_gallery(pages: Sequence[tuple[FinishedRun, Path]], target: Path) -> Path:
    """Write a gallery of runs.

    Args:
        pages: each run, and its page.

    Raises:
        UserError: `target` cannot be written, or is somebody's own page.
    """
    refuse_to_replace(target)
    rows = [_row(run, page, target.parent) for run, page in pages]
    columns = [name for name, *_ in rows[0]["facts"]]
    html = render("gallery.html", ("gallery.js",), title=f"{len(rows)} runs", columns=columns, rows=rows)
    write(target, html)
    return target


def _row(run: FinishedRun, page: Path, place: Path) -> dict[str, Any]:
    """A run as a row: its facts have a name, a text, and what they are sorted by."""
    manifest = read_or_none(lambda: run.manifest) or {}
    errors = [error for line in metrics_of(run) if (error := number_in(line, "operator_error")) is not None]
    name, error = run.folder.resolve().name, errors[-1] if errors else None
    facts = [
        Fact("run", name, name),
        *facts_of(run, manifest),
        Fact("error of M", "" if error is None else number(error), error),
    ]
    return {
        "title": title_of(run),
        "picture": front_of(run),
        "link": link(page, place),
        "unfinished": "" if manifest.get("finished") else "not finished",
        "facts": [(name, text, "" if key is None else str(key)) for name, text, key in facts],
    }
