"""Text to 3D, from Python: `generate("a red car", "configs/quickstart.yaml").gaussians`.

`generate` takes a prompt and settings, `optimize` a resolved `Config`; both leave in the run folder what the command
line leaves, because `train.py` calls them too. `dreammapping.optimization.Optimization` is a single optimisation
without files. Nothing heavy is imported before it is used: every `python -m dreammapping --help` passes here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreammapping.program import Result, generate, optimize

__all__ = ["Result", "generate", "optimize"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dreammapping import program

        return getattr(program, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
