"""OpenUSD's `ParticleField3DGaussianSplat` (26.03 and newer), written by usd-core: y up, front +z, metres.

Scales and opacities are activated; harmonics lie Gaussian by Gaussian, as coefficients whose colours are as displayed.
`displayColor`, for what knows no Gaussians, is linear light.
"""

from pathlib import Path
from typing import Any

from scene.frame import WORLD_TO_Y_UP
from scene.gaussian_model import GaussianModel
from scene.raw_gaussians import raw_table
from utils.errors import UserError
from utils.files import atomic
from utils.spherical_harmonics import sh_dc_to_rgb
from utils.srgb import srgb_to_linear

INSTALL = 'python -m pip install -c constraints.txt ".[usd]"'


def library() -> Any:
    """usd-core, with its schema for Gaussians.

    Raises:
        UserError: it is not installed, or older than 26.03.
    """
    try:
        from pxr import UsdVol
    except ImportError as error:
        raise UserError(f"--format usd: needs usd-core, which is not installed; run `{INSTALL}`") from error
    if not hasattr(UsdVol, "ParticleField3DGaussianSplat"):
        raise UserError(f"--format usd: needs usd-core 26.3 or newer, got an older one; run `{INSTALL}`")
    return UsdVol


def write(path: Path, model: GaussianModel) -> None:
    """Write a stage with one prim, `/Gaussians`, its default.

    Raises:
        UserError: usd-core is not here, a parameter is not finite, or the file cannot be written.
    """
    splats = library().ParticleField3DGaussianSplat
    from pxr import Gf, Tf, Usd, UsdGeom, Vt

    raw = raw_table(path, model, WORLD_TO_Y_UP)
    means, quats, sh = raw["means"], raw["quats"], raw["sh"]
    with atomic(path) as temporary:
        try:
            stage = Usd.Stage.CreateNew(str(temporary))
            UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
            UsdGeom.SetStageMetersPerUnit(stage, 1.0)
            prim = splats.Define(stage, "/Gaussians")
            stage.SetDefaultPrim(prim.GetPrim())
            prim.CreatePositionsAttr(Vt.Vec3fArray.FromNumpy(means.numpy()))
            prim.CreateOrientationsAttr(Vt.QuatfArray([Gf.Quatf(*each) for each in quats.tolist()]))
            prim.CreateScalesAttr(Vt.Vec3fArray.FromNumpy(raw["log_scales"].exp().numpy()))
            prim.CreateOpacitiesAttr(
                Vt.FloatArray.FromNumpy(raw["opacity_logits"].sigmoid().flatten().numpy())
            )
            prim.CreateRadianceSphericalHarmonicsDegreeAttr(model.sh_degree)
            harmonics = prim.CreateRadianceSphericalHarmonicsCoefficientsAttr(
                Vt.Vec3fArray.FromNumpy(sh.flatten(0, 1).numpy())
            )
            UsdGeom.Primvar(harmonics).SetElementSize(sh.shape[1])
            UsdGeom.Primvar(harmonics).SetInterpolation(UsdGeom.Tokens.vertex)
            light = srgb_to_linear(sh_dc_to_rgb(sh[:, 0]))
            colors = UsdGeom.Gprim(prim).CreateDisplayColorPrimvar(UsdGeom.Tokens.vertex)
            colors.Set(Vt.Vec3fArray.FromNumpy(light.numpy()))
            reach = 3 * raw["log_scales"].exp().amax(dim=1, keepdim=True)
            box = [(means - reach).amin(dim=0), (means + reach).amax(dim=0)]
            prim.CreateExtentAttr(Vt.Vec3fArray([Gf.Vec3f(*corner.tolist()) for corner in box]))
            stage.GetRootLayer().Save()
        except Tf.ErrorException as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(
                f"{path}: cannot be written ({said}); free space or choose another folder"
            ) from error
