"""A run: its folder, what it optimises, and what is augmented in its renders."""

from dataclasses import dataclass
from pathlib import Path

from arguments.option import option
from utils.paths import user_path


@dataclass(frozen=True)
class ModelParams:
    """The run's folder, what it optimises, and what is augmented in the renders."""

    representation: str = option(
        "gaussians", "what is optimised", choices=("gaussians", "image", "grid", "hash")
    )
    workspace: str = option("debug", "name of the run: its folder under output_path")
    output_path: str = option("output", "folder that holds the folders of all runs")
    model_path: str = option("", "folder of this run; empty: output_path/workspace")
    pretrained_model_path: str | None = option(
        None, "start from the Gaussians of this .ply, .splat, .spz or .glb instead of init_shape"
    )
    sh_degree: int = option(
        0, "highest degree of spherical harmonics; 0: colour does not depend on the view", low=0, high=3
    )
    max_gaussians: int | None = option(None, "densification stops creating above this number", low=1)
    batch: int = option(
        10,
        "cameras made at a time (they share one field of view); not the views per step",
        low=1,
        high=10_000,
    )
    white_background: bool = option(
        True, "plain background: white (light grey in test views and videos), else black"
    )
    bg_aug_ratio: float = option(
        0.5, "chance that a training render gets a random or black background", low=0, high=1
    )
    sh_deg_aug_ratio: float = option(0.1, "chance that a training render uses degree 0 only", low=0, high=1)
    shs_aug_ratio: float = option(
        0.0, "chance that a training render has noise on its colours", low=0, high=1
    )
    scale_aug_ratio: float = option(
        1.0, "chance that a training render has noise on its scales", low=0, high=1
    )

    @property
    def run_folder(self) -> Path:
        """Where everything of this run is written.

        Raises:
            UserError: that can be no path.
        """
        if self.model_path:
            return user_path(self.model_path, "ModelParams.model_path")
        above = user_path(self.output_path, "ModelParams.output_path")
        return above / user_path(self.workspace, "ModelParams.workspace")
