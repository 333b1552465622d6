"""Text to 3D Gaussians, from Python: `generate("a red car", "configs/quickstart.yaml").gaussians`.

`generate` takes a prompt and settings, `optimize` a resolved `Config`; both leave in the run folder what the command
line leaves, because `train.py` calls them too. Nothing heavy is loaded before one of them is asked for.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("dreammapping.program"), name)
