"""The page of claims: a row for each, filled by kept numbers alone."""

import json

import pytest

from dreammapping.reproduction import claims, methods, verdicts
from dreammapping.reproduction.claims import BEGIN, END, NO_ANSWERS, NOT_RUN
from dreammapping.reproduction.figures import CLIP, DETAIL, DETAIL_OFF, FIGURES, PRECISION, SECONDS
from dreammapping.reproduction.verdicts import FAILS, HOLDS, UNTOLD
from tests.reproduction import reproduce

HIGHER = (
    "fits the text better", "a nonlinear operator", "is smoother", "correlate", "own samples", "evaluations",
    "backward", "a higher CLIP score", "people find",
)  # fmt: skip
"""Words of claims that hold where differences are above zero; all others do where they are below."""


def comparison(low: float | None, high: float | None, verdict: str) -> dict:
    difference = {"mean": 1.5, "low": low, "high": high, "prompts": 2, "runs": 4, "spread": 0.1}
    each = {"first": "vdm", "second": "sds", "measure": CLIP, "difference": difference, "verdict": verdict}
    return {"comparisons": [each | {"needed": 12}]}


def test_the_page_is_that_of_the_kept_numbers():
    page = claims.PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == claims.table()


def test_every_claim_has_its_own_row_and_a_command_that_exists():
    assert len({claim.statement for claim in claims.CLAIMS}) == len(claims.CLAIMS)
    assert {claim.figure for claim in claims.CLAIMS} == {*FIGURES, "methods"}


@pytest.mark.parametrize(
    "claim", [each for each in claims.CLAIMS if each.figure in FIGURES], ids=lambda c: c.statement
)
def test_a_claim_asks_for_what_its_figure_compares(claim):
    """Numbers in which every comparison of the figure comes out one way decide it, and the other way the other."""

    def kept(low: float, high: float, verdict: str) -> dict:
        found = comparison(low, high, verdict)["comparisons"][0]["difference"]
        figure = FIGURES[claim.figure]
        every = [
            {
                "first": each.first,
                "second": each.second,
                "measure": each.measure,
                "difference": found,
                "verdict": verdict,
                "needed": 12,
            }
            for each in figure.pairs
        ]
        counts = {"vdm": 2.0, "sds": 2.0 if low > 0 else 1.0, "vsd": 5.0 if low > 0 else 1.0}
        ranks = {
            name: {"mean": at, "low": at, "high": at}
            for name, at in (("DreamMapping", 1.0 if low > 0 else 2.0), ("another", 1.5))
        }
        variants = {
            name: {"measures": {"evaluations per view": {"mean": count}, "of these backward": {"mean": 0.0}}}
            for name, count in counts.items()
        }
        variants["vdm_linear"] = {"measures": {DETAIL: {"mean": 2.0, "low": 1.0, "high": 3.0}}}
        variants["sds"]["measures"][DETAIL] = {"mean": -2.0, "low": -3.0, "high": -1.0}
        return {
            "comparisons": every,
            "variants": variants,
            "size": {"jobs": 1},
            "curves": {kind: {"falls": found} for kind in ("renders", "samples")},
            "study": {"ranks": {"alignment": ranks, "quality": ranks}},
        }

    found = [claim.judge(kept(1.0, 2.0, "higher"))[1], claim.judge(kept(-2.0, -1.0, "lower"))[1]]
    assert found == ([HOLDS, FAILS] if any(words in claim.statement for words in HIGHER) else [FAILS, HOLDS])


@pytest.mark.parametrize(
    ("low", "high", "verdict", "expected"),
    [
        (1.0, 2.0, "higher", HOLDS),
        (-2.0, -1.0, "lower", FAILS),
        (-1.0, 2.0, "not told apart", UNTOLD),
        (None, None, "not told apart", UNTOLD),
    ],
)
def test_a_verdict_is_that_of_the_interval(low, high, verdict, expected):
    judge = verdicts.differs("vdm", "sds", CLIP, "higher")
    said, found = judge(comparison(low, high, verdict))
    assert found == expected and said.startswith("CLIP score: 1.5")
    assert said.endswith("; 12 runs of each would tell") == (expected == UNTOLD)
    assert verdicts.differs("vdm", "vsd", CLIP, "higher")(comparison(low, high, verdict)) is None


