"""Learning-rate schedules."""

import math


def log_linear(step: int, start: float, end: float, steps: int) -> float:
    """Interpolate from `start` at step 0 to `end` at `steps`, linearly in the logarithm; constant afterwards.

    The schedule of every decaying rate of 3D Gaussian Splatting (upstream `position_lr_init/_final` and kin).
    """
    progress = min(max(step / steps, 0.0), 1.0)
    return math.exp((1.0 - progress) * math.log(start) + progress * math.log(end))
