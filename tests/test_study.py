"""The user study: a page that is blind and sends nothing, tried in a browser, and what its answers come to."""

import base64
import itertools
import json
import os
import re

import numpy as np
import pytest
import scipy.stats
import torch

from dreammapping.evaluation.pictures import Source
from dreammapping.study.build import Entry, build
from dreammapping.study.command import main
from dreammapping.study.names import opened
from dreammapping.study.score import kendall_w, markdown, score, summarise
from tests.browser import chromium, visit
from utils import own_files
from utils.errors import UserError
from utils.images import read_picture, write_picture

NASTY = """</script><img src=x onerror="window.hurt=1"><!-- ${alert(1)} 'a' & "b" é 猫"""
SHADES = {"ochre": 0.2, "slate": 0.5, "ivory": 0.8}


def entries(folder, prompts=("a red car", NASTY), shades=SHADES, views=4):
    """Folders of flat pictures, a shade for each system."""
    found = []
    for number, prompt in enumerate(prompts):
        for system, shade in shades.items():
            place = folder / f"{number}_{system}"
            for view in range(views):
                write_picture(place / f"{view}.png", torch.full((1, 3, 8, 8), shade))
            (place / "prompt.txt").write_text(prompt, encoding="utf-8")
            found.append(Entry(system, Source.open(place)))
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    built = build(entries(folder / "made"), seed=3, size=32)
    built.write(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def key(study):
    return json.loads((study / "key.json").read_text(encoding="utf-8"))


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )


def test_the_page_does_not_say_whose_a_picture_is(study, key):
    page = (study / "index.html").read_text(encoding="utf-8")
    assert not any(system in page for system in SHADES)
    orders = [
        [key["trials"][trial["id"]]["items"][item["id"]] for item in trial["items"]]
        for trial in data_of(page)["trials"]
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(SHADES)
    names = [item["id"] for trial in data_of(page)["trials"] for item in trial["items"]]
    assert len(set(names)) == 6 and names[:3] == sorted(names[:3])


def test_the_page_has_everything_in_itself_and_may_reach_nothing(study):
    page = (study / "index.html").read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy and "form-action 'none'" in policy and "unsafe" not in policy
    assert not re.findall(r"(?:https?:)?//[\w.]", page.replace(data_text(page), ""))


def data_text(page):
    return re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]


def test_texts_of_users_are_data_and_no_markup(study):
    page = (study / "index.html").read_text(encoding="utf-8")
    assert NASTY in {trial["prompt"] for trial in data_of(page)["trials"]}
    assert "<img" not in page and 'onerror="' not in page and page.count("</script>") == 2


def test_each_picture_is_that_of_its_system(study, key, tmp_path):
    page = (study / "index.html").read_text(encoding="utf-8")
    for trial in data_of(page)["trials"]:
        for item in trial["items"]:
            (tmp_path / "x.jpg").write_bytes(base64.b64decode(item["image"].partition(",")[2]))
            shade = read_picture(tmp_path / "x.jpg").mean() / 255
            assert shade == pytest.approx(SHADES[key["trials"][trial["id"]]["items"][item["id"]]], abs=0.02)


def test_four_views_make_a_picture_of_two_rows(tmp_path):
    (first, *_) = entries(tmp_path, prompts=["a cat"])
    page = build([first, Entry("other", first.source)], size=40).page
    (tmp_path / "x.jpg").write_bytes(
        base64.b64decode(data_of(page)["trials"][0]["items"][0]["image"].partition(",")[2])
    )
    assert read_picture(tmp_path / "x.jpg").shape == (80, 80, 3)


def test_the_same_seed_makes_the_same_study(tmp_path):
    made = entries(tmp_path)
    assert build(made, seed=1) == build(made, seed=1)
    assert build(made, seed=1).key["study"] != build(made, seed=2).key["study"]


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        (["vdm"], "expected at least two systems, got vdm alone"),
        (["vdm", "sds", "vdm"], "expected vdm once, got it 2 times"),
        ([f"s{index}" for index in range(10)], "expected at most 9 systems, got 10"),
        ([], "expected runs of at least two systems, got none"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, systems, message):
    (one, *_) = entries(tmp_path, prompts=["a cat"])
    with pytest.raises(UserError, match=message):
        build([Entry(system, one.source) for system in systems])


