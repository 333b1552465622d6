"""Which prompts the toybox knows, what is near to others, and that a run says so once."""

import logging

import pytest

from arguments import GuidanceParams
from dreammapping.known_prompts import warn_of_unknown_prompt
from toybox.__main__ import main
from toybox.captions import known_prompts, nearest_captions
from toybox.world import COLOURS, HELD_OUT, OBJECTS, VIEWS, caption


def test_every_caption_is_known_with_and_without_a_view():
    for name in OBJECTS:
        for colour in COLOURS:
            assert nearest_captions(caption(name, colour)) is None
    for view in VIEWS:
        assert nearest_captions(caption("car", "orange", view)) is None


@pytest.mark.parametrize("prompt", ["A Red Car", "red car", " a  red\tcar ", "an red car", "a red car."])
def test_case_article_and_spaces_do_not_matter(prompt):
    assert nearest_captions(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("a photo of a blue teapot, 8k", ["a blue teapot"]),
        ("a gray bunny rabbit", ["a grey rabbit"]),
        ("two green ducks", ["a green duck"]),
        ("an orange", ["an orange"]),
        ("a cat", ["a red cat", "an orange cat", "a yellow cat"]),
    ],
)
def test_what_a_prompt_names_stays(prompt, near):
    found = nearest_captions(prompt)
    assert (
        found[: len(near)] == near
        if prompt != "an orange"
        else all(each.startswith("an orange ") for each in found)
    )


@pytest.mark.parametrize("prompt", ["a fox", "", "???", "a DSLR photo of a hamburger", "狐", "a " * 1000])
def test_what_is_near_to_any_prompt_is_known(prompt):
    near = nearest_captions(prompt)
    assert len(near) == 3
    assert [nearest_captions(each) for each in near] == [None, None, None]


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"model_key": "toybox", "text": "a fox"}, True),
        ({"model_key": "toybox", "text": "a red car"}, False),
        ({"model_key": "sd21-base", "text": "a fox"}, False),
        ({"model_key": "toybox", "text": "a fox", "textual_inversion_path": "fox.safetensors"}, False),
    ],
)
def test_a_run_warns_once_of_a_prompt_that_the_toybox_cannot_know(caplog, settings, warned):
    with caplog.at_level(logging.WARNING):
        warn_of_unknown_prompt(GuidanceParams(**settings))
    assert len(caplog.records) == warned
    assert not warned or all(
        each in caplog.text for each in ("'a fox'", "a COLOUR OBJECT", *nearest_captions("a fox"))
    )


def test_the_list_of_prompts_names_every_word_and_every_pair_that_was_left_out(capsys):
    assert main(["--prompts"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text == " ".join(known_prompts().split())
    assert f"knows {len(OBJECTS) * len(COLOURS)} prompts" in text
    assert f"colours: {', '.join(COLOURS)} objects: {', '.join(OBJECTS)} " in text
    assert all(caption(*pair) in text for pair in HELD_OUT)


def test_without_a_word_the_toybox_says_how_it_is_asked(capsys):
    assert main([]) == 0
    assert "--prompts" in capsys.readouterr().out
