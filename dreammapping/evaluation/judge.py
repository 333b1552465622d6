"""Judge a finished asset by the toybox's CLIP: `python -m dreammapping judge output/quickstart`.

Views all around the object are compared with captions. Three rows make a range: the asset, renders of the
true object with the same cameras and background, and the untrained start of the run.
"""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arguments.check import check_text
from dreammapping.evaluation.exhibit import Exhibit, all_around
from scene.gaussian_model import GaussianModel
from scene.radiance_field import RadianceField
from toybox import world
from toybox.clip import Clip
from toybox.recognition import caption_pairs, parse_caption, recognise
from utils.contact_sheet import contact_sheet
from utils.errors import UserError
from utils.files import write_text
from utils.images import write_picture
from utils.inputs import regular_file
from utils.own_files import adopt, making_all

log = logging.getLogger(__name__)

ROWS = {"asset": "this asset", "truth": "true object", "start": "untrained start"}
COLUMNS = {
    "similarity": "similarity",
    "r_precision": "R-precision",
    "object_accuracy": "object",
    "colour_accuracy": "colour",
    "view_accuracy": "view word",
}
NUMBERS, SHEET = "judge.json", "judge_views.png"
"""What a run keeps of its scores."""
SHEET_VIEWS, SHEET_TILE = 8, 128
"""Views of a row of the contact sheet, and the width of each in pixels."""
_PNG = b"\x89PNG\r\n\x1a\n"


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
    images: Float[Tensor, "V 3 H W"], prompt: str, azimuth_deg: Float[Tensor, " V"], clip: Clip
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
    azimuth_deg: Float[Tensor, " V"],
) -> Scores:
    """Scores from unit vectors; `captions` run over `caption_pairs()`, `view_captions` over `world.VIEWS`."""
    seen = recognise(images, captions, view_captions[None])
    objects, colours = list(world.OBJECTS), list(world.COLOURS)
    right_object = seen.object == objects.index(pair[0])
    right_colour = seen.colour == colours.index(pair[1])
    words = [world.VIEWS.index(world.view_word(azimuth)) for azimuth in azimuth_deg.tolist()]
    return Scores(
        similarity=100.0 * (images @ captions[caption_pairs().index(pair)]).mean().item(),
        r_precision=_share(right_object & right_colour),
        object_accuracy=_share(right_object),
        colour_accuracy=_share(right_colour),
        view_accuracy=_share(seen.view == torch.tensor(words, device=seen.view.device)),
    )


@functools.lru_cache(maxsize=1)
def _caption_vectors(clip: Clip) -> Float[Tensor, "P D"]:
    return clip.embed_texts([world.caption(*pair) for pair in caption_pairs()])


def _share(right: Bool[Tensor, " V"]) -> float:
    return int(right.sum()) / len(right)


def judge_run(
    folder: Path,
    views: int = 24,
    prompt: str | None = None,
    iteration: int | None = None,
    clip: Clip | None = None,
) -> dict[str, Any]:
    """Judge what a run folder holds. Scores of its last iteration by its own prompt also stay in it, as `judge.json`
    and the contact sheet `judge_views.png`, where it can be written and nobody else's file has one of the names.

    Args:
        folder: a run folder with `config.yaml` and `point_cloud/iteration_*/point_cloud.ply`.
        views: how many views, evenly around, half on the horizon and half from 20 degrees above.
        prompt: judge by this instead of the run's own.
        iteration: which saved iteration; the last one if None.
        clip: a loaded judge, to judge many runs with one.

    Raises:
        UserError: the folder is no run, holds no such Gaussians, the prompt is no text, or the toybox's CLIP is
            missing.
    """
    if prompt is not None:
        check_text(prompt, "prompt")
    exhibit = Exhibit.of_run(folder, all_around(views), prompt, iteration)
    clip = clip or Clip.from_pretrained(device=exhibit.device)
    asset = exhibit.asset()
    pictures = {"asset": exhibit.render(asset)}
    if exhibit.pair is not None:
        pictures["truth"] = exhibit.render_truth(clip.image_size)
    pictures["start"] = exhibit.render(exhibit.run.start())

    result: dict[str, Any] = {
        "run": str(folder),
        "iteration": exhibit.iteration,
        "prompt": exhibit.prompt,
        "held_out": None if exhibit.pair is None else exhibit.pair in world.HELD_OUT,
        "views": views,
        "background": exhibit.background.tolist(),
        **_size(asset),
    }
    for name, images in pictures.items():
        result[name] = dataclasses.asdict(judge(images, exhibit.prompt, exhibit.cameras.azimuth_deg, clip))
    if (exhibit.iteration, exhibit.prompt) == (exhibit.run.iteration(), exhibit.run.prompt):
        try:
            _keep(folder, result, pictures, exhibit.cameras.azimuth_deg.tolist())
        except UserError as error:  # of a run that is somebody else's, say
            log.warning("%s; the scores are not kept there", error)
    return result


def _keep(
    folder: Path, result: dict[str, Any], pictures: dict[str, Tensor], azimuth_deg: list[float]
) -> None:
    if _is_ours(folder):
        adopt(folder, (NUMBERS, SHEET))
    with making_all(folder, (NUMBERS, SHEET), instead="read them from --json FILE") as new:
        write_text(new / NUMBERS, _text(result))
        _write_sheet(new / SHEET, pictures, azimuth_deg)


def _is_ours(folder: Path) -> bool:
    """Whether scores and a picture are there as an earlier version left them, which kept no record of them."""
    try:
        text = regular_file(folder / NUMBERS).read_text(encoding="utf-8")
        known = json.loads(text)
        with regular_file(folder / SHEET).open("rb") as file:
            picture = file.read(len(_PNG))
        return (
            text == _text(known) and {"run", "prompt", "views", "asset"} <= known.keys() and picture == _PNG
        )
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _text(result: Any) -> str:
    return json.dumps(result, indent=2) + "\n"


def _size(asset: GaussianModel | RadianceField) -> dict[str, int]:
    if isinstance(asset, GaussianModel):
        return {"gaussians": len(asset)}
    return {"parameters": sum(parameter.numel() for parameter in asset.parameters())}


def _size_of(result: dict[str, Any]) -> str:
    if "gaussians" in result:
        return f"{result['gaussians']} Gaussians"
    return f"a field of {result['parameters']} numbers"


def _write_sheet(path: Path, pictures: dict[str, Tensor], azimuth_deg: list[float]) -> None:
    """Up to eight views around, in a row each: the asset, the true object where it is known, the start."""
    views = len(azimuth_deg)
    chosen = sorted({views * index // SHEET_VIEWS for index in range(SHEET_VIEWS)})
    rows = [(ROWS[name], images[chosen]) for name, images in pictures.items()]
    captions = [world.view_word(azimuth_deg[index]) for index in chosen]
    write_picture(path, contact_sheet(rows, captions, tile=SHEET_TILE))


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    held_out = result["held_out"]
    known = "" if held_out is None else f" ({'held out of' if held_out else 'in'} the prior's training)"
    lines = [
        f"{result['run']}, iteration {result['iteration']}: {_size_of(result)}, {result['views']} views",
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
