"""The folder of one run: who owns it, its metrics, its manifest.

Layout (upstream's, so that scripts made for it keep working): `config.yaml`, `cfg_args`, `cameras.json`,
`init_points3d.ply`, `train_process/`, `test_six_views/`, `videos/`, `process_videos/`, `point_cloud/`;
and ours: `metrics.jsonl` (a line for each logged step), `run.json` (the manifest), `checkpoints/`.
"""

import json
import os
import platform
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import yaml

from utils.checkpoint import checkpoints
from utils.errors import UserError
from utils.files import atomic

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "diff_gaussian_rasterization", "simple_knn")


class Run:
    """An opened run folder.

    Args:
        folder: where the run is kept; made if it does not exist.
        settings: the resolved settings as YAML text, written to `config.yaml`.
        resume: go on with the run that the folder holds.
        force: throw away the run that the folder holds.

    Raises:
        UserError: the folder holds another run, holds none to resume, or cannot be written.
    """

    def __init__(self, folder: Path, settings: str, *, resume: bool = False, force: bool = False) -> None:
        self.folder = folder
        self.started = time.time()
        self.manifest: dict[str, Any] = {}
        self._claim(settings, resume, force)

    def _claim(self, settings: str, resume: bool, force: bool) -> None:
        folder, config = self.folder, self.folder / "config.yaml"
        if folder.exists() and not folder.is_dir():
            raise UserError(
                f"{folder}: expected a folder for the run, found a file; choose another workspace"
            )
        if resume and not checkpoints(folder / "checkpoints"):
            raise UserError(f"{folder}: there is no checkpoint to resume from; start without --resume")
        if config.exists() and not resume:
            if not force:
                raise UserError(
                    f"{folder}: holds another run; --resume goes on with it, --force replaces it, "
                    "workspace=NAME starts beside it"
                )
            shutil.rmtree(folder)
        if folder.exists() and not resume and not config.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty and holds no run of ours; choose another workspace")
        if resume and (folder / "run.json").exists():
            self.manifest = json.loads((folder / "run.json").read_text())
        self.changed_settings = (
            _differences(config.read_text(), settings) if resume and config.exists() else []
        )
        self.write_text("config.yaml", settings)

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    def write_text(self, name: str, text: str) -> None:
        """Write a small text file, whole or not at all."""
        with atomic(self.path(name)) as temporary:
            temporary.write_text(text)

    def log(self, values: dict[str, Any]) -> None:
        """Append one line to `metrics.jsonl`."""
        try:
            with self.path("metrics.jsonl").open("a") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise UserError(f"{self.path('metrics.jsonl')}: cannot be written ({error.strerror})") from error

    def rewind_metrics(self, step: int) -> None:
        """Forget the metrics of later steps than `step`: a resumed run writes them again."""
        path = self.path("metrics.jsonl")
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            self.write_text("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def write_manifest(self, **values: Any) -> None:
        """Update `run.json`: versions, machine, wall time over all sessions, peak memory, and `values`."""
        seconds = self.manifest.get("seconds", 0.0) + time.time() - self.started
        self.started = time.time()
        self.manifest |= {
            "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "seconds": round(seconds, 2),
            "peak_memory_bytes": max(peak_memory(), self.manifest.get("peak_memory_bytes", 0)),
            **values,
        }
        self.write_text("run.json", json.dumps(self.manifest, indent=2) + "\n")


def peak_memory() -> int:
    """Peak resident memory of this process, bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _differences(old: str, new: str) -> list[str]:
    before, after = (_leaves(yaml.safe_load(text)) for text in (old, new))
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
