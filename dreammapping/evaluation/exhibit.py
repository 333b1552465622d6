"""What a run is judged by: views of its asset, of the true object and of its start, by the same cameras.

World frame as in `scene.cameras`; images are `(V, 3, H, W)` float32 in [0, 1] on the CPU.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arguments import GenerateCamParams
from dreammapping.field import look
from dreammapping.finished import FinishedRun
from gaussian_renderer import render, usable
from scene.cameras import Cameras, orbit
from scene.gaussian_model import GaussianModel
from scene.radiance_field import RadianceField
from toybox import raycast, world
from toybox.objects import solids
from toybox.recognition import parse_caption

POLAR_DEG = (90.0, 70.0)
"""Polar angles from +z of the views in turn: on the horizon, and looking down a little."""
CHUNK = 8
"""Views rendered in one call."""


@dataclass(frozen=True)
class Exhibit:
    """One saved iteration of one run, and the cameras that look at it."""

    run: FinishedRun
    iteration: int
    prompt: str
    cameras: Cameras

    @classmethod
    def of_run(
        cls,
        folder: Path,
        place: Callable[[GenerateCamParams], Cameras],
        prompt: str | None = None,
        iteration: int | None = None,
    ) -> "Exhibit":
        """Open a run folder; its own prompt and last saved iteration unless others are given.

        `place` makes the cameras from the run's settings, whose images are taken to be square.

        Raises:
            UserError: the folder is no run, or holds no such Gaussians.
        """
        run = FinishedRun.open(folder)
        params = run.config.GenerateCamParams
        square = dataclasses.replace(params, image_h=params.image_w)
        return cls(
            run, run.iteration(iteration), run.prompt if prompt is None else prompt, cameras=place(square)
        )

    @property
    def pair(self) -> tuple[str, str] | None:
        """(object, colour) of the prompt, None where it is no caption of the toybox."""
        return parse_caption(self.prompt)

    @cached_property
    def background(self) -> Float[Tensor, "3"]:
        """White; black where white would swallow the object."""
        white = torch.ones(3)
        swallowed = self.pair is not None and not world.is_distinct(white.numpy(), self.pair[1])
        return torch.zeros(3) if swallowed else white

    @cached_property
    def device(self) -> torch.device:
        return torch.device(
            "cuda" if torch.cuda.is_available() and self.run.config.device != "cpu" else "cpu"
        )

    def asset(self) -> GaussianModel | RadianceField:
        """What the run made."""
        return self.run.asset(self.iteration)

    @torch.inference_mode()
    def render(self, asset: GaussianModel | RadianceField) -> Float[Tensor, "V 3 H W"]:
        """Views of Gaussians or a field at the run's image size."""
        asset, params = asset.to(self.device), self.run.config.PipelineParams
        if isinstance(asset, RadianceField):
            views = look(asset, self.cameras, self.background, self.run.config.FieldParams)
            return torch.cat([each.images.clamp(0.0, 1.0).cpu() for each in views])
        backend = usable(params.backend, self.device)
        options = {"backend": backend, "direct_rgb": params.convert_SHs_python}
        images = []
        for first in range(0, len(self.cameras), CHUNK):
            cameras = self.cameras[first : first + CHUNK]
            views = render(asset, cameras, self.background, **options)
            images.append(views.images.clamp(0.0, 1.0).cpu())
        return torch.cat(images)

    def render_truth(self, size: int) -> Float[Tensor, "V 3 S S"]:
        """Exact views of the object that the prompt names, which must be a caption of the toybox."""
        assert self.pair is not None, "an object is named"
        cameras, (name, colour) = self.cameras, self.pair
        places = (cameras.azimuth_deg, cameras.polar_deg, cameras.radius, cameras.fov_x)
        orbit = raycast.Cameras.orbit(*(values.cpu().double() for values in places))
        layers = raycast.cast(solids(name), orbit, size)
        return layers.picture(torch.tensor([world.COLOURS[colour]]), self.background.cpu().view(3, 1, 1))


def all_around(views: int) -> Callable[[GenerateCamParams], Cameras]:
    """Places cameras evenly in azimuth, at the heights of `POLAR_DEG` in turn.

    Radius and field of view are the run's defaults. Each stands in the middle of one of `views` equal
    sectors, so that none is on the border between two view words.
    """

    def place(params: GenerateCamParams) -> Cameras:
        heights = [orbit(2 * views, params, polar_deg=polar)[1::2] for polar in POLAR_DEG]
        both = Cameras.concatenate(heights)
        return both[[views * (index % len(heights)) + index for index in range(views)]]

    return place


def front_side_back(params: GenerateCamParams) -> Cameras:
    """The three views that pictures of finished runs show."""
    return orbit(4, params)[:3]
