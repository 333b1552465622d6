"""Score finished runs, and pictures of any origin, by one protocol: fit to the prompt, distance to references, look.

All functions take settings and give numbers; `table.py` shows them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GuidanceParams
from dreammapping.evaluation import encoders
from dreammapping.evaluation.appearance import fine_detail, saturation
from dreammapping.evaluation.clip_score import are_retrieved, clip_scores
from dreammapping.evaluation.distances import distances
from dreammapping.evaluation.encoders import Encoder, ImageEncoder
from dreammapping.evaluation.pictures import Source, in_bytes
from dreammapping.evaluation.references import references
from dreammapping.evaluation.scorers import Scorer, load_scorer, score_by
from dreammapping.evaluation.statistics import interval
from guidance import models
from guidance.prior.score_model import ScoreModel
from toybox import world
from toybox.recognition import caption_pairs, parse_caption
from utils.errors import UserError
from utils.files import is_stream

_PRIOR_FIELDS = (
    "model_key", "base_model_key", "prediction_type", "vae_key", "LoRA_path", "textual_inversion_path", "fp16",
)  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """What is measured, and how.

    Attributes:
        encoders: CLIPs of the CLIP score and R-precision; none: `default_encoder`.
        features: whose features distances compare; None: the first encoder's.
        views: pictures of each source, drawn by `seed`; None: all.
        captions: what R-precision chooses from; none: for captions of the toybox all of its own, else no R-precision.
        references: pictures of each prompt that its prior draws for the distances; 0: no distances.
        against: pictures to compare with in the place of those.
        model: the prior that draws them; None: the run's own.
        cache: where they are kept.
        scorers: users' own, `module:callable`.
    """

    encoders: tuple[str, ...] = ()
    features: str | None = None
    views: int | None = None
    seed: int = 0
    captions: tuple[str, ...] = ()
    references: int = 0
    against: Path | None = None
    model: str | None = None
    cache: Path = Path("output") / "references"
    scorers: tuple[str, ...] = ()

    @property
    def has_distances(self) -> bool:
        return self.against is not None or self.references > 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        paths = {"against": None if self.against is None else str(self.against), "cache": str(self.cache)}
        return dataclasses.asdict(self) | paths


def default_encoder(prompts: Sequence[str]) -> str:
    """The toybox's CLIP where all prompts are captions of the toybox, else the published ViT-L/14."""
    return encoders.TOYBOX if all(parse_caption(prompt) for prompt in prompts) else "vit-l-14"


@dataclass(frozen=True, eq=False)
class Judges:
    """All that scores, loaded; `load` makes it."""

    protocol: Protocol
    clips: list[Encoder]
    features: ImageEncoder | None
    scorers: dict[str, Scorer]

    @classmethod
    def load(cls, protocol: Protocol, sources: Sequence[Source]) -> "Judges":
        """Load what a protocol needs for these sources; what is missing is named all at once, and before any loading.

        Raises:
            UserError: an encoder, a prior or a scorer is missing or broken.
        """
        names = protocol.encoders or (default_encoder([source.prompt for source in sources]),)
        features = (protocol.features or names[0]) if protocol.has_distances else None
        problems = encoders.missing([*names, *([features] if features else [])])
        if protocol.references > 0 and protocol.against is None:
            for source in sources:
                problems += _missing_prior(source, protocol)
        if protocol.against is not None:
            try:
                Source.open(protocol.against, "")
            except UserError as error:
                problems.append(str(error))
        scorers = {}
        for name in protocol.scorers:
            try:
                scorers[name] = load_scorer(name)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(dict.fromkeys(problems)))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        clips = {name: encoders.load_encoder(name, device) for name in names}
        loaded = None if features is None else clips.get(features)
        if features is not None and loaded is None:
            loaded = encoders.load_image_encoder(features, device)
        return cls(protocol, list(clips.values()), loaded, scorers)

    @functools.cached_property
    def against(self) -> Float[Tensor, "M D"] | None:
        """Features of the pictures that all are compared with, None where each has references of its own."""
        if self.protocol.against is None or self.features is None:
            return None
        folder = Source.open(self.protocol.against, "")
        return self.features.embed_images(folder.pictures())


