"""The Gaussians' optimiser, density control and regularisers."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class OptimizationParams:
    """The Gaussians' optimiser, density control and regularisers."""

    iterations: int = option(5000, "training steps", unit="steps", low=1, high=10_000_000)
    position_lr_init: float = option(
        1.6e-4, "learning rate of the means at the start, times default_radius", above=0
    )
    position_lr_final: float = option(1.6e-6, "and at the end", above=0)
    feature_lr: float = option(
        0.005, "learning rate of the colours at the start (higher bands: a 20th)", above=0
    )
    feature_lr_final: float = option(0.003, "and at the end", above=0)
    opacity_lr: float = option(0.05, "learning rate of the opacities", low=0)
    scaling_lr: float = option(0.005, "learning rate of the log-scales at the start", above=0)
    scaling_lr_final: float = option(0.001, "and at the end", above=0)
    rotation_lr: float = option(0.001, "learning rate of the rotations at the start", above=0)
    rotation_lr_final: float = option(0.0002, "and at the end", above=0)
    lambda_tv: float = option(1.0, "weight of total variation of image and disparity", low=0)
    lambda_scale: float = option(1.0, "weight of the mean scale", low=0)
    geo_iter: int = option(0, "until this step only the disparity map is guided", unit="steps", low=0)
    as_latent_ratio: float = option(
        0.2, "chance per step that the disparity map is guided instead of the image", low=0, high=1
    )
    warmup_iter: int = option(
        1500, "length of the annealing from max_t_range to t_range", unit="steps", low=1
    )
    densify_from_iter: int = option(100, "density control starts after this step", unit="steps", low=0)
    densify_until_iter: int = option(
        3000, "and ends before this one; 0: no density control", unit="steps", low=0
    )
    densification_interval: int = option(100, "steps between densifications", unit="steps", low=1)
    densify_grad_threshold: float = option(
        0.00075, "mean screen-space gradient (NDC units) from which to densify", low=0
    )
    densify_stats: str = option(
        "all_views",
        "whose gradients count for densification: each view's, LucidDreamer's last one's, GaussianDreamer's sum",
        choices=("all_views", "last_view", "summed_views"),
    )
    percent_dense: float = option(
        0.003, "Gaussians are split above this share of default_radius, cloned below", low=0
    )
    prune_opacity: float = option(0.005, "Gaussians fainter than this are removed", low=0, high=1)
    prune_scale: float = option(
        0.1, "Gaussians wider than this share of default_radius are removed too", above=0
    )
    prune_scale_from_iter: int | None = option(
        None,
        "step after which wide Gaussians are removed; none: the first opacity reset",
        unit="steps",
        low=0,
    )
    opacity_reset_interval: int = option(300, "steps between opacity resets", unit="steps", low=1)
    use_progressive: bool = option(
        False, "camera ranges widen when this is FALSE (LucidDreamer's meaning, kept)"
    )
    progressive_view_iter: int = option(500, "first step at which camera ranges widen", unit="steps", low=0)
    scale_up_cameras_iter: int = option(500, "steps between widenings", unit="steps", low=1)
    scale_up_factor: float = option(0.95, "factor on the camera distance at each widening", above=0, high=1)
    fovy_scale_up_factor: tuple[float, float] = option(
        (0.75, 1.1), "factors on both ends of the field of view at each widening", above=0
    )
    phi_scale_up_factor: float = option(1.5, "factor on azimuth and polar bounds at each widening", low=1)
    save_process: bool = option(True, "write the video of the process")
    pro_frames_num: int = option(600, "frames of that video", unit="frames", low=1, high=100_000)
    pro_render_45: bool = option(False, "add a ring of cameras from above to that video")

    @property
    def relax_cameras(self) -> bool:
        """Whether the camera ranges widen during training: `use_progressive` reads the other way round."""
        return not self.use_progressive
