"""Answers of a study as numbers: mean ranks with intervals, and how far participants agree (Table 4)."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dreammapping.evaluation.statistics import BOOTSTRAP_FROM, expanded_tail, student
from utils.errors import UserError
from utils.files import is_stream

RESAMPLES = 5000


@dataclass(frozen=True)
class MeanRank:
    """Mean rank of a system, 1 the best, over all rankings; its interval is None for one participant and one trial."""

    mean: float
    low: float | None
    high: float | None
    rankings: int


@dataclass(frozen=True)
class Agreement:
    """Kendall's W, mean over the trials that two or more ranked: 1 for the same order, `chance` for any order."""

    w: float
    chance: float
    trials: int


@dataclass(frozen=True)
class StudyResult:
    """Of each question, and of `both` together, the systems, the best first; and of each question the agreement."""

    participants: int
    trials: int
    ranks: dict[str, dict[str, MeanRank]]
    agreement: dict[str, Agreement | None]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(paths: Sequence[Path], key_path: Path, *, seed: int = 0) -> StudyResult:
    """Read answers and the key to them.

    Raises:
        UserError: a file is broken, or is no answer to this study, or a participant answers twice.
    """
    key = _read(key_path, "key of a study")
    ranks: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    owners: dict[str, Path] = {}
    for path in paths:
        participant, found = _rankings(path, key)
        if participant in owners:
            raise UserError(
                f"{path}: expected a participant of its own, got {participant!r}, as in {owners[participant]}; "
                "leave one file out"
            )
        owners[participant] = path
        ranks[participant] = found
    if not any(ranks.values()):
        raise UserError("study: expected answers, got none; save some first")
    return summarise(ranks, list(key["questions"]), seed=seed)


def summarise(
    ranks: dict[str, dict[tuple[str, str], dict[str, float]]], questions: Sequence[str], *, seed: int = 0
) -> StudyResult:
    """Mean ranks of rankings.

    Args:
        ranks: for each participant, and (question, trial), the rank of each system.
        seed: of the bootstrap.
    """
    ranks = {
        participant: found for participant, found in ranks.items() if found
    }  # others have answered nothing
    places = {place for found in ranks.values() for place in found}
    trials = sorted({trial for _, trial in places})
    systems = sorted({system for found in ranks.values() for each in found.values() for system in each})
    by_question = {
        question: np.array(
            [
                [
                    [found.get((question, trial), {}).get(system, math.nan) for system in systems]
                    for trial in trials
                ]
                for found in ranks.values()
            ]
        )
        for question in questions
    }
    # A trial is one thing that varies, whichever question is asked of it: both are resampled together.
    both = np.stack(list(by_question.values()), axis=2)
    summaries = {question: table[:, :, None] for question, table in by_question.items()} | {"both": both}
    return StudyResult(
        participants=len(ranks),
        trials=len(trials),
        ranks={
            question: dict(sorted(_mean_ranks(table, systems, seed).items(), key=lambda each: each[1].mean))
            for question, table in summaries.items()
            if np.isfinite(table).any()
        },
        agreement={question: _agreement(table) for question, table in by_question.items()},
    )


def _mean_ranks(table: Float[np.ndarray, "P T Q S"], systems: list[str], seed: int) -> dict[str, MeanRank]:
    """Means over what is there, with intervals over participants and trials: few people or trials by Student's t of
    their means, the wider of both; else both drawn with replacement."""
    present = np.isfinite(table)
    sums, counts = np.where(present, table, 0.0).sum(axis=2), present.sum(axis=2)
    units = [count for count in table.shape[:2] if count > 1]
    if units and min(units) >= BOOTSTRAP_FROM:
        ends = [(float(low), float(high)) for low, high in _by_bootstrap(sums, counts, seed).T]
    else:
        ends = [_by_student(sums[:, :, index], counts[:, :, index]) for index in range(len(systems))]
    total, number = sums.sum(axis=(0, 1)), counts.sum(axis=(0, 1))
    return {
        system: MeanRank(float(total[index] / number[index]), *ends[index], int(number[index]))
        for index, system in enumerate(systems)
        if number[index]
    }


def _by_student(
    sums: Float[np.ndarray, "P T"], counts: Int[np.ndarray, "P T"]
) -> tuple[float | None, float | None]:
    """The ends of one system's interval; None where one person ranked it in one trial."""
    found = []
    for axis in (0, 1):
        number = counts.sum(axis=axis)
        means = sums.sum(axis=axis)[number > 0] / number[number > 0]
        if len(means) > 1:
            found.append(student(means))
    return max(found, key=lambda ends: ends[1] - ends[0], default=(None, None))


