"""What kept numbers say of a claim: each function here makes the judge of one form of claim.

A claim holds, or does not, where the interval of a difference is on one side of zero; else it is not told apart.
"""

import math
from collections.abc import Callable
from typing import Any

from dreammapping.evaluation.statistics import compare
from dreammapping.reproduction.figures import BACKWARD, DETAIL, EVALUATIONS, SECONDS
from dreammapping.reproduction.report import shown
from dreammapping.reproduction.table import Plan

HOLDS, FAILS, UNTOLD = "holds", "does not", "not told apart"

Kept = dict[str, Any]
Finding = tuple[str, str]
"""What came out, in a few words, and the verdict."""


def differs(first: str, second: str, measure: str, expected: str) -> Callable[[Kept], Finding | None]:
    """Whether the first variant's scores are `higher` or `lower` than the second's.

    Seconds of runs that shared a machine are not told apart.
    """

    def judge(kept: Kept) -> Finding | None:
        for each in kept["comparisons"]:
            if (each["first"], each["second"], each["measure"]) == (first, second, measure):
                said = f"{measure}: {shown(each['difference'])}"
                if measure == SECONDS and kept["size"]["jobs"] > 1:
                    return f"{said}, several at once", UNTOLD
                if each["verdict"] == UNTOLD and each["needed"]:
                    said += f"; {each['needed']} runs of each would tell"
                return said, _verdict(each["verdict"], expected)
        return None

    return judge


def with_detail(
    judged: Callable[[Kept], Finding | None], name: str, expected: str
) -> Callable[[Kept], Finding | None]:
    """The same, where a variant's fine detail must also be `higher` or `lower` than the true object's, at 0 dB."""

    def judge(kept: Kept) -> Finding | None:
        finding, detail = judged(kept), _measured(kept, name, DETAIL)
        if finding is None or detail is None:
            return None
        verdicts = {finding[1], _verdict(_side(detail), expected)}
        verdict = next(each for each in (FAILS, UNTOLD, HOLDS) if each in verdicts)
        return f"{finding[0]}; {name} at {shown(detail)} dB", verdict

    return judge


def counted(first: str, second: str, expected: str) -> Callable[[Kept], Finding | None]:
    """Whether one variant takes as many evaluations as another, or fewer and none backward: counted in one run."""

    def judge(kept: Kept) -> Finding | None:
        ours, others = (_measured(kept, name, EVALUATIONS) for name in (first, second))
        backward = _measured(kept, first, BACKWARD)
        if ours is None or others is None or backward is None:
            return None
        said = f"{ours['mean']:.2f} and {others['mean']:.2f} evaluations per view"
        if expected == "equal":
            return said, HOLDS if math.isclose(ours["mean"], others["mean"]) else FAILS
        holds = ours["mean"] < others["mean"] and backward["mean"] == 0.0
        return f"{said}, {backward['mean']:.2f} backward", HOLDS if holds else FAILS

    return judge


def _measured(kept: Kept, name: str, measure: str) -> Kept | None:
    """A variant's mean and interval."""
    return kept["variants"].get(name, {}).get("measures", {}).get(measure)


def falls(kind: str) -> Callable[[Kept], Finding | None]:
    """Whether the correlation of figure 11 falls with t."""

    def judge(kept: Kept) -> Finding | None:
        if kind not in kept["curves"]:
            return None
        found = kept["curves"][kind]["falls"]
        return f"rank correlation with t: {shown(found)}", _verdict(_side(found), "higher")

    return judge


def first_of(question: str, system: str) -> Callable[[Kept], Finding | None]:
    """Whether a system has the best mean rank, its interval below all others'."""

    def judge(kept: Kept) -> Finding | None:
        ranks = (kept["study"] or {}).get("ranks", {}).get(question, {})
        if system not in ranks:
            return None
        others = [rank for name, rank in ranks.items() if name != system]
        ours = ranks[system]
        if ours["low"] is None or any(each["low"] is None for each in others):
            return f"mean rank {shown(ours)}", UNTOLD
        if all(ours["high"] < each["low"] for each in others):
            return f"mean rank {shown(ours)}", HOLDS
        beaten = any(each["high"] < ours["low"] for each in others)
        return f"mean rank {shown(ours)}", FAILS if beaten else UNTOLD

    return judge


def _verdict(side: str, expected: str) -> str:
    if side == UNTOLD:
        return UNTOLD
    return HOLDS if side == expected else FAILS


def _side(found: Kept) -> str:
    if found["low"] is None or found["low"] <= 0.0 <= found["high"]:
        return UNTOLD
    return "higher" if found["low"] > 0.0 else "lower"


def is_better_method(first: str, second: str) -> Callable[[Kept], Finding | None]:
    """Whether the first of two rows of the table over methods has the higher R-precision."""

    def judge(kept: Kept) -> Finding | None:
        scores = [
            {
                (each["prompt"], each["seed"], 0): each["asset"]["r_precision"]
                for each in kept["cells"].values()
                if each["method"] == name and each["asked"] == Plan().asked
            }
            for name in (first, second)
        ]
        if not scores[0].keys() & scores[1].keys():
            return None
        found = compare(*scores)
        runs = f"{found.difference.runs} run{'s' * (found.difference.runs > 1)}"
        return f"R-precision: {shown(vars(found.difference))}, {runs}", _verdict(found.verdict, "higher")

    return judge
