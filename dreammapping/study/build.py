"""A user study as one page: pictures of several systems side by side, without their names, to be put in order.

The page needs no network and sends nothing; a participant's answers are a file. `key.json` beside it says which
picture is whose, and stays with who asks.
"""

import base64
import hashlib
import io
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from dreammapping.evaluation.pictures import Source
from utils.errors import UserError
from utils.files import write_text
from utils.images import grid, to_uint8
from utils.inputs import regular_file
from utils.own_files import making_all

QUESTIONS = {
    "alignment": "Which fits the text best?",
    "quality": "Which looks best, whatever the text?",
}
"""What Table 4 asks: the agreement with the text, and the quality of the picture."""
PAGE, KEY = "index.html", "key.json"
MOST_SYSTEMS = 9
"""That can be put in order with the keys 1 to 9."""
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Entry:
    """What one system made of one prompt."""

    system: str
    source: Source


@dataclass(frozen=True)
class Study:
    """A page, and the key to it.

    Attributes:
        page: HTML, self-contained.
        key: study, seed, questions, and for each trial its prompt and `items`: whose picture each is.
    """

    page: str
    key: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write `index.html` and `key.json`.

        Raises:
            UserError: they cannot be written, or the folder has another study's key, or somebody else's files.
        """
        with making_all(folder, (PAGE, KEY)) as new:  # a page is worth nothing without its key
            if (other := _study_of(folder / KEY)) not in (None, self.key["study"]):
                raise UserError(
                    f"{folder}: expected no study, or this one, found {other}, whose answers mean nothing without its "
                    f"{KEY}; choose another --output"
                )
            write_text(new / PAGE, self.page)
            write_text(new / KEY, json.dumps(self.key, indent=2, ensure_ascii=False) + "\n")


def _study_of(key: Path) -> str | None:
    """Which study a key is of; None where there is none that can be read."""
    try:
        return str(json.loads(regular_file(key).read_text(encoding="utf-8"))["study"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def build(entries: Sequence[Entry], *, seed: int = 0, views: int = 4, size: int = 256) -> Study:
    """The study of all prompts and seeds that two or more systems have.

    Args:
        seed: of the order in which each participant sees them, and of the names of pictures.
        views: of each asset, evenly around from the front, in rows of two.
        size: pixels of a view.

    Raises:
        UserError: a prompt has one system alone, a system twice, or more than `MOST_SYSTEMS`.
    """
    rng = random.Random(seed)
    trials, shown = {}, []
    for (prompt, run_seed), group in _groups(entries).items():
        trial = f"{rng.getrandbits(48):012x}"
        named = {f"{rng.getrandbits(48):012x}": entry for entry in group}
        pictures = {name: _picture(entry.source.around(views), size) for name, entry in named.items()}
        trials[trial] = {
            "prompt": prompt,
            "seed": run_seed,
            "items": {name: entry.system for name, entry in named.items()},
            # a folder's name may hold what is no letter
            "sources": {
                name: str(entry.source.folder).encode(errors="replace").decode()
                for name, entry in named.items()
            },
        }
        # sorted by names that were drawn: the page's own order tells nothing either
        items = [{"id": name, "image": pictures[name]} for name in sorted(pictures)]
        shown.append({"id": trial, "prompt": prompt, "items": items})
    shown.sort(key=lambda trial: trial["id"])
    identity = hashlib.sha256(json.dumps([seed, shown]).encode()).hexdigest()[:16]
    questions = [{"id": name, "text": text} for name, text in QUESTIONS.items()]
    data = {"id": identity, "seed": seed, "questions": questions, "trials": shown}
    return Study(_page(data), {"study": identity, "seed": seed, "questions": QUESTIONS, "trials": trials})


def _groups(entries: Sequence[Entry]) -> dict[tuple[str, int], list[Entry]]:
    """What is compared: the same prompt and seed by several systems."""
    groups: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.source.prompt, entry.source.seed].append(entry)
    if not groups:
        raise UserError("study: expected runs of at least two systems, got none; name some")
    for (prompt, seed), group in groups.items():
        systems = [entry.system for entry in group]
        where = f"study: prompt {prompt!r}, seed {seed}"
        if len(systems) < 2:
            raise UserError(
                f"{where}: expected at least two systems, got {systems[0]} alone; add a run of another, or leave it out"
            )
        if twice := [system for system in systems if systems.count(system) > 1]:
            raise UserError(
                f"{where}: expected {twice[0]} once, got it {systems.count(twice[0])} times; rename one by NAME=RUN"
            )
        if len(systems) > MOST_SYSTEMS:
            raise UserError(
                f"{where}: expected at most {MOST_SYSTEMS} systems, got {len(systems)}; leave some out"
            )
    return groups


def _picture(images: Float[Tensor, "V 3 H W"], size: int) -> str:
    """Views in rows of two, as a JPEG in a data address."""
    from PIL import Image

    height = max(1, round(size * images.shape[2] / images.shape[3]))
    small = F.interpolate(images, (height, size), mode="bilinear", antialias=True)
    rows = list(small.split(2)) if len(small) > 1 else [small]
    stream = io.BytesIO()
    Image.fromarray(to_uint8(grid(rows))[0]).save(stream, "JPEG", quality=92)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _page(data: dict[str, Any]) -> str:
    """The page with its style, script and data. No script but this one runs in it, whatever the prompts say."""
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        STYLE=style,
        STYLE_HASH=_hash(style),
        SCRIPT=script,
        SCRIPT_HASH=_hash(script),
        DATA=json.dumps(data).replace("<", "\\u003c"),  # so that no text ends the element, nor begins another
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
