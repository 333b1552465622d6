"""Files of Gaussians in the formats of viewers and engines, a module each, and the one reader of them all.

Each module has `read(path, sh_degree)` into our frame and `write(path, model)` from it.
"""

from pathlib import Path

from scene import ply
from scene.gaussian_model import GaussianModel
from scene.ply_header import read_header
from scene.splat_formats import compressed_ply, glb, splat, spz
from utils.errors import UserError
from utils.inputs import regular_file

READERS = {".splat": splat.read, ".spz": spz.read, ".glb": glb.read}
"""By suffix; a .ply, plain or compressed, is known by its beginning."""


def read_any(path: Path | str, sh_degree: int = 0) -> GaussianModel:
    """Read Gaussians from a .ply (plain or compressed), .splat, .spz or .glb, into our frame (z up, front +y).

    Args:
        sh_degree: bands up to this degree can be learnt; those that the file does not hold are zero.

    Raises:
        UserError: the file is missing, broken, cut off, empty, of no such format, or has no finite Gaussian.
    """
    suffix = Path(path).suffix.lower()
    with regular_file(path).open("rb") as file:
        is_ply = file.read(3) == b"ply"  # whatever it is called
    read = None if is_ply else READERS.get(suffix)
    if read is None:
        if not is_ply and suffix != ".ply":
            raise UserError(
                f"{path}: expected Gaussians as .ply, .splat, .spz or .glb, got {suffix or 'another file'}; "
                "convert it to one of these"
            )
        read = compressed_ply.read if compressed_ply.is_compressed(read_header(path)) else ply.read_gaussians
    return read(path, sh_degree)
