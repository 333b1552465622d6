"""Exported files as software reads them that nobody here wrote: Node's programs, gsply, usd-core."""

import json
import shutil
import subprocess
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch

from scene.frame import FRAME_COMMENT, WORLD_TO_FILE, WORLD_TO_Y_UP
from scene.gaussian_model import GaussianModel
from scene.ply import read_gaussians
from scene.raw_gaussians import model_of
from utils.spherical_harmonics import rgb_to_sh_dc

NODE = Path(__file__).parent / "node"
PROGRAMS = NODE / "node_modules" / ".bin"


def needs_node() -> None:
    """Skip the test where Node or the readers of `tests/node` are missing."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    if not (NODE / "node_modules" / "three").is_dir():
        pytest.skip("readers of tests/node are not installed: npm ci --prefix tests/node")


def node(script: str, path: Path) -> dict:
    """What a script of `tests/node` says of a file."""
    needs_node()
    result = subprocess.run(
        ["node", script, str(path)], cwd=NODE, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def by_splat_transform(path: Path) -> GaussianModel:
    """Converted to a .ply, which has the axes of all of its .ply."""
    needs_node()
    plain = path.with_name(path.name + ".back.ply")
    command = ["node", str(PROGRAMS / "splat-transform"), "-q", "-w", str(path), str(plain)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr + result.stdout
    first = b"format binary_little_endian 1.0\n"
    assert plain.read_bytes().count(first) == 1
    plain.write_bytes(plain.read_bytes().replace(first, first + f"comment {FRAME_COMMENT}\n".encode()))
    return read_gaussians(plain)


def by_gsply(path: Path) -> GaussianModel:
    """gsply leaves the axes of a file as they are."""
    found = gsply.read_spz(path) if path.suffix == ".spz" else gsply.plyread(path)
    tables = [np.asarray(found.sh0, dtype=np.float32)[:, None]]
    if found.shN is not None and np.asarray(found.shN).size:
        tables.append(np.asarray(found.shN, dtype=np.float32))
    raw = {
        "means": torch.tensor(np.asarray(found.means)),
        "log_scales": torch.tensor(np.asarray(found.scales)),
        "quats": torch.tensor(np.asarray(found.quats)),
        "opacity_logits": torch.tensor(np.asarray(found.opacities)).view(-1, 1),
        "sh": torch.tensor(np.concatenate(tables, axis=1)),
    }
    return model_of(path, raw, WORLD_TO_Y_UP if path.suffix == ".spz" else WORLD_TO_FILE)


def by_three(path: Path) -> GaussianModel:
    """three.js keeps covariances, and colours in bytes; harmonics above band 0 are left out here."""
    found = node("read_gaussians.mjs", path)
    assert found["matrix"] == torch.eye(4).flatten().tolist()
    tables = {
        name: torch.tensor(each["values"], dtype=torch.float32).view(-1, each["size"])
        for name, each in found["attributes"].items()
    }
    xx, xy, xz, yy, yz, zz = tables["covariance"].double().unbind(1)
    covariances = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=1).view(-1, 3, 3)
    variances, axes = torch.linalg.eigh(covariances)
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    raw = {
        "means": tables["position"],
        "log_scales": 0.5 * variances.clamp_min(1e-14).log().float(),
        "quats": quaternions_of(axes).float(),
        "opacity_logits": (tables["color"][:, 3:] / 255).logit(),
        "sh": rgb_to_sh_dc(tables["color"][:, :3] / 255)[:, None],
    }
    return model_of(path, raw, WORLD_TO_Y_UP)


def by_usd(path: Path) -> GaussianModel:
    """usd-core hands out what the stage has."""
    pxr = pytest.importorskip("pxr", reason="usd-core is not installed")
    stage = pxr.Usd.Stage.Open(str(path))
    assert pxr.UsdGeom.GetStageUpAxis(stage) == "Y" and pxr.UsdGeom.GetStageMetersPerUnit(stage) == 1.0
    prim = stage.GetDefaultPrim()
    assert prim.GetTypeName() == "ParticleField3DGaussianSplat"

    def values(name: str) -> torch.Tensor:
        return torch.tensor(np.array(prim.GetAttribute(name).Get()))

    degree = prim.GetAttribute("radiance:sphericalHarmonicsDegree").Get()
    quats = [[q.GetReal(), *q.GetImaginary()] for q in prim.GetAttribute("orientations").Get()]
    raw = {
        "means": values("positions"),
        "log_scales": values("scales").log(),
        "quats": torch.tensor(quats),
        "opacity_logits": values("opacities").view(-1, 1).logit(),
        "sh": values("radiance:sphericalHarmonicsCoefficients").view(-1, (degree + 1) ** 2, 3),
    }
    return model_of(path, raw, WORLD_TO_Y_UP)


def quaternions_of(matrices: torch.Tensor) -> torch.Tensor:
    """Unit quaternions w, x, y, z of rotation matrices (N, 3, 3): the eigenvector of Bar-Itzhack's matrix."""
    m = matrices.double()
    trace = m.diagonal(dim1=1, dim2=2).sum(dim=1)
    k = torch.zeros(len(m), 4, 4, dtype=torch.float64)
    k[:, 0, 0] = trace
    for axis, (row, column) in enumerate(((2, 1), (0, 2), (1, 0))):
        k[:, 0, axis + 1] = k[:, axis + 1, 0] = m[:, row, column] - m[:, column, row]
    k[:, 1:, 1:] = m + m.mT - trace[:, None, None] * torch.eye(3, dtype=torch.float64)
    return torch.linalg.eigh(k).eigenvectors[:, :, -1]