def _by_bootstrap(
    sums: Float[np.ndarray, "P T S"], counts: Int[np.ndarray, "P T S"], seed: int
) -> Float[np.ndarray, "2 S"]:
    """Lower and upper ends, over people and trials that are both drawn with replacement."""
    rng = np.random.default_rng(seed)
    shape = sums.shape[:2]
    drawn = [rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) for count in shape]
    weighed = [np.einsum("rp,pts,rt->rs", drawn[0], each, drawn[1], optimize=True) for each in (sums, counts)]
    with np.errstate(invalid="ignore"):  # nothing of a system is drawn: no mean
        means = weighed[0] / weighed[1]
    tail = expanded_tail(min(count for count in shape if count > 1))
    return np.nanquantile(means, (tail, 1.0 - tail), axis=0)


def _agreement(table: Float[np.ndarray, "P T S"]) -> Agreement | None:
    found = []
    for trial in table.swapaxes(0, 1):
        ranked = trial[np.isfinite(trial).any(axis=1)]
        ranked = ranked[:, np.isfinite(ranked).all(axis=0)]
        if len(ranked) >= 2 and ranked.shape[1] >= 2:
            found.append((kendall_w(ranked), 1.0 / len(ranked)))
    if not found:
        return None
    return Agreement(*(float(mean) for mean in np.mean(found, axis=0)), trials=len(found))


def kendall_w(ranks: Float[np.ndarray, "P S"]) -> float:
    """Kendall's coefficient of concordance of rankings without ties: 12 S / (m² (n³ - n)) of m people and n things."""
    people, things = ranks.shape
    deviation = np.square(ranks.sum(axis=0) - people * (things + 1) / 2).sum()
    return float(12.0 * deviation / (people**2 * (things**3 - things)))


def _rankings(path: Path, key: dict[str, Any]) -> tuple[str, dict[tuple[str, str], dict[str, float]]]:
    """A participant, and the ranks that each of their answers gives the systems."""
    answers = _read(path, "answers of a study")
    if answers.get("study") != key.get("study"):
        raise UserError(
            f"{path}: expected answers to study {key.get('study')}, got {str(answers.get('study'))[:40]!r}; "
            "name their own key by --study"
        )
    found: dict[tuple[str, str], dict[str, float]] = {}
    try:
        participant = str(answers["participant"])
        for answer in answers["answers"]:
            place = (answer["question"], answer["trial"])
            items = key["trials"][answer["trial"]]["items"]
            if place in found or answer["question"] not in key["questions"]:
                raise ValueError(f"{str(answer['question'])[:40]!r} twice, or no question")
            if sorted(answer["order"]) != sorted(items):
                raise ValueError(
                    f"an order of {len(answer['order'])} pictures that are not the trial's {len(items)}"
                )
            found[place] = {items[item]: float(rank) for rank, item in enumerate(answer["order"], start=1)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected the answers that the page saves, got {str(error)[:120]}; save them again"
        ) from error
    return participant, found


def _read(path: Path, what: str) -> dict[str, Any]:
    if is_stream(path):
        raise UserError(f"{path}: expected the {what}, got a pipe or device; save them as a file")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: expected the {what}, found none; give --study, or correct the path"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected the {what} as JSON, got {error}; save them again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the {what}, got a {type(content).__name__}; save them again")
    return content


def markdown(result: StudyResult) -> str:
    """Systems as rows, the best first, questions as columns; the least mean rank is the best."""
    columns = list(result.ranks)
    systems = result.ranks["both"]
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for system in systems:
        cells = (_cell(result.ranks[column].get(system)) for column in columns)
        name = " ".join(system.split()).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    said = [
        f"{question} {found.w:.2f} ({found.chance:.2f} by chance)"
        for question, found in result.agreement.items()
        if found is not None
    ]
    note = (
        f"Mean ranks, 1 the best, of {result.participants} participants and {result.trials} trials; in brackets 95 % "
        "intervals over both."
    )
    return "\n".join([*lines, "", note + (f" Kendall's W: {', '.join(said)}." if said else "")])


def _cell(rank: MeanRank | None) -> str:
    if rank is None:
        return "-"
    return f"{rank.mean:.2f}" + ("" if rank.low is None else f" ({rank.low:.2f} to {rank.high:.2f})")
