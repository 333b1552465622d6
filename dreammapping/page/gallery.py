"""Several runs beside each other: one page that sorts them and opens the pages of some of them side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreammapping.finished import FinishedRun
from dreammapping.page.document import link, picture_uri, refuse_to_replace, render
from dreammapping.page.facts import duration, metrics_of, number_in, read_or_none, title_of
from dreammapping.page.plots import number
from utils.files import write_text


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
    write_text(target, html, durable=False)
    return target


def _row(run: FinishedRun, page: Path, place: Path) -> dict[str, Any]:
    """A run as a row: its facts have a name, a text, and what they are sorted by."""
    manifest = read_or_none(lambda: run.manifest) or {}
    errors = [error for line in metrics_of(run) if (error := number_in(line, "operator_error")) is not None]
    method, name = run.config.GuidanceParams.guidance_method, run.folder.resolve().name
    sizes = {"iterations": number_in(manifest, "iterations"), "Gaussians": number_in(manifest, "gaussians")}
    seconds = number_in(manifest, "seconds")
    facts = [
        ("run", name, name),
        ("method", method, method),
        *((name, "" if size is None else f"{size:,}", size) for name, size in sizes.items()),
        ("time", "" if seconds is None else duration(seconds), seconds),
        ("seed", str(run.config.seed), run.config.seed),
        ("error of M", number(errors[-1]) if errors else "", errors[-1] if errors else None),
    ]
    return {
        "title": title_of(run),
        "picture": _front(run),
        "link": link(page, place),
        "unfinished": "" if manifest.get("finished") else "not finished",
        "facts": [(name, text, "" if key is None else str(key)) for name, text, key in facts],
    }


def _front(run: FinishedRun) -> str | None:
    """The view from the front, or the picture that was made."""
    views = run.test_views()
    return picture_uri(views[0][0] if views else run.folder / "picture.png")
