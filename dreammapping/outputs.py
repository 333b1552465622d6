"""What a run leaves while it goes on, in upstream's layout: the asset, test views, videos, pictures of the process."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arguments import Config, GenerateCamParams
from dreammapping.subject import Subject
from scene.cameras import Cameras, cameras_json, orbit
from scene.ply import write_points
from utils.colormap import colored_depth
from utils.contact_sheet import contact_sheet
from utils.errors import UserError
from utils.images import read_picture, to_uint8, write_picture
from utils.run import Run
from utils.video import try_encoder, video
from utils.writer import Writer

log = logging.getLogger(__name__)

TEST_VIEWS = 8
"""Cameras on each ring of the test set (upstream's `test_six_views` has 8, or 16 with the elevated ring)."""
SEEN, LARGER = 512, 4
"""Test views and videos are drawn `LARGER` times the training's size, but not wider or higher than `SEEN` for it."""
SHEET_TILE = 192
"""Pixels of a view on the sheet of all test views."""


class Outputs:
    """Writes what is due after an iteration: the asset, and pictures of the process, these in the background.

    As a context it waits, at the end of the block, for what is still being written.
    """

    def __init__(self, config: Config, run: Run, subject: Subject) -> None:
        self.config, self.run, self.subject = config, run, subject
        self.save_iterations = fractions(config.iterations, config.save_ratio)
        self._writer = Writer()

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Wait until every picture is written."""
        self._writer.flush()

    def write_start(self) -> None:
        """What is known before the first iteration."""

    def write_due(self, step: int, rows: Callable[[], dict[str, Float[Tensor, "B _ H W"]]]) -> None:
        """Whatever is due after an iteration.

        Args:
            rows: what the guidance saw and predicted, asked for where a picture of it is due.
        """
        if step in self.save_iterations:
            self.subject.save(self.run.folder, step)
        if step % self.config.picture_interval == 0:
            path = self.run.path("train_process", f"iter_{step}.jpg")
            shown = rows()
            where = next(iter(shown.values())).device
            self._write_soon(path, lambda: process_picture(shown), where)

    def _write_soon(
        self, path: Path, draw: Callable[[], UInt8[np.ndarray, "H W 3"]], where: torch.device
    ) -> None:
        """Draw a picture of what is on a device, and write it in the background.

        On a CPU it is drawn here: once a second thread has done work of PyTorch, OpenMP counts more threads than there
        are cores, and from then on every operation of training waits by system calls, which doubles an iteration.
        """
        if where.type == "cpu":
            self._writer.submit(write_picture, path, draw())
        else:  # to draw is to wait for the device
            self._writer.submit(lambda: write_picture(path, draw()))

    def write_end(self) -> None:
        """What needs the whole run."""


@runtime_checkable
class Scene(Protocol):
    """A subject that cameras look at."""

    @property
    def sh_degree(self) -> int:
        """Spherical harmonics of its .ply."""
        ...

    def look(self, cameras: Cameras) -> Iterator[tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 1 H W"]]]:
        """Images and disparities of `cameras` before the plain background, some views at a time."""
        ...

    def points(self) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
        """Points of it and their colours in [0, 1]."""
        ...


class SceneOutputs(Outputs):
    """As `Outputs`, and what is seen of a scene: test views, turntable videos, and a video of it as it forms."""

    def __init__(self, config: Config, run: Run, subject: Subject) -> None:
        super().__init__(config, run, subject)
        self.scene: Scene = subject  # type: ignore[assignment]
        cameras, params = config.GenerateCamParams, config.OptimizationParams
        if not config.is_field:  # whose rays cost as much as those of training
            cameras = to_be_seen(cameras)
        self.test_cameras = orbit(TEST_VIEWS, cameras, elevated_ring=cameras.render_45)
        self.video_cameras = orbit(config.video_frames, cameras, elevated_ring=True)
        self.process_cameras = orbit(params.pro_frames_num, cameras, elevated_ring=params.pro_render_45)
        self.test_iterations = fractions(config.iterations, config.test_ratio) | {1}
        self.process_interval = max(config.iterations // params.pro_frames_num, 1)
        self._encodes = True

    def __enter__(self) -> "SceneOutputs":
        if self.config.save_video or self.config.OptimizationParams.save_process:
            with self._or_none():
                try_encoder(self.run.folder)
        return self

    def write_start(self) -> None:
        """The points that the run starts from, the test cameras, and the files by which SIBR viewers know a run."""
        points, colors = self.scene.points()
        for name in ("init_points3d.ply", "input.ply"):
            write_points(self.run.path(name), points, colors.clamp(0.0, 1.0))
        self.run.write_text("cameras.json", json.dumps(cameras_json(self.test_cameras)))
        model = self.config.ModelParams
        values = {
            "sh_degree": self.scene.sh_degree,
            "model_path": str(self.run.given),
            "white_background": model.white_background,
        }
        arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
        self.run.write_text(
            "cfg_args", f"Namespace({arguments}, source_path='', images='images', resolution=-1, eval=False)"
        )

    def write_due(self, step: int, rows: Callable[[], dict[str, Float[Tensor, "B _ H W"]]]) -> None:
        super().write_due(step, rows)  # the asset first: what cannot be drawn shall not cost it
        if step % self.process_interval == 0 and self.config.OptimizationParams.save_process:
            self._write_process_frame(step)
        if step in self.test_iterations:
            self._write_test_views(step)
            if self.config.save_video:
                self._write_videos(step)

    def write_end(self) -> None:
        """Make a video of the frames of the process. They stay: a run that goes on from here adds to them.

        The last turntable is made where it is missing: a run that had no encoder, or did not ask for it, was resumed.
        """
        last = self.config.iterations
        if self.config.save_video and not all(path.exists() for path in self._turntables(last)):
            self._write_videos(last)
        paths = self.run.path("process_videos", "frames").glob("*.jpg")
        steps = {int(path.stem): path for path in paths if path.stem.isdecimal()}
        frames = [steps[step] for step in sorted(steps) if step <= last]
        if frames and self._encodes:
            with self._or_none(), video(self.run.path("process_videos", "video_rgb.mp4")) as write:
                for frame in _of_one_size(frames):
                    write(frame)

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        """Within the block, a video that cannot be written is the last one that is tried, and the asset goes on."""
        try:
            yield
        except UserError as error:
            self._encodes = False
            log.warning("%s; the run continues without videos", self.run.as_given(error))

    def _views(self, cameras: Cameras) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Colour and depth of each camera as bytes, of which no more than a few are kept."""
        for images, shapes in self.scene.look(cameras):
            yield from zip(to_uint8(images), colored_depth(shapes), strict=True)

    def _write_test_views(self, step: int) -> None:
        folder = self.run.path("test_six_views", f"{step}_iteration")
        small: list[tuple[np.ndarray, np.ndarray]] = []
        for index, (image, depth) in enumerate(self._views(self.test_cameras)):
            write_picture(folder / f"render_view_{index}.png", image)
            write_picture(folder / f"render_depth_{index}.png", depth)
            small.append((_shrunk(image), _shrunk(depth)))
        rings = [small[first : first + TEST_VIEWS] for first in range(0, len(small), TEST_VIEWS)]
        rows = [
            (f"{name}, {kind}", np.stack([view[which] for view in ring]))
            for name, ring in zip(("around", "from above"), rings, strict=False)
            for which, kind in enumerate(("colour", "depth (near is bright)"))
        ]
        write_picture(folder / "all_views.png", contact_sheet(rows))

    def _write_videos(self, step: int) -> None:
        if not self._encodes:
            return
        paths = self._turntables(step)
        with self._or_none(), video(paths[0]) as write_image, video(paths[1]) as write_depth:
            for image, depth in self._views(self.video_cameras):
                write_image(image)
                write_depth(depth)

    def _turntables(self, step: int) -> list[Path]:
        """The videos of an iteration: colour and depth."""
        folder = self.run.path("videos", f"{step}_iteration")
        return [folder / f"video_{name}_{step}.mp4" for name in ("rgb", "depth")]

    def _write_process_frame(self, step: int) -> None:
        index = (step // self.process_interval - 1) % len(self.process_cameras)
        image, _ = next(self.scene.look(self.process_cameras[index : index + 1]))
        path = self.run.path("process_videos", "frames", f"{step:07d}.jpg")
        self._write_soon(path, lambda: to_uint8(image)[0], image.device)


def to_be_seen(params: GenerateCamParams) -> GenerateCamParams:
    """The settings of cameras for people: small renders become larger, with the same field of view."""
    factor = max(1.0, min(LARGER, SEEN / max(params.image_w, params.image_h)))
    return dataclasses.replace(
        params, image_w=round(factor * params.image_w), image_h=round(factor * params.image_h)
    )


def _shrunk(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A view for the sheet; never a larger one."""
    height, width = image.shape[:2]
    if width <= SHEET_TILE:
        return image
    size = (SHEET_TILE, max(1, round(height * SHEET_TILE / width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def _of_one_size(paths: list[Path]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures, scaled to the size of the last one."""
    size = next((frame.shape[1::-1] for frame in _readable(paths[::-1])), None)
    for frame in _readable(paths):
        yield frame if frame.shape[1::-1] == size else cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _readable(paths: list[Path]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Pictures, but for those that a power cut has left empty."""
    for path in paths:
        with suppress(OSError):
            yield read_picture(path)


def process_picture(rows: dict[str, Float[Tensor, "B _ H W"]]) -> UInt8[np.ndarray, "H W 3"]:
    """Rows with their names, the disparity among them in colour."""
    shown = {name: colored_depth(row) if name == "disparity" else row for name, row in rows.items()}
    return contact_sheet(shown.items())


def outputs_of(config: Config, run: Run, subject: Subject) -> Outputs:
    """What writes a subject's pictures, videos and files: of a scene those of all sides."""
    return SceneOutputs(config, run, subject) if isinstance(subject, Scene) else Outputs(config, run, subject)


def fractions(iterations: int, parts: int) -> set[int]:
    """The last iteration, and the `parts - 1` that divide the run evenly before it."""
    parts = min(parts, iterations)
    return {part * iterations // parts for part in range(1, parts)} - {0} | {iterations}
