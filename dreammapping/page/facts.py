"""What is said of a run, in words: numbers as a person writes them, and what is missing or broken left out."""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from arguments import Config
from arguments.config import settings, value_of
from dreammapping.finished import FinishedRun
from dreammapping.page.document import picture_uri
from utils.errors import UserError

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class Fact(NamedTuple):
    """A fact in words (none where it is not known), and what it is sorted by."""

    name: str
    text: str
    key: str | float | None


PROVENANCE = (
    "prior", "shape_model", "versions", "platform", "cpus", "device", "precision", "memory_plan", "preset",
)  # fmt: skip
"""Of a manifest: what an asset comes from."""


LARGEST = 1e300
"""Of a number that is shown: the difference of two is one as well."""


def title_of(run: FinishedRun) -> str:
    """The prompt, or the folder's name where there is none."""
    return run.prompt.strip() or run.folder.resolve().name


def facts_of(run: FinishedRun, manifest: dict[str, Any]) -> list[Fact]:
    """What is said of every run in a few words each: its method, size, time."""
    method, seconds = run.config.GuidanceParams.guidance_method, number_in(manifest, "seconds")
    sizes = {"iterations": number_in(manifest, "iterations"), "Gaussians": number_in(manifest, "gaussians")}
    return [
        Fact("method", method, method),
        *(Fact(name, "" if size is None else said(size), size) for name, size in sizes.items()),
        Fact("time", "" if seconds is None else duration(seconds), seconds),
        Fact("seed", str(run.config.seed), run.config.seed),
    ]


def front_of(run: FinishedRun) -> str | None:
    """The newest view from the front, or the picture that was made, as a data URI; None where there is neither."""
    if run.config.ModelParams.representation == "image":
        return picture_uri(run.folder / "picture.png")
    views = run.test_views()
    return picture_uri(views[0][0]) if views else None


def number_in(manifest: dict[str, Any], name: str) -> int | float | None:
    """A number of a manifest or of a line of metrics; None where there is none, or something else."""
    value = manifest.get(name)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return value if usable else None


def metrics_of(run: FinishedRun) -> list[dict[str, Any]]:
    """The lines of a run's metrics that have a step; none, with a warning, where they are missing or broken."""
    lines: list[Any] = read_or_none(lambda: run.metrics) or []
    return [line for line in lines if isinstance(line, dict) and number_in(line, "step") is not None]


def changed_settings(config: Config) -> list[tuple[str, str, str, str]]:
    """Name, value, default and meaning of the settings that are not as they are by default."""
    plain = Config()
    pairs = {name: (value_of(config, name), value_of(plain, name)) for name in settings()}
    return [
        (name, said(value), said(default), settings()[name].metadata["option"].help)
        for name, (value, default) in pairs.items()
        if value != default
    ]


def duration(seconds: float) -> str:
    """As a person says it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def provenance_of(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Models, versions and cost as `run.json` has them, one fact a row."""
    rows: list[tuple[str, str]] = []

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}: {key}" if name else key, inner)
        elif value is not None:
            rows.append((name, said(value)))

    add("", {name: manifest.get(name) for name in PROVENANCE})
    add("score model evaluations", manifest.get("score_model_evaluations"))
    peak = number_in(manifest, "peak_memory_bytes")
    if peak is not None:
        rows.append(("peak memory", f"{peak / 2**30:.2f} GiB"))
    return rows


def said(value: Any) -> str:
    """A value as a settings file has it, whole numbers with their thousands apart."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple | list):
        return ", ".join(said(item) for item in value)
    return repr(value) if isinstance(value, float) else str(value)


def read_or_none(read: Callable[[], Found]) -> Found | None:
    """What is read of a run; None, with a warning, where it is missing or broken, and the page does without it."""
    try:
        return read()
    except UserError as error:
        log.warning(
            "%s (the page does without it)", str(error)
        )  # an error kept with its frames keeps the run
        return None
