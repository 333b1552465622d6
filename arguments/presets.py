"""Named sets of settings that `--preset` puts on top of a file."""

PRESETS: dict[str, dict[str, object]] = {
    # Not the paper's setting: a look at a prompt in about a quarter of the time.
    "fast": {
        "OptimizationParams.iterations": 1500,
        "OptimizationParams.warmup_iter": 450,
        "OptimizationParams.densify_until_iter": 900,
        "OptimizationParams.progressive_view_iter": 150,
        "OptimizationParams.scale_up_cameras_iter": 150,
        "OptimizationParams.pro_frames_num": 150,
        "GenerateCamParams.image_w": 256,
        "GenerateCamParams.image_h": 256,
        "preset": "fast",
    },
}
