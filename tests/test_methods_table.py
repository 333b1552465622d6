"""The tables over methods: every method has its row, and the page has its places."""

import logging
from pathlib import Path

import pytest

from arguments import load
from arguments.groups.guidance import METHODS
from benchmarks import methods as costs
from dreammapping.reproduction import methods, operator_chain
from dreammapping.reproduction.prompts import TUNED_ON, choose_prompts
from dreammapping.reproduction.table import Plan
from utils.errors import UserError
from utils.repository import QUICKSTART


def scores(r_precision: float) -> dict[str, float]:
    return {"r_precision": r_precision, "view_accuracy": 0.5, "similarity": 30.0}


def result(method: str, r_precision: float, seed: int = 0) -> dict:
    known = {
        "method": method,
        "prompt": "a red cat",
        "seed": seed,
        "views": 24,
        "seconds": 120.0,
        "saturation": 0.25,
    }
    return known | {"asset": scores(r_precision), "start": scores(0.1)}


def test_every_method_has_a_row_whose_settings_are_valid_and_named_as_today(caplog):
    caplog.set_level(logging.INFO)
    rows = methods.settings_of([])
    ran = set()
    for words in rows.values():
        config, _ = load(["--opt", str(QUICKSTART), *words])
        ran.add(config.GuidanceParams.guidance_method)
    assert ran == set(METHODS)
    assert caplog.messages == []  # nothing is taken from a former place, nor without effect


def test_a_row_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="got vdn"):
        methods.settings_of(["sds", "vdn"])


def test_the_operator_across_prompts_sees_none_of_the_tables():
    cells = operator_chain.chain(Plan(prompts=2), Path("output"))
    prompts = [cell.prompt for cell in cells]
    assert len(set(prompts)) == operator_chain.LENGTH and not set(prompts) & set(choose_prompts(2, TUNED_ON))
    starts = [load(words)[0].VDMParams.operator_init for words in cells.values()]
    assert starts == [None, *(f"output/operators/{cell.workspace}" for cell in list(cells)[:-1])]


def test_the_table_has_means_spreads_and_its_own_size():
    text = methods.markdown([result("vdm", 0.5), result("vdm", 0.7, seed=1), result("csd", 0.2)], expected=4)
    assert (
        "| `vdm` | 0.60 ± 0.14 | 0.50 ± 0.14 | 0.50 ± 0.00 | 30.00 ± 0.00 | 0.25 ± 0.00 | 2.00 ± 0.00 |"
        in text
    )
    assert "| `csd` | 0.20 | 0.10 |" in text
    assert "1 prompt, 2 seeds, 24 views" in text and "Unfinished: 3 of 4 runs." in text


def test_the_page_has_the_places_of_the_table():
    page = methods.REPORT.read_text()
    assert page.index(methods.BEGIN) < page.index(methods.END)
    assert all(f"`{name}`" in page for name in METHODS)


def test_the_caption_of_a_picture_that_stays_stays():
    shown = methods.caption("a red cat", ["vdm", "sds"])
    assert "vdm, sds." in shown
    assert methods.present_caption(f"a table\n\n{shown}\n{methods.END}\n") == shown
    assert methods.present_caption("a table") == ""
    assert methods.draw_grid([result("vdm", 0.5) | {"run": "output/gone"}]) is None


def test_costs_are_a_row_for_each_method():
    row = {
        "method": "vsd",
        "forward": 4.0,
        "backward": 1.0,
        "seconds": 0.5,
        "over_sds": 2.5,
        "peak_memory_bytes": 2**30,
    }
    assert costs.table([row]).endswith("| `vsd` | 4.00 | 1.00 | 5.00 | 0.500 | 2.50 | 1.00 |")
