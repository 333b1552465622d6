"""Cameras, and the shape to start from."""

from dataclasses import dataclass

from arguments.option import option

SHAP_E = ("shape", "shap-e", "shap_e", "pointe")
"""Words for `init_shape` that mean Shap-E; `pointe` is LucidDreamer's, for its forerunner."""


@dataclass(frozen=True)
class GenerateCamParams:
    """Cameras, and the shape to start from (+z up, front on +y, objects about +-0.5)."""

    init_shape: str = option(
        "sphere",
        "points to start from; ball is even, sphere dense in the middle; shape, shap-e, shap_e and (instead of "
        "Point-E) pointe: Shap-E's",
        choices=(
            "sphere",
            "ball",
            "box",
            "rectangle_x",
            "rectangle_z",
            "scene",
            "shape",
            "shap-e",
            "shap_e",
            "pointe",
            "file",
        ),
    )
    init_prompt: str = option("", "prompt for Shap-E; empty: text")
    shape_model: str = option("shap-e", "Shap-E: its name, a local folder or a hub id")
    shape_guidance: float = option(15.0, "Shap-E: classifier-free guidance", above=0)
    shape_steps: int = option(64, "Shap-E: sampling steps", unit="steps", low=1, high=1000)
    init_fallback: str = option(
        "sphere",
        "if Shap-E is missing or produces no shape: start from a sphere with a warning, or stop",
        choices=("sphere", "stop"),
    )
    init_path: str | None = option(None, "a .ply, .obj, .glb or .stl to start from, with init_shape: file")
    init_num_pts: int = option(100_000, "points to start from", low=4, high=50_000_000)
    init_scale: float = option(1.0, "factor on the size of the starting shape", above=0, high=100)
    use_pointe_rgb: bool = option(False, "keep the starting shape's colours, else mid-grey")
    image_w: int = option(
        512, "width of the renders; the prior sees squares of it", unit="px", low=16, high=8192
    )
    image_h: int = option(
        512,
        "height of test views and videos, which are drawn up to 4 times as large, up to 512 px",
        unit="px",
        low=16,
        high=8192,
    )
    SSAA: int = option(1, "supersampling factor of the training renders", low=1, high=4)
    radius_range: tuple[float, float] = option(
        (5.2, 5.5), "camera distance at the start", unit="world units", above=0.2, ordered=True
    )
    max_radius_range: tuple[float, float] = option(
        (3.5, 5.0),
        "floors that both ends of radius_range shrink to",
        unit="world units",
        above=0.2,
        ordered=True,
    )
    default_radius: float = option(
        3.5, "camera distance of tests and videos; extent of the scene", unit="world units", above=0.2
    )
    theta_range: tuple[float, float] = option(
        (45.0, 105.0),
        "polar angle from +z at the start; 90: horizon",
        unit="deg",
        low=0,
        high=180,
        ordered=True,
    )
    max_theta_range: tuple[float, float] = option(
        (45.0, 105.0), "widest polar angle", unit="deg", low=0, high=180, ordered=True
    )
    phi_range: tuple[float, float] = option(
        (-180.0, 180.0),
        "azimuth at the start; 0: front, 90: +x",
        unit="deg",
        low=-360,
        high=360,
        ordered=True,
    )
    max_phi_range: tuple[float, float] = option(
        (-180.0, 180.0), "widest azimuth", unit="deg", low=-360, high=360, ordered=True
    )
    fovy_range: tuple[float, float] = option(
        (0.32, 0.60), "field of view at the start", unit="rad", above=0, high=3, ordered=True
    )
    max_fovy_range: tuple[float, float] = option(
        (0.16, 0.60), "widest field of view", unit="rad", above=0, high=3, ordered=True
    )
    rand_cam_gamma: float = option(
        1.0, "1: angles are uniform; above: they gather in the middle", above=0, high=100
    )
    uniform_sphere_rate: float = option(0.0, "chance of a direction from the whole sphere", low=0, high=1)
    default_polar: float = option(90.0, "polar angle of test and video cameras", unit="deg", low=0, high=180)
    default_azimuth: float = option(0.0, "azimuth that counts as the front", unit="deg", low=-360, high=360)
    default_fovy: float = option(0.55, "field of view of test and video cameras", unit="rad", above=0, high=3)
    render_45: bool = option(True, "test cameras include a ring from above; videos always do")
    jitter_pose: bool = option(True, "disturb the training cameras")
    jitter_center: float = option(
        0.05, "full width of the disturbance of their position", unit="world units", low=0
    )
    jitter_target: float = option(0.05, "deviation of the point they look at", unit="world units", low=0)
    jitter_up: float = option(0.01, "deviation of their up vector", low=0)

    @property
    def init_from_text(self) -> bool:
        """Whether Shap-E makes the start shape."""
        return self.init_shape in SHAP_E
