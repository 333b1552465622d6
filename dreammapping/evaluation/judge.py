"""Judge a finished asset by the toybox's CLIP: `python -m dreammapping judge output/quickstart`.

Views all around the object are compared with captions. Three rows make a range: the asset, renders of the
true object with the same cameras and background, and the untrained start of the run.
"""

import argparse
import dataclasses
import functools
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dreammapping.evaluation.exhibit import Exhibit, all_around, parse_caption
from toybox import world
from toybox.clip import Clip
from utils.errors import UserError
from utils.files import atomic
from utils.images import grid, write_picture

ROWS = {"asset": "this asset", "truth": "true object", "start": "untrained start"}
COLUMNS = {
    "similarity": "similarity",
    "r_precision": "R-precision",
    "object_accuracy": "object",
    "colour_accuracy": "colour",
    "view_accuracy": "view word",
}
SHEET_VIEWS, SHEET_SIZE = 8, 96


@dataclasses.dataclass(frozen=True)
class Scores:
    """Means over views; None where the prompt is no caption of the toybox."""

    similarity: float
    """100 times the cosine of image and prompt."""
    r_precision: float | None = None
    """Share of views whose nearest caption, of all (object, colour) captions, is the prompt's."""
    object_accuracy: float | None = None
    """Share of views whose nearest caption names the right object, whatever the colour."""
    colour_accuracy: float | None = None
    """Share of views whose nearest caption names the right colour, whatever the object."""
    view_accuracy: float | None = None
    """Share of views whose nearest view caption of the prompt is the camera's: low with faces all around."""


def judge(
    images: Float[Tensor, "V 3 H W"], prompt: str, azimuth_deg: Float[Tensor, "V"], clip: Clip
) -> Scores:
    """Score views of one asset; images in [0, 1] of any size, azimuths in degrees with 0 in front.

    Raises:
        UserError: the prompt is longer than CLIP's text tower reads.
    """
    vectors = clip.embed_images(images)
    pair = parse_caption(prompt)
    if pair is None:
        return Scores(similarity=100.0 * (vectors @ clip.embed_texts([prompt])[0]).mean().item())
    view_captions = clip.embed_texts([world.caption(*pair, view) for view in world.VIEWS])
    return score(vectors, _caption_vectors(clip), view_captions, pair, azimuth_deg)


def score(
    images: Float[Tensor, "V D"],
    captions: Float[Tensor, "P D"],
    view_captions: Float[Tensor, "W D"],
    pair: tuple[str, str],
    azimuth_deg: Float[Tensor, "V"],
) -> Scores:
    """Scores from unit vectors; `captions` run over `caption_pairs()`, `view_captions` over `world.VIEWS`."""
    pairs = caption_pairs()
    named = [pairs[index] for index in (images @ captions.T).argmax(1).tolist()]
    seen = [world.VIEWS[index] for index in (images @ view_captions.T).argmax(1).tolist()]
    true_views = [world.view_word(azimuth) for azimuth in azimuth_deg.tolist()]
    return Scores(
        similarity=100.0 * (images @ captions[pairs.index(pair)]).mean().item(),
        r_precision=_share(guess == pair for guess in named),
        object_accuracy=_share(guess[0] == pair[0] for guess in named),
        colour_accuracy=_share(guess[1] == pair[1] for guess in named),
        view_accuracy=_share(guess == truth for guess, truth in zip(seen, true_views, strict=True)),
    )


@functools.cache
def caption_pairs() -> list[tuple[str, str]]:
    """All (object, colour) pairs, objects varying slowest."""
    return [(name, colour) for name in world.OBJECTS for colour in world.COLOURS]


@functools.lru_cache(maxsize=1)
def _caption_vectors(clip: Clip) -> Float[Tensor, "P D"]:
    return clip.embed_texts([world.caption(*pair) for pair in caption_pairs()])


def _share(hits: Iterable[bool]) -> float:
    counted = list(hits)
    return sum(counted) / len(counted)