def test_without_numbers_a_claim_is_not_run_and_with_them_the_page_has_them(tmp_path, monkeypatch):
    page = tmp_path / "reproduction.md"
    page.write_text(f"before\n{BEGIN}\n{END}\n")
    for name, value in (("RESULTS", tmp_path), ("PAGE", page), ("IMAGES", tmp_path)):
        monkeypatch.setattr(claims, name, value)
    assert {claims.finding(each)[1] for each in claims.CLAIMS} == {NOT_RUN}
    told = {
        "figure": "fig6",
        "command": "command",
        "model": "/models/sd",
        "size": {"runs": 9},
        "variants": {},
    }
    claims.keep("fig6", comparison(1.0, 2.0, "higher") | told, None)
    assert json.loads((tmp_path / "fig6.json").read_text())["figure"] == "fig6"
    rows = [
        line for line in page.read_text().splitlines() if "fits the text better than SDS at CFG 7.5" in line
    ]
    assert rows[0].endswith("| `command` | CLIP score: 1.50 (1.00 to 2.00); 9 runs, sd | holds |  |")
    assert all(row.endswith("| - | not run yet |  |") for row in rows[1:]) and len(rows) == 3
    (tmp_path / "reproduction_fig6.png").write_bytes(b"")
    claims.keep("table4", told | {"figure": "table4", "study": None}, None)
    people = [claims.finding(each)[:2] for each in claims.CLAIMS if each.figure == "table4"]
    assert people == [("-", NO_ANSWERS)] * 2
    assert "(images/reproduction_fig6.png)" in claims.table() and "fig7.png" not in claims.table()


@pytest.mark.parametrize(("words", "expected"), [([], []), (["--write"], ["fig6"])])
def test_numbers_are_kept_where_that_is_asked_for_and_else_not(tmp_path, monkeypatch, words, expected):
    kept = []
    monkeypatch.setattr(claims, "keep", lambda name, *_: kept.append(name))
    asked = ["--report", "--prompts", "1", "--seeds", "1", "--output", str(tmp_path)]
    assert reproduce("fig6", *asked, *words) == 0
    assert kept == expected


def test_the_table_of_methods_writes_its_claims_too(monkeypatch):
    written = []
    monkeypatch.setattr(methods, "reproduce", lambda *_, **__: ([], ""))
    monkeypatch.setattr(claims, "write_page", lambda: written.append(True))
    assert reproduce("methods", "--report") == 0 and written == []
    assert reproduce("methods", "--report", "--write") == 0 and written == [True]


def test_detail_is_added_only_to_what_is_too_smooth():
    difference = {"mean": -1.5, "low": -2.0, "high": -1.0, "prompts": 2, "runs": 4, "spread": 0.1}
    each = {"first": "vdm_without_dca", "second": "sds", "measure": DETAIL_OFF, "difference": difference}
    claim = next(each for each in claims.CLAIMS if "adds detail" in each.statement)
    for low, high, expected in (
        (-2.0, -1.0, HOLDS),
        (-1.0, 1.0, UNTOLD),
        (1.0, 2.0, FAILS),
        (None, None, UNTOLD),
    ):
        detail = {"mean": -0.5, "low": low, "high": high}
        kept = {
            "comparisons": [each | {"verdict": "lower"}],
            "variants": {"sds": {"measures": {DETAIL: detail}}},
        }
        assert claim.judge(kept)[1] == expected


def test_seconds_of_runs_that_shared_a_machine_tell_nothing():
    difference = {"mean": -9.0, "low": -10.0, "high": -8.0, "prompts": 2, "runs": 4, "spread": 0.1}
    each = {"first": "vdm", "second": "vsd", "measure": SECONDS, "difference": difference, "verdict": "lower"}
    judge = verdicts.differs("vdm", "vsd", SECONDS, "lower")
    found = [judge({"comparisons": [each], "size": {"jobs": jobs}})[1] for jobs in (1, 2)]
    assert found == [HOLDS, UNTOLD]


@pytest.mark.parametrize(("backward", "expected"), [(0.0, HOLDS), (1.0, FAILS)])
def test_none_backward_is_counted(backward, expected):
    variants = {
        name: {"measures": {"evaluations per view": {"mean": mean}, "of these backward": {"mean": back}}}
        for name, mean, back in (("vdm", 2.0, backward), ("vsd", 5.0, 1.0))
    }
    assert verdicts.counted("vdm", "vsd", "fewer")({"variants": variants})[1] == expected


@pytest.mark.parametrize(
    ("model", "precision", "expected"),
    [("toybox", 1.0, True), ("toybox", 0.99, False), ("/models/sd", 1.0, False)],
)
def test_what_is_known_of_a_result_is_said_of_the_runs_that_show_it(
    tmp_path, monkeypatch, model, precision, expected
):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    claim = next(
        each for each in claims.CLAIMS if each.figure == "fig6" and "than VDM alone" in each.statement
    )
    variants = {name: {"measures": {PRECISION: {"mean": precision}}} for name in ("vdm", "sds")}
    (tmp_path / "fig6.json").write_text(json.dumps({"model": model, "variants": variants}))
    assert claims.known(claim) == ("every view of all runs is recognised" if expected else "")
