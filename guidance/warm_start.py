"""Weights of one part of a loss, from the run that trained it or from a file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from utils import checkpoint
from utils.errors import UserError
from utils.paths import user_path
from utils.tensors import open_tensors


@torch.no_grad()
def load_part(module: nn.Module, source: str, part: str, setting: str) -> None:
    """Fill `module` with the weights named `part`.* in the newest checkpoint of a run, or in a .safetensors file.

    A file may also hold the module's own names, without `part`.

    Args:
        source: a run's folder, or a file.
        setting: what an error names.

    Raises:
        UserError: there is nothing at `source`, or it holds no such part, or the part has other shapes.
    """
    weights = _read(user_path(source, setting), setting)
    named = {
        name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")
    }
    try:
        module.load_state_dict(named or weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{setting}: expected weights of this {part}, got others in {source} ({reason}); use a run with the same "
            "settings and score model"
        ) from error


def _read(path: Path, setting: str) -> dict[str, Tensor]:
    if path.is_dir():
        found = checkpoint.checkpoints(path / "checkpoints")
        if not found:
            raise UserError(
                f"{setting}: expected a run with a checkpoint, got {path}, which has none; correct the path"
            )
        return checkpoint.load(found[-1]).get("guidance", {})
    if not path.is_file():  # a pipe would be waited for
        what = "which is neither" if path.exists() else "which does not exist"
        raise UserError(
            f"{setting}: expected a run's folder or a .safetensors file, got {path}, {what}; correct the path"
        )
    with open_tensors(path, setting) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
