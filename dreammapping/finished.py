"""A finished run, read: everything that a run folder holds is opened here and nowhere else."""

import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import Config, load
from scene.cameras import Cameras, wrap_degrees
from scene.field_file import iteration_of, read_field
from scene.frame import FRAME, to_file
from scene.gaussian_model import GaussianModel
from scene.initialization import initial_points
from scene.ply import read_gaussians, read_points
from scene.ply_header import read_header
from scene.radiance_field import RadianceField
from utils.errors import UserError
from utils.inputs import regular_file
from utils.paths import user_path

SETTINGS = "config.yaml"

FIELD = "field.safetensors"


@dataclass(frozen=True)
class Size:
    """How much a .ply of Gaussians holds, which is known before they are read."""

    count: int
    sh_degree: int
    bytes: int

    @property
    def memory(self) -> int:
        """Bytes that reading it takes, at most: the file's table, the places in float64, and the Gaussians."""
        return 5 * self.bytes


@dataclass(frozen=True)
class FinishedRun:
    """A run folder and its settings; `open` makes it. A run that was stopped early, or still goes on, is read alike.

    What can be missing (Gaussians, manifest, metrics, cameras) is looked for when it is asked for.
    """

    folder: Path
    config: Config

    @classmethod
    def open(cls, folder: Path) -> "FinishedRun":
        """Read a run's settings.

        Raises:
            UserError: the folder is no run, or its settings are broken.
        """
        user_path(str(folder), "run folder")  # can be one
        settings = folder / SETTINGS
        if not settings.is_file():
            raise UserError(f"{folder}: expected a run with its config.yaml, found none; name a run folder")
        config, _ = load(["--opt", str(settings)])
        return cls(folder, config)

    @property
    def prompt(self) -> str:
        return self.config.GuidanceParams.text

    @property
    def iterations(self) -> list[int]:
        """The iterations whose Gaussians were saved, in order; the last one that a field was saved after."""
        if self.config.is_field:
            path = self.folder / FIELD
            return [iteration_of(path)] if path.exists() else []
        names = (path.parent.name.removeprefix("iteration_") for path in self.folder.glob(_ply("*")))
        return sorted(int(name) for name in names if name.isdecimal())

    def iteration(self, wanted: int | None = None) -> int:
        """`wanted`, which must have been saved; the last saved one if None.

        Raises:
            UserError: nothing was saved, or not that.
        """
        saved = self.iterations
        kind = self.config.ModelParams.representation
        if not saved and kind == "image":
            raise UserError(
                f"{self.folder}: expected a run of Gaussians, got one of kind {kind}; name another"
            )
        if not saved:
            name = FIELD if self.config.is_field else _ply("*")
            raise UserError(f"{self.folder}: expected {name}, found none; let the run save first")
        if wanted is not None and wanted not in saved:
            known = ", ".join(map(str, saved))
            raise UserError(f"{self.folder}: expected iteration {known}, got {wanted}; choose a saved one")
        return saved[-1] if wanted is None else wanted

    def gaussians(self, iteration: int | None = None) -> GaussianModel:
        """The asset as a saved iteration left it, the last one if None; z up, front +y, on the CPU.

        Raises:
            UserError: that iteration was not saved, or its file is broken.
        """
        return read_gaussians(self._gaussians(iteration))

    def asset(self, iteration: int | None = None) -> GaussianModel | RadianceField:
        """What the run made, be it Gaussians or a field; as `gaussians`.

        Raises:
            UserError: that iteration was not saved, or its file is broken.
        """
        if not self.config.is_field:
            return self.gaussians(iteration)
        self.iteration(iteration)
        return read_field(self.folder / FIELD)

    def size(self, iteration: int | None = None) -> Size:
        """How many Gaussians a saved iteration has, the last one if None.

        Raises:
            UserError: that iteration was not saved, or its file is broken.
        """
        path = self._gaussians(iteration)
        vertices = [element for element in read_header(path).elements if element.name == "vertex"]
        bands = sum(name.startswith("f_rest_") for each in vertices for name in each.properties) // 3
        return Size(sum(each.count for each in vertices), math.isqrt(bands + 1) - 1, path.stat().st_size)

    def _gaussians(self, iteration: int | None) -> Path:
        kind, iteration = self.config.ModelParams.representation, self.iteration(iteration)
        if kind != "gaussians":
            raise UserError(
                f"{self.folder}: expected a run of Gaussians, got one of kind {kind}; name another, or make its mesh"
            )
        return self.folder / _ply(iteration)

    def start(self) -> GaussianModel | RadianceField:
        """What the run started from: Gaussians at its own points, or what its settings and seed make."""
        if self.config.is_field:
            from dreammapping.field import initial_field  # which renders, and not every reader does

            return initial_field(
                self.config, torch.Generator().manual_seed(self.config.seed), torch.device("cpu")
            )
        path = self.folder / "init_points3d.ply"
        if path.is_file():
            points, colors = read_points(path)
        else:
            rng = torch.Generator().manual_seed(self.config.seed)
            points, colors = initial_points(self.config.GenerateCamParams, rng)
        return GaussianModel.from_points(points, colors, self.config.ModelParams.sh_degree)

    def test_views(self) -> list[tuple[Path, Path]]:
        """The newest test views, colour and depth, in the order of `cameras`; none where none were written whole."""
        folders = self._by_step("test_six_views", "*_iteration")
        pairs = [
            (folder / f"render_view_{index}.png", folder / f"render_depth_{index}.png")
            for folder in folders[-1:]
            for index in range(len(list(folder.glob("render_view_*.png"))))
        ]
        return pairs if all(path.is_file() for pair in pairs for path in pair) else []

    def videos(self) -> dict[str, Path]:
        """The newest videos that are there: `turntable`, `depth`, and `process`, of the asset as it forms."""
        newest = self._by_step("videos", "*_iteration")[-1:]
        found = {
            name: path
            for folder in newest
            for name, part in (("turntable", "rgb"), ("depth", "depth"))
            for path in folder.glob(f"video_{part}_*.mp4")
        }
        process = self.folder / "process_videos" / "video_rgb.mp4"
        return found | ({"process": process} if process.is_file() else {})

    def _by_step(self, *pattern: str) -> list[Path]:
        """Folders named by an iteration, in order."""
        found = self.folder.glob("/".join(pattern))
        named = ((path.name.partition("_")[0], path) for path in found)
        steps = {int(step): path for step, path in named if step.isdecimal()}
        return [steps[step] for step in sorted(steps)]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What `run.json` says: versions, prior, seconds, peak memory, evaluations.

        Raises:
            UserError: it is missing or broken.
        """
        return manifest_of(self.folder)

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        """The lines of `metrics.jsonl`, in order of their steps. One that was cut off at the end is left out.

        Raises:
            UserError: the file is missing, or another line is broken.
        """
        path = self.folder / "metrics.jsonl"
        *whole, cut_off = _text(path).split("\n")  # a whole file ends with a line's end
        del cut_off
        return [_json(path, line) for line in whole]

    def cameras(self) -> Cameras:
        """The cameras of the test views, as `cameras.json` has them; their angles and radii are those of their places.

        Raises:
            UserError: the file is missing or broken.
        """
        path = self.folder / "cameras.json"
        found = _json(path, _text(path))
        try:
            return _cameras(found, self.config.GenerateCamParams.default_azimuth)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
            raise UserError(f"{path}: expected cameras, got {error!r}; restore the file") from error


def runs_in(folder: Path) -> list[Path]:
    """The folder, where it is a run; else the runs in it, by their names.

    Raises:
        UserError: it is neither, or can be no path.
    """
    user_path(str(folder), "run folder")
    found = [folder] if (folder / SETTINGS).is_file() else sorted(folder.glob(f"*/{SETTINGS}"))
    if not found:
        raise UserError(f"{folder}: expected a run, or a folder of runs, found neither; name a run folder")
    return [path if path == folder else path.parent for path in found]


def _cameras(listed: list[dict[str, Any]], default_azimuth: float) -> Cameras:
    """The inverse of `scene.cameras.cameras_json`; files of earlier versions are in our frame and name none."""
    centers, to_world = (
        torch.tensor([camera[key] for camera in listed], dtype=torch.float64)
        for key in ("position", "rotation")
    )
    if listed[0].get("frame") == FRAME:
        centers, to_world = to_file(centers), to_file(to_world.transpose(1, 2)).transpose(1, 2)
    matrices = torch.eye(4, dtype=torch.float64).repeat(len(listed), 1, 1)
    matrices[:, :3, :3] = to_world.transpose(1, 2)
    matrices[:, :3, 3] = -torch.einsum("bij,bj->bi", matrices[:, :3, :3], centers)
    radius = centers.norm(dim=1)
    azimuth = torch.atan2(centers[:, 0], centers[:, 1]).rad2deg()
    width, height = listed[0]["width"], listed[0]["height"]
    return Cameras(
        world_to_camera=matrices.float(),
        fov_x=_fields_of_view([width / camera["fx"] for camera in listed]),
        fov_y=_fields_of_view([height / camera["fy"] for camera in listed]),
        azimuth_deg=wrap_degrees(azimuth - default_azimuth).float(),
        polar_deg=torch.acos((centers[:, 2] / radius).clamp(-1.0, 1.0)).rad2deg().float(),
        radius=radius.float(),
        width=width,
        height=height,
    )


def _fields_of_view(widths: list[float]) -> Float[Tensor, " B"]:
    """Radians that see widths at the distance 1."""
    return torch.tensor([2.0 * math.atan(width / 2.0) for width in widths])


def manifest_of(folder: Path) -> dict[str, Any]:
    """What a run's `run.json` says, whatever has become of its settings.

    Raises:
        UserError: it is missing or broken.
    """
    path = folder / "run.json"
    manifest = _json(path, _text(path))
    if not isinstance(manifest, dict):
        raise UserError(
            f"{path}: expected an object of JSON, got {type(manifest).__name__}; restore the file"
        )
    return manifest


def _ply(iteration: int | str) -> str:
    return f"point_cloud/iteration_{iteration}/point_cloud.ply"


def _text(path: Path) -> str:
    if not os.path.lexists(path):
        raise UserError(f"{path}: expected a run's file, found none; let the run save first")
    try:
        return regular_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected readable text, got: {error}; restore the file") from error


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: expected JSON, got {error}; restore the file") from error