def test_a_system_is_named_by_the_word_the_run_or_the_folder(tmp_path):
    (one, *_) = entries(tmp_path, prompts=["a cat"])
    assert opened(f"ours={one.source.folder}")[0] == "ours"
    assert opened(str(one.source.folder))[0] == one.source.folder.name
    odd = tmp_path / "a=b"
    write_picture(odd / "0.png", torch.zeros(1, 3, 4, 4))
    assert opened(str(odd), "a cat")[0] == "a=b"


def test_a_name_that_is_no_text_is_refused_and_a_folder_s_too(capsys, tmp_path):
    """Bytes that are no UTF-8, as the command line gives them."""
    made = entries(tmp_path, prompts=["a cat"])
    words = [f"{entry.system}={entry.source.folder}" for entry in made[1:]]
    options = ["--size", "32", "--output", tmp_path / "out"]
    named = error_of(capsys, "build", *words, f"s\udce9={made[0].source.folder}", *options)
    assert r"expected text in UTF-8, got 's\udce9'; correct it" in named
    odd = made[0].source.folder.rename(tmp_path / "s\udce9")
    for word in (f"ochre={odd}", odd):
        assert "folder: expected a path in UTF-8" in error_of(capsys, "build", *words, word, *options)
    assert "prompt: expected text in UTF-8" in error_of(
        capsys, "build", *words, *options, "--prompt", "\udce9"
    )
    assert not (tmp_path / "out").exists()


def complete(key, participant, order, questions=("alignment", "quality")):
    """A participant who puts systems in one order everywhere."""
    answers = []
    for trial, about in key["trials"].items():
        names = {system: item for item, system in about["items"].items()}
        answers += [
            {"trial": trial, "question": question, "order": [names[system] for system in order], "seconds": 1}
            for question in questions
        ]
    return {"study": key["study"], "participant": participant, "answers": answers}


def saved(folder, *answers):
    paths = [folder / f"answers_{index}.json" for index in range(len(answers))]
    for path, each in zip(paths, answers, strict=True):
        path.write_text(json.dumps(each), encoding="utf-8")
    return paths


def test_those_who_agree_have_the_same_ranks_and_w_of_one(study, key, tmp_path):
    paths = saved(tmp_path, *(complete(key, f"p{index}", ["slate", "ivory", "ochre"]) for index in range(4)))
    result = score(paths, study / "key.json")
    for question in ("alignment", "quality", "both"):
        ranks = result.ranks[question]
        assert list(ranks) == ["slate", "ivory", "ochre"]
        assert [(each.mean, each.low, each.high) for each in ranks.values()] == [
            (1, 1, 1),
            (2, 2, 2),
            (3, 3, 3),
        ]
    assert result.agreement["quality"].w == 1.0 and result.agreement["quality"].chance == 0.25
    assert result.ranks["both"]["ochre"].rankings == 16
    text = markdown(result)
    assert text.splitlines()[2].startswith("| slate | 1.00 (1.00 to 1.00) |")
    assert "4 participants and 2 trials" in text and "alignment 1.00 (0.25 by chance)" in text


def test_opposite_orders_have_w_of_zero_and_equal_ranks(study, key, tmp_path):
    order = ["ochre", "slate", "ivory"]
    paths = saved(tmp_path, complete(key, "a", order), complete(key, "b", order[::-1]))
    result = score(paths, study / "key.json")
    assert result.agreement["alignment"].w == pytest.approx(0.0)
    assert {each.mean for each in result.ranks["alignment"].values()} == {2.0}
    assert all(
        each.low < 2.0 < each.high for name, each in result.ranks["alignment"].items() if name != "slate"
    )


def test_kendall_s_w_is_that_of_the_mean_rank_correlation():
    """W = (1 + (m - 1) r) / m, with r the mean of Spearman's correlation over all pairs of people."""
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.permutation(6) + 1.0 for _ in range(5)])
    mean = np.mean([np.corrcoef(x, y)[0, 1] for x, y in itertools.combinations(ranks, 2)])
    assert kendall_w(ranks) == pytest.approx((1 + 4 * mean) / 5)


