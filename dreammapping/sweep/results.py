"""All results of a sweep as one table: `results.csv` and `results.json`."""

import contextlib
import csv
import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arguments.load import build, differences, read_file
from dreammapping.finished import SETTINGS, FinishedRun, manifest_of
from dreammapping.sweep.grid import Job, varied_names
from dreammapping.sweep.ledger import Ledger
from dreammapping.sweep.status import DONE, QUEUED, Status
from utils.errors import UserError
from utils.files import write_text
from utils.inputs import regular_file
from utils.own_files import adopt, making, refuse_others

log = logging.getLogger(__name__)

TABLES = ("results.csv", "results.json")
TAKEN = ("method", "iterations", "gaussians", "seconds", "peak_memory_bytes", "memory_plan", "device")
"""Columns from `run.json`."""


def write_results(ledger: Ledger, *, judge: bool = False) -> list[dict[str, Any]]:
    """Write the table, a row for each run in the order of the list, and return it.

    Args:
        judge: also score each run that is done by the toybox's CLIP; a score that a run has already is kept.

    Raises:
        UserError: a file cannot be written, or somebody has changed one since.
    """
    refuse_changed(ledger.folder)
    short = varied_names(ledger.jobs.values())
    rows = [row(ledger, name, short) for name in ledger.jobs]
    for each in rows:
        if each["state"] == DONE and each["reason"]:
            log.warning(
                "%s: was done, but %s; move away what is there, and `sweep` with --retry-failed makes it again",
                each["folder"],
                each["reason"],
            )
    if judge:
        _judge(ledger, rows)
    with making(ledger.folder, TABLES):
        for name, text in zip(TABLES, _texts(rows), strict=True):
            write_text(ledger.folder / name, text)
    return rows


def _texts(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """The content of both tables."""
    table = io.StringIO()
    writer = csv.DictWriter(
        table, list(dict.fromkeys(key for each in rows for key in each)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue(), json.dumps(rows, indent=1) + "\n"


def refuse_changed(folder: Path) -> None:
    """Raise UserError where somebody has put notes, say, into a table since it was written."""
    if _are_ours(folder):
        adopt(folder, TABLES)
    refuse_others(folder, TABLES, instead="rename it")


def _are_ours(folder: Path) -> bool:
    """Whether both tables say the same, as they were written: an earlier version kept no record of them, and a copy of
    the folder may have lost it."""
    try:
        table, numbers = (regular_file(folder / name).read_bytes().decode() for name in TABLES)
        return (table, numbers) == _texts(json.loads(numbers))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, csv.Error):
        return False


def write_gallery(ledger: Ledger) -> None:
    """Write a page for each run that is done and still there, and one that shows them side by side."""
    from dreammapping.page.command import write

    done = (name for name in ledger.jobs if (status := ledger.read(name)) and status.state == DONE)
    folders = [folder for name in done if (folder := ledger.run_folder(name)).is_dir()]
    try:
        if folders:
            write(folders, None)
    except UserError as error:  # the runs are done all the same
        log.warning("%s", error)


def row(ledger: Ledger, name: str, short: Mapping[str, str]) -> dict[str, Any]:
    """What is known of a run.

    Args:
        short: the columns of varied settings, by their full names.
    """
    job, status = ledger.jobs[name], ledger.read(name) or Status(QUEUED)
    known = _manifest(ledger.run_folder(name))
    evaluations = known.get("score_model_evaluations")
    return {
        "run": name,
        "state": status.state,
        "reason": _lack(ledger, job, status, known) if status.state == DONE else status.reason,
        "prompt": job.prompt,
        "seed": status.changes.get("seed", job.seed),
        **{short[key]: value for key, value in job.varied.items()},
        "attempts": len(status.attempts),
        "host": status.attempts[-1].host if status.attempts else "",
        **{key: known.get(key, "") for key in TAKEN},
        "evaluations": evaluations.get("forward", "") if isinstance(evaluations, dict) else "",
        "changes": json.dumps(status.changes) if status.changes else "",
        "folder": str(ledger.run_folder(name)),
    }


def _lack(ledger: Ledger, job: Job, status: Status, known: Mapping[str, Any]) -> str:
    """What the folder of a run that is done has otherwise than the list: somebody has removed it, or made another."""
    folder = ledger.run_folder(job.name)
    if not folder.is_dir():
        return "its folder is gone"
    if not known.get("finished"):
        return "its folder holds no finished run"
    listed = {"prompt": job.prompt, "seed": status.changes.get("seed", job.seed)}
    others = [name for name, value in listed.items() if known.get(name, value) != value]
    if job.varied and _written(folder / SETTINGS) > _written(ledger.path(job.name) / "status.json"):
        with contextlib.suppress(UserError):  # settings of another version
            changed = differences(folder / SETTINGS, build(read_file(ledger.settings(job.name))))
            others += [name for name in changed if name in job.varied and name not in status.changes]
    return f"its folder holds another run, with another {', '.join(others)}" if others else ""


def _written(file: Path) -> float:
    """When: reading settings takes a fifth of a second, and most are those of the run that the list knows."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _judge(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    """Add the scores of runs that are done, columns `judge_*`."""
    clip = None
    for each in rows:
        if each["state"] != DONE:
            continue
        folder = ledger.run_folder(each["run"])
        known = _scores(folder)
        if not known:
            from dreammapping.evaluation.judge import judge_run
            from toybox.clip import Clip

            try:
                clip = clip or Clip.from_pretrained()
                known = judge_run(folder, clip=clip)
            except UserError as error:
                log.warning("%s", error)
                continue
        each |= {f"judge_{name}": score for name, score in known["asset"].items()}


def _manifest(folder: Path) -> dict[str, Any]:
    """What a run says of itself; nothing where there is none yet that can be read."""
    try:
        return manifest_of(folder)
    except UserError:
        return {}


def _scores(folder: Path) -> dict[str, Any]:
    """What the judge has said of a run's asset; nothing where it has not been asked, or of an earlier iteration or by
    another prompt, or its file is broken."""
    try:
        run = FinishedRun.open(folder)
        known = json.loads(regular_file(folder / "judge.json").read_text(encoding="utf-8"))
        asked = (known["iteration"], known["prompt"]) == (run.iteration(), run.prompt)
        return known if asked and isinstance(known["asset"], dict) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
