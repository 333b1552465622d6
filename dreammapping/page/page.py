"""A run as one page: `index.html`, self-contained, that a browser opens from the disk without a network."""

import base64
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from dreammapping.finished import FinishedRun
from dreammapping.page.document import data_uri, link, picture_uri, refuse_to_replace, render, write
from dreammapping.page.facts import (
    changed_settings,
    facts_of,
    front_of,
    metrics_of,
    number_in,
    provenance_of,
    read_or_none,
    said,
    title_of,
)
from dreammapping.page.plots import curve, heat_map, number
from dreammapping.page.splats import Splats, pack
from utils.aside import KEPT

NAME = "index.html"
MOST_VIDEO_BYTES = 16_000_000
"""A larger video is linked, not embedded."""
VIDEOS = {
    "turntable": "one turn",
    "depth": "one turn, depth",
    "process": "from the first iteration to the last",
}
DOWNLOADS = (".ply", ".splat", ".spz", ".sog", ".glb", ".obj", ".usd", ".usda", ".usdc", ".usdz", ".png")
"""Of a run's files, what somebody takes along."""
RECORDS = (".yaml", ".json", ".jsonl")
ERROR_BY_T = re.compile(r"operator_error/t(\d+)-(\d+)")
"""Of the operator M within a range of t, in a run's metrics."""


def write_page(run: FinishedRun, target: Path | None = None) -> Path:
    """Write the page of a run, finished or not: what there is of it.

    Args:
        target: the file; default: `index.html` in the run's folder. Links lead from there to the run's files.

    Raises:
        UserError: `target` cannot be written, or is somebody's own page.
    """
    target = target or run.folder / NAME
    refuse_to_replace(target)
    write(target, page_of(run, target.parent))
    return target


def page_of(run: FinishedRun, place: Path) -> str:
    """The page as HTML, for a file in `place`."""
    manifest, metrics = read_or_none(lambda: run.manifest) or {}, metrics_of(run)
    splats, of_gaussians = None, run.config.ModelParams.representation == "gaussians"
    if of_gaussians:
        splats = read_or_none(
            lambda: pack(run.gaussians(), direct_rgb=run.config.PipelineParams.convert_SHs_python)
        )
    return render(
        "run.html",
        ("splats.js", "run.js"),
        title=title_of(run),
        facts=[(name, text) for name, text, _ in facts_of(run, manifest) if text] + _made_with(run, manifest),
        finished=bool(manifest.get("finished")),
        done=number_in(manifest, "iterations") or 0,
        asked=run.config.iterations,
        viewer=viewer_of(run, splats) if splats else None,
        picture=None if of_gaussians else front_of(run),
        videos=_videos(run, place),
        views=_views(run),
        curves=_curves(metrics),
        map=_error_map(metrics),
        settings=changed_settings(run.config),
        provenance=provenance_of(manifest),
        files=_files(run.folder, place),
    )


def _made_with(run: FinishedRun, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    found = {"prior": run.config.GuidanceParams.model_key, "device": manifest.get("device")}
    return [(name, said(value)) for name, value in found.items() if value is not None]


def viewer_of(run: FinishedRun, splats: Splats) -> dict[str, Any]:
    """What `templates/splats.js` draws: numbers alone, and the Gaussians in base64."""
    cameras = run.config.GenerateCamParams
    about = {
        "count": splats.count,
        "texels": splats.texels,
        "degree": splats.degree,
        "width": cameras.image_w,
        "height": cameras.image_h,
        "fov": cameras.default_fovy,
        "radius": cameras.default_radius,
        "polar": cameras.default_polar,
        "background": float(run.config.ModelParams.white_background),
    }
    return {
        "about": json.dumps(about),
        "data": base64.b64encode(splats.data).decode(),
        "count": splats.count,
        "total": splats.total,
        "size": (cameras.image_w, cameras.image_h),
    }


def _views(run: FinishedRun) -> list[dict[str, Any]]:
    """Test views: colour, depth, and from where they are seen."""
    views, found = run.test_views(), []
    cameras = read_or_none(run.cameras) if views else None
    for index, (image, depth) in enumerate(views):
        seen = f"view {index}"
        if cameras is not None and index < len(cameras):
            azimuth, above = float(cameras.azimuth_deg[index]), 90.0 - float(cameras.polar_deg[index])
            seen = f"{azimuth:.0f}° around" + (f", {above:.0f}° above" if round(above) else "")
        found.append({"seen": seen, "image": picture_uri(image), "depth": picture_uri(depth)})
    return [view for view in found if view["image"] and view["depth"]]


def _videos(run: FinishedRun, place: Path) -> list[dict[str, str]]:
    """Each video: what it shows, and where it is, embedded or linked."""
    found = []
    for name, path in run.videos().items():
        try:
            size = path.stat().st_size
        except OSError:  # of a run that goes on: gone by now
            continue
        source = data_uri(path, "video/mp4") if size <= MOST_VIDEO_BYTES else link(path, place)
        if source and size:
            found.append({"about": VIDEOS[name], "source": source})
    return found


def _curves(metrics: list[dict[str, Any]]) -> list[Any]:
    """Losses, the number of Gaussians, and seconds for an iteration."""
    names = list(dict.fromkeys(name for line in metrics for name in line))
    titles = {name: f"loss: {name.removeprefix('loss/')}" for name in names if name.startswith("loss/")}
    titles |= {"gaussians": "Gaussians", "seconds_per_iteration": "seconds for an iteration"}
    steps = [line["step"] for line in metrics]
    drawn = (
        curve(title, steps, [number_in(line, name) for line in metrics], noisy=name != "gaussians")
        for name, title in titles.items()
        if name in names
    )
    return [each for each in drawn if each is not None]


def _error_map(metrics: list[dict[str, Any]]) -> Any:
    """M's error over the iterations, by range of t."""
    found = {name: ERROR_BY_T.fullmatch(name) for line in metrics for name in line}
    ranges = sorted((int(match[1]), int(match[2]), name) for name, match in found.items() if match)
    rows = {f"{low}–{high}": [number_in(line, name) for line in metrics] for low, high, name in ranges}
    steps = [line["step"] for line in metrics]
    return heat_map("error of the operator M by range of t", steps, rows) if rows else None


def _files(folder: Path, place: Path) -> list[tuple[str, str, str]]:
    """Link, name and size of what there is to take along: the assets, whatever was exported, the records."""
    skipped = ("checkpoints", "test_six_views", "train_process", "process_videos", "videos", KEPT)
    found = []
    for above, folders, files in os.walk(folder):
        top = Path(above) == folder
        folders[:] = [name for name in folders if name[0] != "." and not (top and name in skipped)]
        suffixes = (*DOWNLOADS, *RECORDS) if top else DOWNLOADS
        found += [Path(above, name) for name in files if name[0] != "." and Path(name).suffix in suffixes]
    listed = []
    for path in sorted(found):
        with suppress(OSError):  # of a run that goes on: gone by now
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                listed.append((link(path, place), name, _size(path.stat().st_size)))
    return listed


def _size(count: int) -> str:
    return f"{number(count / 1e6)} MB" if count >= 1e6 else f"{number(max(count / 1e3, 0.1))} kB"