def test_intervals_are_over_people_and_trials_and_not_over_single_answers():
    """Ten people who each hold to one order in all of twelve trials are ten things that vary, not 120."""
    orders = [{"x": 1.0, "y": 2.0} if person % 2 else {"x": 2.0, "y": 1.0} for person in range(10)]
    ranks = {
        f"p{person}": {("quality", f"t{trial}"): order for trial in range(12)}
        for person, order in enumerate(orders)
    }
    found = summarise(ranks, ["quality"]).ranks["quality"]["x"]
    deviation = 0.5 / np.sqrt(10)
    assert found.mean == 1.5
    assert found.high - found.low > 2 * 1.96 * deviation


def test_of_few_people_the_interval_is_student_s_and_reaches_beyond_what_they_said():
    """Three people, of whom each holds to a rank in all of twelve trials: a bootstrap would end at 1 and 2."""
    first = [1.0, 1.0, 2.0]
    ranks = {
        f"p{person}": {("quality", f"t{trial}"): {"x": rank, "y": 3.0 - rank} for trial in range(12)}
        for person, rank in enumerate(first)
    }
    found = summarise(ranks, ["quality"]).ranks["quality"]["x"]
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(first)
    assert (found.low, found.high) == pytest.approx((4 / 3 - half, 4 / 3 + half))
    assert found.low < 1.0 and found.high > 2.0


def test_unfinished_answers_count_as_far_as_they_go(study, key, tmp_path):
    part = complete(key, "b", ["ivory", "slate", "ochre"])
    part["answers"] = part["answers"][:1]
    result = score(saved(tmp_path, complete(key, "a", list(SHADES)), part), study / "key.json")
    ranks = result.ranks["alignment"]
    assert ranks["ochre"].mean == pytest.approx((1 + 1 + 3) / 3) and ranks["ochre"].rankings == 3
    assert result.agreement["quality"] is None and result.agreement["alignment"].trials == 1


def test_who_has_answered_nothing_is_no_participant(study, key, tmp_path):
    both = complete(key, "a", list(SHADES)), complete(key, "b", list(SHADES)) | {"answers": []}
    answers, none = saved(tmp_path, *both)
    assert score([answers, none], study / "key.json") == score([answers], study / "key.json")


def test_answers_that_an_editor_has_marked_with_their_encoding_are_read(study, key, tmp_path):
    (path,) = saved(tmp_path, complete(key, "a", list(SHADES)))
    plain = score([path], study / "key.json").as_dict()
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert score([path], study / "key.json").as_dict() == plain


def test_one_ranking_of_one_person_has_no_interval():
    result = summarise({"a": {("quality", "t"): {"x": 1.0, "y": 2.0}}}, ["alignment", "quality"])
    assert result.ranks["quality"]["x"].low is None and "alignment" not in result.ranks
    assert "| x | 1.00 | 1.00 |" in markdown(result)


