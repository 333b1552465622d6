"""No command that does not exist: what the documents tell a reader to type is what the programs understand."""

import re
import shlex
import subprocess
import sys
from functools import cache

import pytest

from arguments import load
from utils.errors import UserError
from utils.repository import QUICKSTART, ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
STARTS = ("python ", "torchrun ", "make ", "reproduce ", "sweep ")
TAKE_SETTINGS = ("sweep", "reproduce", "benchmarks")
"""Programs whose words with `=` are settings; those of `study` are names of systems."""


def commands(text: str) -> list[str]:
    """Lines of code blocks and pieces of code in a text that call `python`, `torchrun`, `make`, or a verb alone."""
    parts = re.split(r"^ *```.*$", text, flags=re.MULTILINE)  # prose and blocks, one after the other
    lines = [line.strip() for block in parts[1::2] for line in block.splitlines()]
    pieces = [piece for prose in parts[::2] for piece in re.findall(r"`([^`]+)`", prose)]
    found = [" ".join(each.split()) for each in (*lines, *pieces) if each.startswith(STARTS)]
    return list(dict.fromkeys(found))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def help_of(*words: str) -> str:
    """What a verb says of itself."""
    shown = subprocess.run(
        [sys.executable, "-m", *words, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return shown.stdout


def source_of(module: str) -> str:
    """The code of a module that is run by its name; its help would load torch first."""
    path = ROOT.joinpath(*module.split("."))
    return (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def wrong(command: str) -> list[str]:
    """Everything in a command that nothing understands."""
    words = [word for word in shlex.split(command, comments=True) if word != "..."]
    if words[0] in ("reproduce", "sweep"):
        words = ["python", "-m", "dreammapping", *words]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if "=" not in word]
        return [word for word in targets if not re.search(rf"^{word}:", makefile, re.MULTILINE)]
    if "train.py" in words:
        return _wrong_settings(words[words.index("train.py") + 1 :])
    if words[1] != "-m":
        return [] if (ROOT / words[1]).is_file() else [words[1]]
    module, *rest = words[2:]
    if module == "pytest":
        paths = [word for word in rest if word.startswith(("tests/", "submodules/")) and "..." not in word]
        return [path for path in paths if not (ROOT / path).exists()]
    unknown: list[str] = []
    if module == "dreammapping":
        verb = rest.pop(0)
        shown = help_of(module, verb, *(rest[:1] if verb == "study" and rest else ()))
        if verb == "reproduce" and rest and not re.search(rf"^  {rest[0]} ", shown, re.MULTILINE):
            unknown.append(rest[0])
    else:
        verb, shown = module, source_of(module)
    options = [word.split("=")[0] for word in rest if word.startswith("--")]
    unknown += [word for word in options if not re.search(rf"(?<![\w-]){word}(?![\w-])", shown)]
    if verb.startswith(TAKE_SETTINGS):
        settings = (word for word in rest if "=" in word and not word.startswith("--"))
        unknown += _wrong_settings(
            ["--opt", str(QUICKSTART), *(re.sub(r"=\[([^,\]]*).*\]$", r"=\1", word) for word in settings)]
        )
    return unknown


def _wrong_settings(words: list[str]) -> list[str]:
    if "--help" in words or any("<" in word for word in words):  # a place that only a reader has
        return []
    try:
        load(words)
    except UserError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_gives_commands_that_exist(page):
    found = commands(page.read_text(encoding="utf-8"))
    assert {command: wrong(command) for command in found if wrong(command)} == {}


def test_the_front_page_has_its_commands_found():
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    for start in (
        "make demo",
        "python train.py --opt configs/cat.yaml",
        "python -m dreammapping sweep --prompts",
    ):
        assert any(command.startswith(start) for command in found), start


@pytest.mark.parametrize(
    "command",
    [
        "make dmeo",
        "python train.py --opt configs/quickstart.yaml itterations=3",
        "python train.py --opt configs/dog.yaml",
        "torchrun --nproc-per-node 4 train.py --optt configs/cat.yaml",
        "python -m dreammapping export output/quickstart --fromat glb",
        "python -m dreammapping reproduce fig99",
        "reproduce table5",
        "python -m dreammapping study score study/answers_*.json --wiews 3",
        "python -m dreammapping sweep --prompts prompts.txt guidence_scale=[5,7.5]",
        "python -m benchmarks.full_size --estimte",
        "python -m benchmarks.full_size C_batch_sice=1",
        "python -m toybox --promts",
        "python -m pytest tests/test_nothing.py",
    ],
)
def test_a_slip_in_a_command_is_found(command):
    assert wrong(command) != []
