"""The pictures that are scored: renders of a run, or a folder of pictures of whatever origin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams, GuidanceParams
from arguments.check import check_text
from dreammapping.evaluation.exhibit import Exhibit
from dreammapping.finished import SETTINGS, FinishedRun
from scene.cameras import Cameras, orbit
from utils.errors import UserError
from utils.images import read_picture, to_uint8
from utils.paths import user_path

RING, ELEVATION_DEG = 120, 15.0
"""The cameras of published CLIP scores: 120 evenly around, 15 degrees above the horizon."""
PROMPT = "prompt.txt"
"""In a folder of pictures: what they shall show."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Source:
    """A run, or a folder of pictures, and the prompt that its pictures shall show; `open` makes it.

    `run` is None for a folder of pictures; `iteration` is which of a run's assets is seen, None for the last ones.
    """

    folder: Path
    prompt: str
    run: FinishedRun | None = None
    iteration: int | None = None

    @classmethod
    def open(cls, folder: Path, prompt: str | None = None, iteration: int | None = None) -> "Source":
        """Look what is there; nothing is rendered yet.

        Args:
            prompt: None for that of the run's settings.

        Raises:
            UserError: the folder has neither a run with a result nor pictures, or no prompt is known, or it is no text.
        """
        user_path(str(folder), "folder")  # can be one
        if prompt is not None:
            check_text(prompt, "prompt")
        if (folder / SETTINGS).is_file():
            run = FinishedRun.open(folder)
            if _is_picture(run):
                _left_by(run)
            else:
                run.iteration(iteration)
            return cls(folder, run.prompt if prompt is None else prompt, run, iteration)
        if not _pictures_in(folder):
            raise UserError(
                f"{folder}: expected a run with its config.yaml, or pictures ({', '.join(SUFFIXES)}), found neither; "
                "name another folder"
            )
        written = folder / PROMPT
        if prompt is None and written.is_file():
            prompt = written.read_text(encoding="utf-8-sig", errors="replace").strip() or None
        if prompt is None:
            raise UserError(
                f"{folder}: expected a prompt for a folder of pictures, got none; give --prompt, or write it into "
                f"{PROMPT}"
            )
        return cls(folder, prompt)

    @property
    def params(self) -> GuidanceParams | None:
        """The prior that a run had, None for a folder of pictures."""
        return None if self.run is None else self.run.config.GuidanceParams

    @property
    def is_rendered(self) -> bool:
        """Whether there are Gaussians or a field to see from anywhere, and not only pictures."""
        return self.run is not None and not _is_picture(self.run)

    @property
    def seed(self) -> int:
        return 0 if self.run is None else self.run.config.seed

    def pictures(self, views: int | None = None, seed: int = 0) -> Float[Tensor, "V 3 H W"]:
        """What is scored, in 8 bits as a file has it.

        Gaussians and fields are rendered before white (a white object of the toybox before black) from the cameras of
        `RING`; of pictures, and of folders, they are those that lie there.

        Args:
            views: how many of them, drawn by `seed` without replacement; all if None, or where there are fewer.

        Raises:
            UserError: a picture cannot be read, or they are not of one size.
        """
        if self.run is None:
            return read_pictures(chosen(_pictures_in(self.folder), views, seed))
        if self.is_rendered:
            exhibit = self.exhibit(views, seed)
            return in_bytes(exhibit.render(exhibit.asset()))
        particles = self.run.config.ImageParams.particles
        found = read_pictures(_left_by(self.run))
        parts = torch.cat(found.chunk(particles, dim=3)) if particles > 1 else found
        return parts[chosen(list(range(len(parts))), views, seed)]

    def around(self, count: int) -> Float[Tensor, "V 3 H W"]:
        """Up to `count` pictures, evenly around from the front: what people are shown. In 8 bits as `pictures`.

        Raises:
            UserError: as `pictures`.
        """
        if self.is_rendered:
            exhibit = Exhibit.of_run(
                self.folder,
                lambda params: orbit(count, params, polar_deg=90.0 - ELEVATION_DEG),
                self.prompt,
                self.iteration,
            )
            return in_bytes(exhibit.render(exhibit.asset()))
        found = self.pictures()
        return found[sorted({len(found) * index // count for index in range(count)})]

    def exhibit(self, views: int | None = None, seed: int = 0) -> Exhibit:
        """The run's Gaussians or field, and the cameras that see them."""
        return Exhibit.of_run(self.folder, ring(views, seed), self.prompt, self.iteration)

    def cost(self) -> dict[str, Any]:
        """What the run took, of its `run.json`; empty where it has none."""
        try:
            manifest = {} if self.run is None else self.run.manifest
        except UserError:
            return {}
        keys = ("method", "seed", "seconds", "peak_memory_bytes", "device", "score_model_evaluations")
        return {key: manifest[key] for key in keys if key in manifest}


def ring(views: int | None = None, seed: int = 0) -> Callable[[GenerateCamParams], Cameras]:
    """Places `views` of the cameras of `RING`, drawn by `seed`; all of them if None."""

    def place(params: GenerateCamParams) -> Cameras:
        return orbit(RING, params, polar_deg=90.0 - ELEVATION_DEG)[chosen(list(range(RING)), views, seed)]

    return place


def chosen(things: list, views: int | None, seed: int) -> list:
    """`views` of them without replacement, in their own order."""
    if views is None or views >= len(things):
        return things
    drawn = torch.randperm(len(things), generator=torch.Generator().manual_seed(seed))[:views]
    return [things[index] for index in sorted(drawn.tolist())]


def read_pictures(paths: list[Path]) -> Float[Tensor, "V 3 H W"]:
    """Pictures in [0, 1].

    Raises:
        UserError: one cannot be read, or they are not of one size.
    """
    pictures: list[np.ndarray] = []
    for path in paths:
        try:
            pictures.append(read_picture(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: expected a picture, got {error}; remove it or make it again") from error
        if pictures[-1].shape != pictures[0].shape:
            sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (pictures[0], pictures[-1])]
            raise UserError(
                f"{path}: expected pictures of one size, got {sizes[0]} and {sizes[1]}; scale them or sort them out"
            )
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255.0


def in_bytes(images: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V 3 H W"]:
    """Images as a file of 8 bits would have them, so that renders score as their own screenshots do."""
    return torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2) / 255.0


def _is_picture(run: FinishedRun) -> bool:
    return run.config.ModelParams.representation == "image"


def _pictures_in(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _left_by(run: FinishedRun) -> list[Path]:
    """The pictures that a run in two dimensions left: its own, or the test views of its last iteration."""
    own = run.folder / "picture.png"
    if _is_picture(run) and own.is_file():
        return [own]
    folders = run.folder.glob("test_six_views/*_iteration")
    numbered = {int(name): path for path in folders if (name := path.name.partition("_")[0]).isdecimal()}
    found = sorted(numbered[max(numbered)].glob("render_view_*.png")) if numbered else []
    if not found:
        raise UserError(
            f"{run.folder}: expected pictures of a finished run, found none; let the run end first"
        )
    return found
