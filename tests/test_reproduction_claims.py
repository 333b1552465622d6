"""The page of claims: a row for each, filled by kept numbers alone."""

import json

import pytest

from dreammapping.reproduction import claims
from dreammapping.reproduction.claims import BEGIN, END, FAILS, HOLDS, NOT_RUN, UNTOLD
from dreammapping.reproduction.figures import CLIP, FIGURES
from dreammapping.reproduction.work import Order, plan_work


def comparison(low: float | None, high: float | None, verdict: str) -> dict:
    difference = {"mean": 1.5, "low": low, "high": high, "prompts": 2, "runs": 4, "spread": 0.1}
    each = {"first": "vdm", "second": "sds", "measure": CLIP, "difference": difference, "verdict": verdict}
    return {"comparisons": [each]}


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
            }
            for each in figure.pairs
        ]
        evaluations = {"vdm": 2.0, "sds": 2.0 if low > 0 else 1.0, "vsd": 5.0 if low > 0 else 1.0}
        ranks = {
            name: {"mean": at, "low": at, "high": at}
            for name, at in (("DreamMapping", 1.0 if low > 0 else 2.0), ("another", 1.5))
        }
        return {
            "comparisons": every,
            "variants": {
                name: {"measures": {"evaluations per view": {"mean": value}}}
                for name, value in evaluations.items()
            },
            "curves": {kind: {"falls": found} for kind in ("renders", "samples")},
            "study": {"ranks": {"alignment": ranks, "quality": ranks}},
        }

    verdicts = [claim.judge(kept(1.0, 2.0, "higher"))[1], claim.judge(kept(-2.0, -1.0, "lower"))[1]]
    assert sorted(verdicts) == [FAILS, HOLDS]


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
    judge = claims.differs("vdm", "sds", CLIP, "higher")
    said, found = judge(comparison(low, high, verdict))
    assert found == expected and said.startswith("CLIP score: 1.5")
    assert claims.differs("vdm", "vsd", CLIP, "higher")(comparison(low, high, verdict)) is None


def test_without_numbers_a_claim_is_not_run_and_with_them_the_page_has_them(tmp_path, monkeypatch):
    page = tmp_path / "reproduction.md"
    page.write_text(f"before\n{BEGIN}\n{END}\n")
    for name, value in (("RESULTS", tmp_path), ("PAGE", page), ("IMAGES", tmp_path)):
        monkeypatch.setattr(claims, name, value)
    assert {claims.finding(each)[1] for each in claims.CLAIMS} == {NOT_RUN}
    claims.keep("fig6", comparison(1.0, 2.0, "higher") | {"figure": "fig6"}, None)
    assert json.loads((tmp_path / "fig6.json").read_text())["figure"] == "fig6"
    rows = [
        line for line in page.read_text().splitlines() if "fits the text better than SDS at CFG 7.5" in line
    ]
    assert rows[0].endswith("| CLIP score: 1.50 (1.00 to 2.00) | holds |")
    assert rows[1].endswith("| - | not run yet |")


def test_a_reduced_form_is_never_kept_unasked(tmp_path, monkeypatch):
    planned = plan_work(FIGURES["fig6"], Order(prompts="1", seeds=1, iterations=40, output=tmp_path))
    assert planned.order.write is False
    monkeypatch.setattr(claims, "keep", lambda *_: pytest.fail("kept"))
    from dreammapping.reproduction import work

    work.reproduce("fig6", Order(prompts="1", seeds=1, iterations=40, output=tmp_path, train=False))
