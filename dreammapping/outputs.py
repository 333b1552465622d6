"""What a run shows: test views, turntable videos, process pictures, point clouds; in upstream's layout."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arguments import Config
from gaussian_renderer import disparity, render
from scene.cameras import Cameras, cameras_json, orbit
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians, write_points
from utils.background import Background
from utils.colormap import colored_depth
from utils.contact_sheet import contact_sheet
from utils.files import atomic
from utils.images import read_picture, to_uint8, write_picture, write_video
from utils.run import Run
from utils.spherical_harmonics import sh_dc_to_rgb

TEST_VIEWS = 8
"""Cameras on each ring of the test set (upstream's `test_six_views` has 8, or 16 with the elevated ring)."""
CHUNK = 8
"""Views rendered in one call."""
PROCESS_ROWS = ("render", "disparity", "opacity", "prior without guidance", "prior with guidance")
"""What the rows of a process picture show."""


class Outputs:
    """Writes a run's pictures, videos and point clouds when they are due; those of the process in the background.

    As a context it waits, at the end of the block, for what is still being written.
    """

    def __init__(self, config: Config, run: Run, device: torch.device) -> None:
        self.config, self.run, self.device = config, run, device
        cameras, params = config.GenerateCamParams, config.OptimizationParams
        self._background = Background()
        self.test_cameras = orbit(TEST_VIEWS, cameras, elevated_ring=cameras.render_45)
        self.video_cameras = orbit(config.video_frames, cameras, elevated_ring=True)
        self.process_cameras = orbit(params.pro_frames_num, cameras, elevated_ring=params.pro_render_45)
        self.test_iterations = _fractions(params.iterations, config.test_ratio) | {1}
        self.save_iterations = _fractions(params.iterations, config.save_ratio)
        self.process_interval = max(params.iterations // params.pro_frames_num, 1)
        self.background = torch.full((3,), 1.0 if config.ModelParams.white_background else 0.0, device=device)

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Wait until every picture is written."""
        self._background.flush()

    def write_start(self, start: GaussianModel) -> None:
        """The points that the run starts from, the test cameras, and the file by which SIBR viewers know a run."""
        colors = sh_dc_to_rgb(start.sh_dc.detach()[:, 0]).clamp(0.0, 1.0)
        write_points(self.run.path("init_points3d.ply"), start.means.detach(), colors)
        self.run.write_text("cameras.json", json.dumps(cameras_json(self.test_cameras)))
        model = self.config.ModelParams
        values = {
            "sh_degree": model.sh_degree,
            "model_path": str(self.run.folder),
            "white_background": model.white_background,
        }
        arguments = ", ".join(f"{name}={value!r}" for name, value in values.items())
        self.run.write_text(
            "cfg_args", f"Namespace({arguments}, source_path='', images='images', resolution=-1, eval=False)"
        )

    def write_due(self, step: int, gaussians: GaussianModel) -> None:
        """Test views and videos at test iterations, the point cloud at save iterations, frames of the process video."""
        if step % self.process_interval == 0 and self.config.OptimizationParams.save_process:
            self._write_process_frame(step, gaussians)
        if step in self.test_iterations:
            self._write_test_views(step, gaussians)
            if self.config.save_video:
                self._write_videos(step, gaussians)
        if step in self.save_iterations:
            self._write_point_cloud(step, gaussians)

    def write_pictures_due(self, step: int, rows: Callable[[], list[Float[Tensor, "B C H W"]]]) -> None:
        """Every `vis_interval` iterations, lay out what the guidance saw and predicted."""
        if step % self.config.GuidanceParams.vis_interval == 0:
            path = self.run.path("train_process", f"iter_{step}.jpg")
            self._background.submit(_write_process_picture, path, rows())

    def write_end(self) -> None:
        """Turn the frames of the process into a video."""
        frames = sorted(self.run.path("process_videos", "frames").glob("*.jpg"))
        if frames:
            write_video(self.run.path("process_videos", "video_rgb.mp4"), map(read_picture, frames))
            shutil.rmtree(self.run.path("process_videos", "frames"))

    @torch.no_grad()
    def _rendered(self, gaussians: GaussianModel, cameras: Cameras) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and disparities of `cameras`, a chunk of views at a time."""
        for start in range(0, len(cameras), CHUNK):
            chunk = cameras[start : start + CHUNK].to(self.device)
            params = self.config.PipelineParams
            views = render(
                gaussians,
                chunk,
                self.background,
                backend=params.backend,
                direct_rgb=params.convert_SHs_python,
            )
            yield views.images, disparity(views, chunk)

    def _write_test_views(self, step: int, gaussians: GaussianModel) -> None:
        with atomic(self.run.path("test_six_views", f"{step}_iteration")) as folder:
            folder.mkdir()
            chunks = list(self._rendered(gaussians, self.test_cameras))
            images, shapes = (torch.cat(parts) for parts in zip(*chunks, strict=True))
            for index, (image, shape) in enumerate(zip(images, shapes, strict=True)):
                write_picture(folder / f"render_view_{index}.png", image[None])
                write_picture(folder / f"render_depth_{index}.png", colored_depth(shape[None])[0])

    def _write_videos(self, step: int, gaussians: GaussianModel) -> None:
        chunks = [
            (to_uint8(image), colored_depth(shape))
            for image, shape in self._rendered(gaussians, self.video_cameras)
        ]
        for name, parts in zip(("rgb", "depth"), zip(*chunks, strict=True), strict=True):
            write_video(
                self.run.path("videos", f"{step}_iteration", f"video_{name}_{step}.mp4"),
                np.concatenate(parts),
            )

    def _write_process_frame(self, step: int, gaussians: GaussianModel) -> None:
        index = (step // self.process_interval - 1) % len(self.process_cameras)
        image, _ = next(self._rendered(gaussians, self.process_cameras[index : index + 1]))
        path = self.run.path("process_videos", "frames", f"{step:07d}.jpg")
        self._background.submit(write_picture, path, image)

    def _write_point_cloud(self, step: int, gaussians: GaussianModel) -> None:
        folder = self.run.path("point_cloud", f"iteration_{step}")
        prompt = self.config.GuidanceParams.text
        write_gaussians(folder / "point_cloud.ply", gaussians, comments=(f"prompt {prompt}",))
        colored = torch.cat([gaussians.means, sh_dc_to_rgb(gaussians.sh_dc[:, 0])], dim=1)
        with atomic(folder / "point_cloud_rgb.txt") as path:
            np.savetxt(path, colored.detach().cpu().numpy(), fmt="%.6f")


def _write_process_picture(path: Path, rows: list[Float[Tensor, "B C H W"]]) -> None:
    labelled = dict(zip(PROCESS_ROWS, rows, strict=True))
    in_colour = labelled | {"disparity": colored_depth(labelled["disparity"])}
    write_picture(path, contact_sheet(in_colour.items()))


def _fractions(iterations: int, parts: int) -> set[int]:
    """The last iteration, and the `parts - 1` that divide the run evenly before it."""
    return {part * iterations // parts for part in range(1, parts)} - {0} | {iterations}