def judge_run(
    folder: Path,
    views: int = 24,
    prompt: str | None = None,
    iteration: int | None = None,
    clip: Clip | None = None,
) -> dict[str, Any]:
    """Judge what a run folder holds; also leaves `judge.json` and the contact sheet `judge_views.png` in it.

    Args:
        folder: a run folder with `config.yaml` and `point_cloud/iteration_*/point_cloud.ply`.
        views: how many views, evenly around, half on the horizon and half from 20 degrees above.
        prompt: judge by this instead of the run's own.
        iteration: which saved iteration; the last one if None.
        clip: a loaded judge, to judge many runs with one.

    Raises:
        UserError: the folder is no run, holds no such Gaussians, or the toybox's CLIP is missing.
    """
    exhibit = Exhibit.of_run(folder, all_around(views), prompt, iteration)
    clip = clip or Clip.from_pretrained(device=exhibit.device)
    asset = exhibit.asset()
    pictures = {"asset": exhibit.render(asset)}
    if exhibit.pair is not None:
        pictures["truth"] = exhibit.render_truth(clip.image_size)
    pictures["start"] = exhibit.render(exhibit.start())

    result: dict[str, Any] = {
        "run": str(folder),
        "iteration": exhibit.iteration,
        "prompt": exhibit.prompt,
        "held_out": None if exhibit.pair is None else exhibit.pair in world.HELD_OUT,
        "views": views,
        "background": exhibit.background.tolist(),
        "gaussians": len(asset),
    }
    for name, images in pictures.items():
        result[name] = dataclasses.asdict(judge(images, exhibit.prompt, exhibit.cameras.azimuth_deg, clip))
    with atomic(folder / "judge.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    _write_sheet(folder / "judge_views.png", pictures)
    return result


def _write_sheet(path: Path, pictures: dict[str, Tensor]) -> None:
    """Up to eight views around, in a row each: the asset, the true object where it is known, the start."""
    views = len(pictures["asset"])
    chosen = (
        [views * index // SHEET_VIEWS for index in range(SHEET_VIEWS)] if views > SHEET_VIEWS else slice(None)
    )
    size = (SHEET_SIZE, SHEET_SIZE)
    write_picture(
        path,
        grid([functional.interpolate(images[chosen], size, mode="area") for images in pictures.values()]),
    )


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    held_out = result["held_out"]
    known = "" if held_out is None else f" ({'held out of' if held_out else 'in'} the prior's training)"
    lines = [
        f"{result['run']}, iteration {result['iteration']}: {result['gaussians']} Gaussians, "
        f"{result['views']} views",
        f"prompt: {result['prompt']!r}{known}",
        "",
        " " * 16 + "".join(f"{title:>13}" for title in COLUMNS.values()),
    ]
    for name in (row for row in ROWS if row in result):
        cells = (_cell(column, result[name][column]) for column in COLUMNS)
        lines.append(f"{ROWS[name]:16}" + "".join(f"{cell:>13}" for cell in cells))
    if held_out is None:
        lines += [
            "",
            "The prompt is no caption of the toybox, such as 'a red car': only its similarity is known.",
        ]
    return "\n".join(lines)


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if column == "similarity" else f"{value:.2f}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dreammapping judge", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, such as output/quickstart")
    parser.add_argument("--views", type=int, default=24, help="views all around, at least 4 (default 24)")
    parser.add_argument("--prompt", help="judge by this prompt instead of the run's own")
    parser.add_argument("--iteration", type=int, help="saved iteration to judge (default: the last)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON; - for standard output")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        if options.views < 4:
            raise UserError(f"--views: expected at least 4, got {options.views}; 16 to 32 are usual")
        result = judge_run(options.run, options.views, options.prompt, options.iteration)
        text = json.dumps(result, indent=2)
        if options.json not in (None, "-"):
            with atomic(Path(options.json)) as temporary:
                temporary.write_text(text + "\n", encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write((text if options.json == "-" else table(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