def error_of(capsys, *words):
    """The one line that the command writes when it ends with code 2."""
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_answers_that_are_none_are_named(capsys, study, key, tmp_path):
    good = complete(key, "a", list(SHADES))

    def spoilt(change):
        changed = json.loads(json.dumps(good))
        change(changed)
        return error_of(capsys, "score", *saved(tmp_path, changed), "--study", study)

    assert "expected answers to study" in spoilt(lambda each: each.update(study="other"))
    assert "not the trial's 3" in spoilt(lambda each: each["answers"][0]["order"].pop())
    assert "twice, or no question" in spoilt(lambda each: each["answers"].append(each["answers"][0]))
    assert "expected the answers that the page saves" in spoilt(
        lambda each: each["answers"][0].update(trial="none")
    )
    assert "got none; save some first" in spoilt(lambda each: each.update(answers=[]))
    twice = saved(tmp_path, good, good)
    assert "expected a participant of its own, got 'a'" in error_of(capsys, "score", *twice, "--study", study)
    (tmp_path / "answers_0.json").write_text("[1", encoding="utf-8")
    assert "expected the answers of a study as JSON" in error_of(capsys, "score", twice[0], "--study", study)
    (tmp_path / "answers_0.json").write_text("[1]", encoding="utf-8")
    assert "got a list" in error_of(capsys, "score", twice[0], "--study", study)
    assert "expected the key of a study, found none; give --study" in error_of(capsys, "score", twice[0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_answers_or_key_is_not_waited_for(capsys, study, key, tmp_path):
    (answers,) = saved(tmp_path, complete(key, "a", list(SHADES)))
    os.mkfifo(tmp_path / "pipe")
    said = error_of(capsys, "score", tmp_path / "pipe", "--study", study)
    assert "pipe: expected the answers of a study, got a pipe or device" in said
    os.mkfifo(tmp_path / "key.json")
    assert "key.json: expected the key of a study, got a pipe" in error_of(capsys, "score", answers)
    with pytest.raises(UserError, match=r"key\.json: expected no file"):
        build(entries(tmp_path / "runs", ["a cat"])).write(tmp_path)


def test_of_two_builds_in_one_folder_the_second_keeps_the_key_of_the_first(tmp_path, monkeypatch):
    """Which the first has written while the second waited."""
    made = entries(tmp_path / "runs", ["a cat"])
    first, second = (build(made, seed=seed, size=32) for seed in (1, 2))
    held = own_files.held

    def waiting(*args, **words):
        monkeypatch.setattr(own_files, "held", held)
        first.write(tmp_path / "out")
        return held(*args, **words)

    monkeypatch.setattr(own_files, "held", waiting)
    with pytest.raises(UserError, match=f"found {first.key['study']}, whose answers mean nothing without"):
        second.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "key.json").read_text())["study"] == first.key["study"]


def test_the_commands_build_a_study_and_score_its_answers(capsys, tmp_path):
    made = entries(tmp_path, prompts=["a cat"])
    words = [f"{entry.system}={entry.source.folder}" for entry in made]
    assert main(["build", *words, "--output", str(tmp_path / "out"), "--size", "32"]) == 0
    assert "1 trials; give it to participants" in capsys.readouterr().out
    key = json.loads((tmp_path / "out" / "key.json").read_text(encoding="utf-8"))
    (path,) = saved(tmp_path / "out", complete(key, "a", list(SHADES)))
    assert main(["score", str(path), "--json", str(tmp_path / "numbers.json")]) == 0
    assert "| ochre | 1.00 | 1.00 | 1.00 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "numbers.json").read_text())["ranks"]["both"]["ivory"]["mean"] == 3.0
    assert main(["build", *words, "--output", str(tmp_path / "out"), "--size", "32"]) == 0
    capsys.readouterr()
    said = error_of(capsys, "build", *words, "--output", str(tmp_path / "out"), "--size", "32", "--seed", "1")
    assert f"found {key['study']}, whose answers mean nothing without its key.json" in said
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("precious", encoding="utf-8")
    assert "found another" in error_of(
        capsys, "build", *words, "--output", str(tmp_path / "site"), "--size", "32"
    )
    assert "--size: expected 32 to 2048, got 8" in error_of(
        capsys, "build", *words, "--output", "x", "--size", "8"
    )


def test_a_disk_that_fills_leaves_no_page_without_its_key(tmp_path, monkeypatch):
    built, rename = build(entries(tmp_path, prompts=["a cat"]), size=32), os.replace

    def full(source, target):
        if target.name == "key.json":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr("utils.files.os.replace", full)
    with pytest.raises(UserError, match=r"key\.json: cannot be written \(No space left on device\)"):
        built.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# In a browser


@pytest.fixture(scope="module")
def window(study):
    with chromium() as browser, visit(browser, (study / "index.html").as_uri(), has_touch=True) as seen:
        yield seen


@pytest.fixture
def page(window):
    """The study as somebody opens it who was never there."""
    window.page.evaluate("localStorage.clear()")
    window.said.clear()
    return window.page


def start(page, participant):
    page.reload()
    page.locator("#participant").click()
    press(page, participant, "Enter")


def press(page, *keys):
    """Keys by their names, and letters one after the other, wherever the focus is."""
    for key in keys:
        page.keyboard.press(key) if key in ("Enter", "Backspace") else page.keyboard.type(key)


def shown(page):
    """Prompt and pictures, in the order in which they stand."""
    images = "images => images.map(image => image.src)"
    return [page.locator("#prompt").inner_text(), *page.locator("#cards img").evaluate_all(images)]


def ranks(page):
    return page.locator("#cards .rank").all_text_contents()


