"""What a run has that a mesh can be made from: how much it is, said before anything is read, and its views."""

import torch

from dreammapping.finished import FIELD, FinishedRun
from dreammapping.mesh import gaussian_views, radiance_views
from dreammapping.mesh.views import Source
from gaussian_renderer import usable
from scene.radiance_field import RadianceField


def size_of(run: FinishedRun, iteration: int) -> tuple[str, int]:
    """The asset of a saved iteration in words, and the bytes that reading it and looking at it take.

    Raises:
        UserError: its file is missing or broken.
    """
    if run.config.is_field:
        size = (run.folder / FIELD).stat().st_size
        return f"a field of {size // 4:,} numbers", 2 * size + radiance_views.memory(run.config)
    size = run.size(iteration)
    return f"{size.count:,} Gaussians", size.memory + gaussian_views.memory(size.count)


def source_of(run: FinishedRun, iteration: int, device: torch.device) -> Source:
    """The views of the asset of a saved iteration.

    Raises:
        UserError: its file is missing or broken.
    """
    asset = run.asset(iteration).to(device)
    if isinstance(asset, RadianceField):
        return radiance_views.RadianceViews(asset, run.config)
    pipeline = run.config.PipelineParams
    return gaussian_views.GaussianViews(
        asset, backend=usable(pipeline.backend, device), direct_rgb=pipeline.convert_SHs_python
    )