def evaluate(sources: Sequence[Source], protocol: Protocol, *, pool: bool = False) -> list[dict[str, Any]]:
    """A row of numbers for each source, or one row for all: a system's results on many prompts and seeds.

    Raises:
        UserError: something is missing, or a picture cannot be read.
    """
    judges = Judges.load(protocol, sources)
    parts = [measure(source, judges) for source in sources]
    return [pooled(parts)] if pool else [_finished(part) for part in parts]


def measure(source: Source, judges: Judges) -> dict[str, Any]:
    """All scores of one source, as JSON values but for `features`, which hold the vectors that distances are made of.

    Keys: `source`, `prompt`, `seed`, `pictures`; `clip`, by encoder: `score`, `scores` by view, and `r_precision` with
    `captions`, their number; `saturation`; of a toybox run also `true_saturation` and `fine_detail` in decibels;
    `scorers`; `cost`.
    """
    protocol = judges.protocol
    images = source.pictures(protocol.views, protocol.seed)
    vectors = {clip.name: clip.embed_images(images) for clip in judges.clips}
    row: dict[str, Any] = {
        "source": str(source.folder),
        "prompt": source.prompt,
        "seed": source.seed,
        "pictures": len(images),
        "clip": {
            clip.name: _fit(vectors[clip.name], source.prompt, clip, protocol.captions)
            for clip in judges.clips
        },
        "saturation": saturation(images),
        **_beside_truth(source, images, protocol),
        "scorers": {
            name: score_by(name, scorer, images, source.prompt) for name, scorer in judges.scorers.items()
        },
        "cost": source.cost(),
    }
    if judges.features is not None:
        name, known = judges.features.name, judges.against
        seen = vectors[name] if name in vectors else judges.features.embed_images(images)
        drawn = known if known is not None else judges.features.embed_images(_references(source, protocol))
        row["features"] = (name, seen, drawn, known is not None)
    return row