def test_a_participant_answers_with_keys_and_fingers_and_saves_a_file(page, study, key, tmp_path):
    progress, question = page.locator("#progress"), page.locator("#question")
    start(page, "7")
    assert progress.inner_text() == "1 of 4" and question.inner_text() == "Which fits the text best?"
    press(page, "2")
    assert ranks(page) == ["", "1", ""]
    press(page, "1")
    assert ranks(page) == ["2", "1", "3"]  # the last one needs no choice
    press(page, "Backspace", "3")
    assert ranks(page) == ["3", "1", "2"]
    press(page, "Enter")
    assert progress.inner_text() == "2 of 4" and question.inner_text().startswith("Which looks best")
    press(page, "Enter")  # nothing is chosen yet
    assert progress.inner_text() == "2 of 4"
    cards = page.locator("#cards button")
    cards.nth(2).tap()
    cards.nth(0).tap()
    assert ranks(page) == ["2", "3", "1"]
    cards.nth(0).tap()
    assert ranks(page) == ["", "", "1"]
    cards.nth(1).tap()
    page.locator("#next").click()
    press(page, "12", "Enter", "31", "Enter")
    assert page.locator("#end").is_visible() and "4 of 4 answers" in page.locator("#state").inner_text()
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == "answers_7.json"
    path = tmp_path / "answers_7.json"
    download.value.save_as(path)
    answers = json.loads(path.read_text(encoding="utf-8"))
    assert answers == json.loads(page.locator("#text").input_value())
    assert answers["participant"] == "7" and answers["study"] == key["study"]
    first, second, third, fourth = answers["answers"]
    assert first["order"] == [first["shown"][place] for place in (1, 2, 0)]
    assert second["order"] == [second["shown"][place] for place in (2, 1, 0)]
    assert third["order"] == third["shown"] and fourth["order"] == [
        fourth["shown"][place] for place in (2, 0, 1)
    ]
    result = score([path], study / "key.json")
    assert (result.participants, result.trials) == (1, 2)


def test_the_order_is_a_participant_s_own_and_always_the_same(page):
    def seen(participant):
        page.evaluate("localStorage.clear()")
        start(page, participant)
        first = shown(page)
        press(page, "12", "Enter", "12", "Enter")
        assert page.locator("#progress").inner_text() == "3 of 4"
        return [*first, *shown(page)]

    orders = {participant: seen(participant) for participant in map(str, range(8))}
    assert seen("3") == orders["3"]
    assert len({tuple(order) for order in orders.values()}) >= 6  # of 72 that there are
    assert {order[0] for order in orders.values()} == {f"“{NASTY}”", "“a red car”"}


def test_a_text_with_markup_is_shown_as_it_is_and_does_nothing(page, window):
    for participant in ("x", "y", "z", "<b>w</b>"):
        start(page, participant)
        press(page, "12", "Enter", "12", "Enter")
        assert page.locator("#prompt").inner_text() in (f"“{NASTY}”", "“a red car”")
    page.locator("#stop").click()
    assert json.loads(page.locator("#text").input_value())["participant"] == "<b>w</b>"
    assert page.evaluate("window.hurt === undefined") and page.locator("b").count() == 0
    assert window.said == []


def test_answers_outlive_the_page(page):
    start(page, "later")
    press(page, "21", "Enter")
    before = shown(page)
    start(page, "later")
    assert page.locator("#progress").inner_text() == "2 of 4" and shown(page) == before
    start(page, "another")
    assert page.locator("#progress").inner_text() == "1 of 4"


def test_the_keys_are_the_pictures_from_the_first_one_on(page):
    """Not of the hidden input, which has them until the page is next drawn: Enter would begin again."""
    page.reload()
    page.locator("#participant").fill("quick")
    kept = page.evaluate("""() => {
        const input = document.getElementById("participant");
        input.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
        return document.activeElement === input;
    }""")
    assert page.locator("#progress").inner_text() == "1 of 4" and not kept


def test_the_page_cannot_send_anything(page, window):
    refused = page.evaluate(
        "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => `refused: ${error.message}`)"
    )
    assert refused.startswith("refused") and window.hosts == {""}
    assert any("Content Security Policy" in message for message in window.said)
