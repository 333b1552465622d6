"""The page of a run holds all of it, asks nobody for anything, and turns no text into markup."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from dreammapping import optimize
from dreammapping.__main__ import main as verbs
from dreammapping.finished import FinishedRun
from dreammapping.page import page as pages
from dreammapping.page.document import picture_uri
from dreammapping.page.facts import changed_settings
from dreammapping.page.gallery import write_gallery
from dreammapping.page.page import write_page
from scene.ply import write_gaussians
from tests.finished_run import finished_run
from tests.gaussians import random_gaussians
from utils.errors import UserError
from utils.images import write_picture

HOSTILE = '</script></style><img src=x onerror="alert(1)">\'"><script>alert(2)</script>{{ 7*7 }}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "car")


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._raw = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        if not self._raw:
            self.text.append(data)

    def addresses(self) -> list[str]:
        """Whatever the page leads to or loads."""
        return [
            value or ""
            for _, attributes in self.found
            for name, value in attributes.items()
            if name in ("src", "href", "action", "poster", "data", "srcset", "data-page")
        ]


def opened(folder: Path) -> FinishedRun:
    return FinishedRun.open(folder)


def elements(path: Path) -> Elements:
    return Elements(path.read_text(encoding="utf-8"))


def test_the_page_has_all_that_the_run_left(folder):
    found = elements(write_page(opened(folder)))
    text = " ".join(found.text)
    for part in (
        "a red car",
        "vdm",
        "20",
        "50",
        "GenerateCamParams.image_w",
        "GuidanceParams.text",
        "loss: vdm",
    ):
        assert part in text
    assert "Not finished" not in text
    kinds = [kind for kind, _ in found.found]
    assert (kinds.count("canvas"), kinds.count("video"), kinds.count("img")) == (1, 1, 8)
    assert kinds.count("svg") == 3, "one loss, the number of Gaussians, the error by range of t"
    for kind, attributes in found.found:
        words = attributes.get("alt") if kind == "img" else attributes.get("aria-label")
        assert words or kind not in ("img", "canvas", "svg", "video"), (
            f"{kind} says nothing to who cannot see it"
        )


def test_a_setting_of_the_default_is_not_named_and_one_that_differs_is_with_both_values(folder):
    rows = {name: rest for name, *rest in changed_settings(FinishedRun.open(folder).config)}
    assert (
        rows["GenerateCamParams.image_w"][:2] == ["48", "512"] and "GenerateCamParams.init_shape" not in rows
    )


def test_the_page_leads_to_nothing_but_itself_and_files_that_are_there(folder, tmp_path):
    (folder / "export").mkdir(exist_ok=True)
    (folder / "export" / "a b#?.spz").write_bytes(b"x")
    (folder / "replaced" / "1").mkdir(parents=True)
    (folder / "replaced" / "1" / "of another run.glb").write_bytes(b"x")
    for target in (folder / "index.html", tmp_path / "else" / "where.html"):
        found = elements(write_page(opened(folder), target))
        assert "export/a b#?.spz" in found.text and "of another run" not in " ".join(found.text)
        for address in found.addresses():
            parts = urlsplit(address)
            assert parts.scheme in ("data", "") and not parts.netloc
            assert parts.scheme or (target.parent / unquote(parts.path)).resolve().is_file()
        styles = re.findall(r"url\(|@import", target.read_text(encoding="utf-8"))
        assert styles == []


def test_no_text_of_a_user_becomes_markup(tmp_path):
    words = [f"text={HOSTILE}", f"negative={HOSTILE}"]
    plain = finished_run(tmp_path / "plain", "negative=b")
    hostile = finished_run(tmp_path / "<b>&'\"{{x}}", *words)
    manifest = json.loads((hostile / "run.json").read_text())
    manifest |= {"platform": HOSTILE, "device": HOSTILE, "prior": {HOSTILE: HOSTILE}}
    (hostile / "run.json").write_text(json.dumps(manifest))
    manifest = json.loads((plain / "run.json").read_text()) | {
        "platform": "p",
        "device": "d",
        "prior": {"a": "b"},
    }
    (plain / "run.json").write_text(json.dumps(manifest))
    lines = [
        json.loads(line) | {f"loss/{HOSTILE}": 1.0}
        for line in (hostile / "metrics.jsonl").read_text().splitlines()
    ]
    (hostile / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [
        json.loads(line) | {"loss/b": 1.0} for line in (plain / "metrics.jsonl").read_text().splitlines()
    ]
    (plain / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    for write in (
        lambda run: write_page(opened(run)),
        lambda run: write_gallery([(opened(run), run / "index.html")], run / "all" / "index.html"),
    ):
        one, other = (elements(write(run)) for run in (plain, hostile))
        assert [kind for kind, _ in one.found] == [kind for kind, _ in other.found]
        assert [sorted(attributes) for _, attributes in one.found] == [
            sorted(each) for _, each in other.found
        ]
        assert HOSTILE in "".join(other.text)


def test_the_browser_may_run_the_pages_script_alone_and_load_nothing(folder):
    html = write_page(opened(folder)).read_text(encoding="utf-8")
    policy = (
        dict(elements(folder / "index.html").found)["meta"]
        and re.search(r'Policy" content="([^"]*)"', html)[1]
    )
    assert "default-src &#39;none&#39;" in policy and "unsafe" not in policy and "http" not in policy


def test_a_run_that_is_not_finished_says_so(tmp_path):
    run = finished_run(tmp_path / "run")
    manifest = json.loads((run / "run.json").read_text()) | {"finished": False, "iterations": 7}
    (run / "run.json").write_text(json.dumps(manifest))
    assert "Not finished: 7 of 20 iterations." in elements(write_page(opened(run))).text


BROKEN = {
    "no asset": lambda run: [path.unlink() for path in run.rglob("*.ply")],
    "an empty asset": lambda run: [path.write_bytes(b"") for path in run.rglob("*.ply")],
    "no manifest": lambda run: (run / "run.json").unlink(),
    "a manifest of nothing": lambda run: (run / "run.json").write_text("{}"),
    "a broken manifest": lambda run: (run / "run.json").write_text("{"),
    "a manifest of other things": lambda run: (run / "run.json").write_text(
        '{"seconds": "x", "versions": 3}'
    ),
    "no metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "metrics of nothing": lambda run: (run / "metrics.jsonl").write_text(""),
    "metrics of other things": lambda run: (run / "metrics.jsonl").write_text(
        '3\n{"step": "a", "loss/x": "b"}\n'
    ),
    "metrics of huge numbers": lambda run: (run / "metrics.jsonl").write_text(
        f'{{"step": 1{"0" * 400}}}\n{{"step": 1, "loss/x": -1e308}}\n{{"step": 2, "loss/x": 1e308}}\n'
    ),
    "cameras without a focal length": lambda run: (run / "cameras.json").write_text(
        re.sub(r'"f([xy])": [0-9.]+', r'"f\1": 0', (run / "cameras.json").read_text())
    ),
    "an iteration that is no number": lambda run: (
        (run / "point_cloud" / "iteration_²").mkdir()
        or (run / "point_cloud" / "iteration_²" / "point_cloud.ply").touch()
    ),
    "no cameras": lambda run: (run / "cameras.json").unlink(),
    "no pictures": lambda run: [path.unlink() for path in run.rglob("*.png")],
    "a missing picture": lambda run: next(run.rglob("render_depth_2.png")).unlink(),
    "a broken picture": lambda run: next(run.rglob("render_view_2.png")).write_bytes(b"x" * 100_000),
    "no videos": lambda run: [path.unlink() for path in run.rglob("*.mp4")],
    "an empty video": lambda run: [path.write_bytes(b"") for path in run.rglob("*.mp4")],
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_page_does_without_what_is_missing_or_broken(tmp_path, how):
    run = finished_run(tmp_path / "run")
    BROKEN[how](run)
    text = " ".join(elements(write_page(opened(run))).text)
    assert "a red car" in text
    assert ("No asset can be shown" in text) == ("asset" in how)
    assert elements(write_gallery([(opened(run), run / "index.html")], tmp_path / "index.html")).found


@pytest.mark.parametrize("count", [1, 3])
def test_a_page_of_very_few_gaussians(tmp_path, count):
    run = finished_run(tmp_path / "run", gaussians=random_gaussians(count))
    assert (
        json.loads(re.search(r'id="about">(.*?)<', write_page(opened(run)).read_text())[1])["count"] == count
    )


def test_gaussians_that_are_not_finite_are_left_out(tmp_path):
    run = finished_run(tmp_path / "run")
    path = run / "point_cloud" / "iteration_20" / "point_cloud.ply"
    data = bytearray(path.read_bytes())
    data[-68:-64] = np.float32(np.nan).tobytes()  # x of the last of 17 columns
    path.write_bytes(data)
    assert json.loads(re.search(r'id="about">(.*?)<', write_page(opened(run)).read_text())[1])["count"] == 49


def test_somebody_elses_page_is_left_alone(folder, tmp_path):
    mine = tmp_path / "index.html"
    mine.write_text("<p>my thesis</p>")
    for write in (
        lambda: write_page(opened(folder), mine),
        lambda: write_gallery([(opened(folder), mine)], mine),
    ):
        with pytest.raises(
            UserError, match=r"index\.html: expected a page of ours or nothing, found another file"
        ):
            write()
    assert mine.read_text() == "<p>my thesis</p>"
    write_page(opened(folder), tmp_path / "ours.html")
    write_page(opened(folder), tmp_path / "ours.html")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.html")  # which is not waited for
        with pytest.raises(UserError, match=r"pipe\.html: expected a place for a page"):
            write_page(opened(folder), tmp_path / "pipe.html")


EDITS = {
    "a word": lambda page: page.replace(b"a red car", b"my red car", 1),
    "the end": lambda page: page + b"<p>my notes</p>",
    "the first line": lambda page: b"<!-- mine -->" + page,
    "another digest": lambda page: re.sub(rb'(data-sha256="..)..', rb"\1xx", page, count=1),
}


def test_a_page_that_somebody_edited_is_theirs(tmp_path, capsys):
    """No page of several is written where one is refused; pages as they were left are made again."""
    runs = [finished_run(tmp_path / "runs" / name) for name in ("one", "two")]
    assert verbs(["page", str(tmp_path / "runs")]) == 0
    (runs[0] / "index.html").unlink()
    for target in (runs[1] / "index.html", tmp_path / "runs" / "index.html"):
        kept = target.read_bytes()
        for edit in EDITS.values():
            edited = edit(kept)
            assert edited != kept
            target.write_bytes(edited)
            capsys.readouterr()
            assert verbs(["page", str(tmp_path / "runs")]) == 2
            error = capsys.readouterr().err
            assert f"error: {target}: expected a page of ours or nothing, found one that was changed" in error
            assert "move it, or choose --output FOLDER" in error and error.count("\n") == 1
            assert target.read_bytes() == edited and not (runs[0] / "index.html").exists()
        target.write_bytes(kept)
    assert verbs(["page", str(tmp_path / "runs")]) == 0


def test_the_page_of_an_earlier_version_has_no_digest_and_is_ours(folder, tmp_path):
    page = write_page(opened(folder), tmp_path / "index.html")
    page.write_bytes(re.sub(rb' data-sha256="\w+"', b"", page.read_bytes()))
    write_page(opened(folder), page)
    assert b"data-sha256" in page.read_bytes()


def test_folders_that_vanish_meanwhile_cost_nothing(tmp_path, monkeypatch):
    """A run that goes on removes checkpoints, and renames what it has written."""
    run = finished_run(tmp_path / "run")
    for name in ("checkpoints/iteration_000010", "export/half"):
        (run / name).mkdir(parents=True)
    scan = os.scandir

    def late(path="."):
        if str(path).endswith(("iteration_000010", "half")):
            os.rmdir(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", late)
    assert "run.json" in write_page(FinishedRun.open(run)).read_text(encoding="utf-8")


def test_a_large_video_is_linked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "MOST_VIDEO_BYTES", 10)
    sources = [
        attributes["src"]
        for kind, attributes in elements(write_page(opened(folder))).found
        if kind == "video"
    ]
    assert sources == ["videos/20_iteration/video_rgb_20.mp4"]


def test_a_large_picture_is_embedded_as_it_looks(tmp_path):
    noise = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40), size=(400, 400), mode="bicubic").clamp(
        0, 1
    )
    write_picture(tmp_path / "a.png", noise)
    data = picture_uri(tmp_path / "a.png")
    assert data is not None and data.startswith("data:image/webp")
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB")) / 255
    error = np.square(found - noise[0].permute(1, 2, 0).numpy()).mean()
    assert -10 * np.log10(error) > 30


# The verb


def test_one_run_gets_a_page_and_several_get_a_gallery(tmp_path, capsys):
    for name in ("one", "two"):
        finished_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "notes").mkdir()
    assert verbs(["page", str(tmp_path / "runs" / "one")]) == 0
    assert not (tmp_path / "runs" / "index.html").exists()
    assert verbs(["page", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out.splitlines()
    for name in ("one", "two"):  # how much there is comes first
        assert any(
            line.startswith(f"{tmp_path / 'runs' / name}: 50 Gaussians; about ") for line in said[-5:-3]
        )
    assert said[-1] == f"gallery: {tmp_path / 'runs' / 'index.html'}"
    assert elements(tmp_path / "runs" / "index.html").addresses().count("two/index.html") == 2
    first = (tmp_path / "runs" / "index.html").read_bytes()
    assert (
        verbs(["page", str(tmp_path / "runs")]) == 0
        and (tmp_path / "runs" / "index.html").read_bytes() == first
    )


def test_the_next_page_removes_what_a_killed_one_left_half_written(tmp_path):
    """Beside each page and the gallery, and nothing that merely has a similar name."""
    for name in ("one", "two"):
        finished_run(tmp_path / "runs" / name)
    before = {path for path in tmp_path.rglob("*")}
    folders = [tmp_path / "runs" / name for name in ("", "one", "two")]
    for folder in folders:
        (folder / ".index.0123abcd.partial.html").write_text("<html>")
        (folder / ".index.mine.partial.html").write_text("theirs")
    assert verbs(["page", str(tmp_path / "runs")]) == 0
    made = {folder / name for folder in folders for name in ("index.html", ".index.mine.partial.html")}
    assert {path for path in tmp_path.rglob("*")} == before | made


def test_pages_go_elsewhere_and_runs_of_one_name_do_not_meet(tmp_path, capsys):
    runs = [finished_run(tmp_path / name / "car") for name in ("a", "b")]
    before = sorted(tmp_path.rglob("*"))
    assert verbs(["page", *map(str, runs), "--output", str(tmp_path / "web")]) == 0
    found = {path.relative_to(tmp_path / "web").as_posix() for path in (tmp_path / "web").rglob("*.html")}
    assert found == {"index.html", "car/index.html", "car-2/index.html"}
    assert [path for path in sorted(tmp_path.rglob("*")) if "web" not in path.parts] == before


def test_a_run_with_broken_settings_is_left_out_and_costs_the_others_nothing(tmp_path, capsys, caplog):
    first, second, third = (finished_run(tmp_path / "runs" / name) for name in ("one", "three", "two"))
    (first / "config.yaml").write_text("seed: [")
    assert verbs(["page", str(tmp_path / "runs")]) == 0
    (warning,) = (message for message in caplog.messages if "left out" in message)
    assert str(first / "config.yaml") in warning
    assert [(run / "index.html").exists() for run in (first, second, third)] == [False, True, True]
    assert {"two/index.html", "three/index.html"} <= set(
        elements(tmp_path / "runs" / "index.html").addresses()
    )
    assert "one/index.html" not in elements(tmp_path / "runs" / "index.html").addresses()
    (second / "config.yaml").write_text("seed: [")
    assert verbs(["page", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("index.html") == 3 + 2
    (third / "config.yaml").write_text("seed: [")
    assert verbs(["page", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert all(str(run) in error for run in (first, second, third)) and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "expected a run, or a folder of runs, found neither"), ("file", "found neither")],
)
def test_what_is_no_run_is_one_line(tmp_path, capsys, name, said):
    (tmp_path / "file").write_text("x")
    assert verbs(["page", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert verbs(["page", str(folder), "--output", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert "index.html" in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# At the end of a run


@pytest.fixture
def config(prior, tmp_path):
    from arguments import load

    words = [
        f"model_key={prior}", f"output_path={tmp_path}", "workspace=run", "device=cpu", "text=a red car",
        "fp16=false", "guidance=vdm", "perpneg=false", "iterations=2", "log_interval=1", "video_frames=2",
        "pro_frames_num=1", "init_num_pts=60", "image_w=32", "image_h=32", "C_batch_size=1",
    ]  # fmt: skip
    return lambda *more: load([*words, *more])[0]


def test_every_run_leaves_its_page(config, tmp_path):
    assert optimize(config(), quiet=True).exit_code == 0
    text = " ".join(elements(tmp_path / "run" / "index.html").text)
    assert "Not finished" not in text and "error of the operator M by range of t" in text
    optimize(config("page=false"), quiet=True, force=True)
    assert not (tmp_path / "run" / "index.html").exists(), "--force takes the old run's page away"


def test_force_leaves_a_page_that_somebody_edited(config, tmp_path, caplog):
    assert optimize(config(), quiet=True).exit_code == 0
    page = tmp_path / "run" / "index.html"
    edited = page.read_bytes().replace(b"a red car", b"my red car")
    page.write_bytes(edited)
    assert optimize(config(), quiet=True, force=True).exit_code == 0
    assert page.read_bytes() == edited
    assert sum("found one that was changed since" in message for message in caplog.messages) == 1


def test_a_page_that_fails_costs_one_warning(config, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(pages, "write_page", fail)
    assert optimize(config(), quiet=True).exit_code == 0
    assert FinishedRun.open(tmp_path / "run").manifest["finished"]
    assert (
        sum("the page cannot be written (a mistake of ours)" in message for message in caplog.messages) == 1
    )


def warned(page: Elements) -> list[dict[str, str | None]]:
    """What the page warns of, but for what stands there in case nothing can be drawn."""
    marked = [attributes for _, attributes in page.found if attributes.get("class") == "warning"]
    return [attributes for attributes in marked if "hidden" not in attributes]


def test_a_picture_gets_a_page_that_warns_of_nothing(config, tmp_path, caplog):
    settings = config("representation=image", "ImageParams.steps=2", "particle=pixel")
    assert optimize(settings, quiet=True).exit_code == 0
    caplog.clear()
    found = elements(write_page(opened(tmp_path / "run")))
    assert [attributes["alt"] for kind, attributes in found.found if kind == "img"] == [
        "What the run made of: a red car"
    ]
    assert warned(found) == [] and caplog.messages == []


def test_the_page_of_a_field_shows_its_front(tmp_path, caplog):
    run = finished_run(tmp_path / "run", "representation=grid", "guidance=vdm")
    found = elements(write_page(opened(run)))
    pictures = [attributes for kind, attributes in found.found if kind == "img"]
    assert pictures[0]["alt"] == "What the run made of: a red car" and len(pictures) == 1 + 8
    assert pictures[0]["src"] == pictures[1]["src"], "the first test view is that from the front"
    assert warned(found) == [] and caplog.messages == []


def test_the_page_of_an_asset_is_that_of_its_last_iteration(tmp_path):
    run = finished_run(tmp_path / "run")
    write_gaussians(run / "point_cloud" / "iteration_20" / "point_cloud.ply", random_gaussians(7))
    assert json.loads(re.search(r'id="about">(.*?)<', write_page(opened(run)).read_text())[1])["count"] == 7