def pooled(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row for all: means over prompts with their intervals, and distances over all pictures (3D-FID).

    Raises:
        UserError: there are fewer than two pictures or references.
    """
    first = parts[0]
    row: dict[str, Any] = {
        "source": ", ".join(part["source"] for part in parts),
        "prompts": list(dict.fromkeys(part["prompt"] for part in parts)),
        "pictures": sum(part["pictures"] for part in parts),
        "clip": {},
        "scorers": {
            name: _interval(parts, lambda part, name=name: part["scorers"][name]) for name in first["scorers"]
        },
        "cost": _total_cost([part["cost"] for part in parts]),
    }
    for name in first["clip"]:
        row["clip"][name] = {"score": _interval(parts, lambda part, name=name: part["clip"][name]["score"])}
        if all("r_precision" in part["clip"][name] for part in parts):
            row["clip"][name] |= {
                "r_precision": _interval(parts, lambda part, name=name: part["clip"][name]["r_precision"]),
                "captions": first["clip"][name]["captions"],
            }
    for key in ("saturation", "true_saturation", "fine_detail"):
        if all(isinstance(part.get(key), float) for part in parts):
            row[key] = _interval(parts, lambda part, key=key: part[key])
    if "features" in first:
        name, _, against, shared = first["features"]
        seen = torch.cat([part["features"][1] for part in parts])
        drawn = against if shared else _references_of(parts)
        row["distances"] = {"features": name, **distances(seen, drawn).as_dict()}
    row["parts"] = [_finished(part) for part in parts]
    return row


def _references_of(parts: Sequence[dict[str, Any]]) -> Float[Tensor, "M D"]:
    """Those of each prompt once, however many runs it has."""
    of_prompt = {part["prompt"]: part["features"][2] for part in parts}
    return torch.cat(list(of_prompt.values()))


def _finished(part: dict[str, Any]) -> dict[str, Any]:
    """A source's own row, with its distances in the place of the vectors."""
    row = {key: value for key, value in part.items() if key != "features"}
    if "features" in part:
        name, seen, drawn, _ = part["features"]
        row["distances"] = {"features": name, **distances(seen, drawn).as_dict()}
    return row


def _fit(vectors: Tensor, prompt: str, clip: Encoder, captions: Sequence[str]) -> dict[str, Any]:
    scores = clip_scores(vectors, prompt, clip)
    fit: dict[str, Any] = {"score": scores.mean().item(), "scores": scores.tolist()}
    choices = list(captions) or toybox_captions(prompt)
    if choices:
        found = are_retrieved(vectors, prompt, choices, clip)
        fit |= {"r_precision": found.double().mean().item(), "captions": len({*choices, prompt})}
    return fit


def toybox_captions(prompt: str) -> list[str]:
    """A caption of the toybox, and those of all its other (object, colour) pairs; empty for a prompt of other words."""
    own = parse_caption(prompt)
    if own is None:
        return []
    return [prompt, *(world.caption(*pair) for pair in caption_pairs() if pair != own)]


def _beside_truth(source: Source, images: Tensor, protocol: Protocol) -> dict[str, Any]:
    """How renders of a toybox run look beside the true object, seen by the same cameras."""
    if not source.is_rendered:
        return {}
    exhibit = source.exhibit(protocol.views, protocol.seed)
    if exhibit.pair is None:
        return {}
    true = in_bytes(exhibit.render_truth(images.shape[-1]))
    detail = fine_detail(images, true)
    return {
        "true_saturation": saturation(true),
        "fine_detail": detail if math.isfinite(detail) else None,
    }


def _prior_params(source: Source, protocol: Protocol) -> GuidanceParams:
    """What of a run's settings chooses its prior, or the model that was asked for."""
    if protocol.model is not None or source.params is None:
        return GuidanceParams(model_key=protocol.model)
    return GuidanceParams(**{name: getattr(source.params, name) for name in _PRIOR_FIELDS})


def _missing_prior(source: Source, protocol: Protocol) -> list[str]:
    if source.params is None and protocol.model is None:
        return [
            f"{source.folder}: expected a prior that draws references, got none; give --model or --against"
        ]
    return models.check_available(_prior_params(source, protocol))


def _references(source: Source, protocol: Protocol) -> Float[Tensor, "M 3 H W"]:
    prior = _load_prior(_prior_params(source, protocol))
    return references(prior, source.prompt, protocol.references, protocol.cache, seed=protocol.seed)


@functools.lru_cache(maxsize=1)
def _load_prior(params: GuidanceParams) -> ScoreModel:
    return ScoreModel.from_pretrained(params, "cuda" if torch.cuda.is_available() else "cpu")


def _interval(parts: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """Mean over prompts of one number of each run."""
    scores = {(part["prompt"], part["seed"], number): value(part) for number, part in enumerate(parts)}
    return dataclasses.asdict(interval(scores))


def _total_cost(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of seconds and evaluations, and the highest peak of memory, of the runs that tell them."""
    seconds = [cost["seconds"] for cost in costs if cost.get("seconds") is not None]
    peaks = [cost["peak_memory_bytes"] for cost in costs if cost.get("peak_memory_bytes")]
    counted = [cost["score_model_evaluations"] for cost in costs if cost.get("score_model_evaluations")]
    total: dict[str, Any] = {}
    if seconds:
        total["seconds"] = math.fsum(seconds) / len(seconds)
    if peaks:
        total["peak_memory_bytes"] = max(peaks)
    if counted:
        total["score_model_evaluations"] = {
            key: round(math.fsum(each.get(key, 0) for each in counted) / len(counted))
            for key in ("forward", "backward", "pretraining")  # earlier runs have not the last
        }
    return total


def read_captions(path: Path) -> tuple[str, ...]:
    """The lines of a file, without empty ones.

    Raises:
        UserError: it cannot be read, or has no line.
    """
    if is_stream(path):
        raise UserError(f"--captions: expected a text file, got a pipe or device, {path}; correct the path")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--captions: expected a text file, got {path} ({error}); correct the path"
        ) from error
    captions = tuple(line for line in lines if line)
    if not captions:
        raise UserError(f"--captions: expected a caption a line, got none in {path}; write some")
    return captions
