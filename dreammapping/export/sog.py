"""`.sog`, PlayCanvas's compressed Gaussians, made by splat-transform, a program for Node."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from scene.gaussian_model import GaussianModel
from scene.ply import write_gaussians
from utils.errors import UserError
from utils.files import atomic

INSTALL = "npm install @playcanvas/splat-transform"
LOCAL = Path("node_modules", ".bin")


def splat_transform() -> list[str]:
    """The command of splat-transform: on the PATH, or in node_modules here.

    Raises:
        UserError: Node or splat-transform is not here.
    """
    found = shutil.which("splat-transform", path=os.pathsep.join([os.environ.get("PATH", ""), str(LOCAL)]))
    if shutil.which("node") is None or found is None:
        missing = "Node 18 or newer" if shutil.which("node") is None else "splat-transform"
        raise UserError(f"--format sog: needs {missing}, found none; install it (`{INSTALL}`), or choose spz")
    return [found]


def write(path: Path, model: GaussianModel) -> None:
    """Write a .sog.

    Raises:
        UserError: splat-transform is not here or fails, a parameter is not finite, or the file cannot be written.
    """
    command = splat_transform()
    with tempfile.TemporaryDirectory() as folder, atomic(path) as temporary:
        plain = Path(folder, "gaussians.ply")
        write_gaussians(plain, model)
        result = subprocess.run(
            [*command, "-q", "-w", "-g", "cpu", str(plain), str(temporary.absolute())],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0 or not temporary.is_file():
            said = " ".join((result.stderr or result.stdout).split())[-300:]
            raise UserError(f"{path}: splat-transform made no file ({said or result.returncode}); choose spz")
