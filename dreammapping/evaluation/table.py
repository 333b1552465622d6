"""Rows of `evaluate` as a Markdown table."""

from collections.abc import Callable, Sequence
from typing import Any

from utils.errors import UserError

Row = dict[str, Any]
_MISSING = "-"


def markdown(rows: Sequence[Row]) -> str:
    """A line for each row; columns that no row has are left out. Below it, what the numbers stand on."""
    if not rows:
        raise UserError("evaluate: expected a run or a folder of pictures, got none; name some")
    columns = _columns(rows)
    lines = [
        "| " + " | ".join(["", *columns]) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for row in rows:
        name = row["source"] if "parts" not in row else f"{len(row['parts'])} together"
        cells = (_shown(row, read) for read in columns.values())
        lines.append("| " + " | ".join([_plain(name), *cells]) + " |")
    return "\n".join([*lines, "", *_notes(rows)])


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str | None]]:
    """Heading and cell of each column that some row has."""
    clips = list(dict.fromkeys(name for row in rows for name in row["clip"]))
    scorers = list(dict.fromkeys(name for row in rows for name in row["scorers"]))
    columns: dict[str, Callable[[Row], str | None]] = {"pictures": lambda row: str(row["pictures"])}
    for name in clips:
        columns[f"CLIP score, {_plain(name)}"] = lambda row, name=name: _number(row["clip"][name]["score"], 2)
        columns[f"R-precision, {_plain(name)}"] = lambda row, name=name: _number(
            row["clip"][name].get("r_precision"), 3
        )
    columns |= {
        "FID": lambda row: _number(_distance(row, "fid"), 4),
        "KID x 1000": lambda row: _number(_distance(row, "kid"), 4, 1000.0),
        "CMMD": lambda row: _number(_distance(row, "cmmd"), 4),
        "MIND": lambda row: _number(_distance(row, "mind"), 5),
        "N, references": _counts,
        "saturation": lambda row: _number(row.get("saturation"), 3),
        "true saturation": lambda row: _number(row.get("true_saturation"), 3),
        "fine detail, dB": lambda row: _number(row.get("fine_detail"), 1),
    }
    for name in scorers:
        columns[_plain(name)] = lambda row, name=name: _number(row["scorers"].get(name), 4)
    columns |= {
        "seconds": lambda row: _number(row["cost"].get("seconds"), 0),
        "evaluations": _evaluations,
        "peak memory, GB": lambda row: _number(row["cost"].get("peak_memory_bytes"), 2, 1e-9),
    }
    return {heading: read for heading, read in columns.items() if any(read(row) is not None for row in rows)}


def _shown(row: Row, read: Callable[[Row], str | None]) -> str:
    found = read(row)
    return _MISSING if found is None else found


def _number(value: Any, digits: int, factor: float = 1.0) -> str | None:
    """A number, or a mean with its interval; None for nothing."""
    if value is None:
        return None
    if not isinstance(value, dict):
        return f"{factor * value:.{digits}f}"
    mean = f"{factor * value['mean']:.{digits}f}"
    if value["low"] is None:
        return mean
    return f"{mean} ({factor * value['low']:.{digits}f} to {factor * value['high']:.{digits}f})"


def _distance(row: Row, name: str) -> float | None:
    return row["distances"][name] if "distances" in row else None


def _counts(row: Row) -> str | None:
    if "distances" not in row:
        return None
    return f"{row['distances']['pictures']}, {row['distances']['references']}"


def _evaluations(row: Row) -> str | None:
    counted = row["cost"].get("score_model_evaluations")
    return None if counted is None else f"{counted['forward']} + {counted['backward']}"


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    features = {row["distances"]["features"] for row in rows if "distances" in row}
    if features:
        notes.append(
            f"Distances compare features of {', '.join(sorted(map(_plain, features)))}, and compare with each other "
            "alone. FID falls as N grows: only rows of equal N compare by it."
        )
    if any("parts" in row for row in rows):
        notes.append(
            "In brackets: 95 % intervals over prompts and seeds. Seconds and evaluations are means of a run."
        )
    return notes


def _plain(text: str) -> str:
    """A name that a cell of a table can hold."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
