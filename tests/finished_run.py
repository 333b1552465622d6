"""Small finished runs as the program leaves them, made without a training."""

import json
import shutil
from pathlib import Path

import numpy as np

from arguments import load, to_yaml
from gaussian_renderer import render
from scene.cameras import cameras_json, orbit
from scene.field_file import write_field
from scene.field_start import Blob
from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from scene.radiance_field import RadianceField, hash_cells, new_hash_grid, new_voxel_grid
from tests.balls import sides
from tests.gaussians import random_gaussians, seeded
from utils.checkpoint import save
from utils.colormap import colored_depth
from utils.images import to_uint8, write_picture
from utils.run import Run
from utils.video import video


def finished_run(folder: Path, *words: str, gaussians: GaussianModel | None = None) -> Path:
    """A run folder with two saved iterations, four test views, a video and metrics.

    Args:
        words: settings as on the command line.
        gaussians: the asset; some random ones if None.
    """
    config, _ = load(
        ["text=a red car", "image_w=48", "image_h=48", "model_key=toybox", "iterations=20", *words]
    )
    gaussians = gaussians or random_gaussians(50)
    cameras = orbit(4, config.GenerateCamParams)
    background = gaussians.means.new_full((3,), float(config.ModelParams.white_background))
    views = render(gaussians, cameras, background)
    with Run(folder) as run:
        run.claim(to_yaml(config))
        for step in (10, 20):
            write_gaussians(run.path("point_cloud", f"iteration_{step}", "point_cloud.ply"), gaussians)
            values = {
                f"operator_error/t{low:03d}-{low + 99:03d}": 1 / (step + low) for low in range(0, 1000, 100)
            }
            run.log({"step": step, "loss/vdm": 100.0 / step, "gaussians": len(gaussians), **values})
        run.write_text("cameras.json", json.dumps(cameras_json(cameras)))
        shapes = colored_depth(views.alphas.detach())
        for index, (image, shape) in enumerate(zip(to_uint8(views.images), shapes, strict=True)):
            write_picture(run.path("test_six_views", "20_iteration", f"render_view_{index}.png"), image)
            write_picture(run.path("test_six_views", "20_iteration", f"render_depth_{index}.png"), shape)
        with video(run.path("videos", "20_iteration", "video_rgb_20.mp4")) as write:
            for image in to_uint8(views.images):
                write(np.ascontiguousarray(image))
        save(run.path("checkpoints"), 20, {"step": 20})
        run.stands()
        run.write_manifest(
            prompt=config.GuidanceParams.text,
            device="cpu",
            iterations=20,
            finished=True,
            gaussians=len(gaussians),
        )
    shutil.rmtree(folder / "checkpoints")
    return folder


def field_run(folder: Path, kind: str, text: str = "a red ball") -> tuple[Path, RadianceField]:
    """A run folder with an opaque ball: red in front and blue behind in a grid, grey in hash tables."""
    settings = [
        f"representation={kind}", f"text={text}", "image_w=40", "image_h=40", "model_key=toybox", "device=cpu",
        "FieldParams.bound=0.6", "FieldParams.samples=32", "FieldParams.occupancy_resolution=16",
    ]  # fmt: skip
    blob = Blob(200.0, 0.4)
    if kind == "grid":
        field = new_voxel_grid(blob, 0.6, 1.0, 25, lambda points: sides(points.t()))
    else:
        field = new_hash_grid(
            blob, 0.6, 1.0, cells=hash_cells(2, 3, 8), power=9, features=2, width=8, layers=1, smoothstep=False,
            rng=seeded(),
        )  # fmt: skip
    with Run(folder) as run:
        run.claim(to_yaml(load(settings)[0]))
        write_field(run.path("field.safetensors"), field, 7, text)
        run.stands()
    return folder, field
