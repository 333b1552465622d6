"""Named sets of settings that `--preset` puts on top of a file: shares of what the file asks for."""

_STEPS, _PIXELS = 0.3, 0.5

PRESETS: dict[str, dict[str, float]] = {
    # Not the paper's setting: a look at a prompt in about a tenth of the time.
    "fast": {
        "OptimizationParams.iterations": _STEPS,
        "OptimizationParams.warmup_iter": _STEPS,
        "OptimizationParams.geo_iter": _STEPS,
        "OptimizationParams.densify_from_iter": _STEPS,
        "OptimizationParams.densify_until_iter": _STEPS,
        "OptimizationParams.progressive_view_iter": _STEPS,
        "OptimizationParams.scale_up_cameras_iter": _STEPS,
        "OptimizationParams.pro_frames_num": _STEPS,
        "ImageParams.steps": _STEPS,
        "GenerateCamParams.image_w": _PIXELS,
        "GenerateCamParams.image_h": _PIXELS,
    },
}
"""For each preset, the share of a setting's value that is left: so it is less than it was, whatever it was."""
