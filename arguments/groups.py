"""The groups of settings, with LucidDreamer's names and defaults, and ours beside them.

A frozen dataclass is the only place where a setting has a default, a type, a unit, a range and a meaning.
"""

from dataclasses import dataclass
from pathlib import Path

from arguments.option import option

SHAP_E = ("shape", "shap-e", "shap_e", "pointe")
"""Words for ``GenerateCamParams.init_shape`` that mean Shap-E; ``pointe`` is LucidDreamer's, for its forerunner."""
METHODS = (
    "vdm", "sds", "vsd", "dreamflow", "asd", "lods", "lods_lora", "lmc", "csd", "nfsd", "ism", "ssd", "consistent3d",
)  # fmt: skip
"""The losses: each is ``guidance/<name>.py``."""
GUIDANCES = ("SD", *METHODS)
"""Words for ``GuidanceParams.guidance``; ``SD`` is LucidDreamer's and leaves the choice to ``sds``."""


@dataclass(frozen=True)
class ModelParams:
    """The run's folder, and what is augmented in the renders."""

    representation: str = option(
        "gaussians", "what is optimised: 3D Gaussians, or a picture", choices=("gaussians", "image")
    )
    workspace: str = option("debug", "name of the run: its folder under output_path")
    output_path: str = option("output", "folder that holds the folders of all runs")
    model_path: str = option("", "folder of this run; empty: output_path/workspace")
    pretrained_model_path: str | None = option(
        None, "start from the Gaussians of this .ply instead of init_shape"
    )
    sh_degree: int = option(
        0, "highest degree of spherical harmonics; 0: colour does not depend on the view", low=0, high=3
    )
    max_gaussians: int | None = option(None, "densification stops creating above this number", low=1)
    batch: int = option(
        10,
        "cameras made at a time (they share one field of view); not the views per step",
        low=1,
        high=10_000,
    )
    white_background: bool = option(True, "plain background is white, else black")
    bg_aug_ratio: float = option(
        0.5, "chance that a training render gets a random or black background", low=0, high=1
    )
    sh_deg_aug_ratio: float = option(0.1, "chance that a training render uses degree 0 only", low=0, high=1)
    shs_aug_ratio: float = option(
        0.0, "chance that a training render has noise on its colours", low=0, high=1
    )
    scale_aug_ratio: float = option(
        1.0, "chance that a training render has noise on its scales", low=0, high=1
    )

    @property
    def run_folder(self) -> Path:
        """Where everything of this run is written."""
        return Path(self.model_path) if self.model_path else Path(self.output_path) / self.workspace


@dataclass(frozen=True)
class OptimizationParams:
    """The Gaussians' optimiser, density control and regularisers."""

    iterations: int = option(5000, "training steps", unit="steps", low=1, high=10_000_000)
    position_lr_init: float = option(
        1.6e-4, "learning rate of the means at the start, times default_radius", above=0
    )
    position_lr_final: float = option(1.6e-6, "and at the end", above=0)
    feature_lr: float = option(
        0.005, "learning rate of the colours at the start (higher bands: a 20th)", above=0
    )
    feature_lr_final: float = option(0.003, "and at the end", above=0)
    opacity_lr: float = option(0.05, "learning rate of the opacities", low=0)
    scaling_lr: float = option(0.005, "learning rate of the log-scales at the start", above=0)
    scaling_lr_final: float = option(0.001, "and at the end", above=0)
    rotation_lr: float = option(0.001, "learning rate of the rotations at the start", above=0)
    rotation_lr_final: float = option(0.0002, "and at the end", above=0)
    lambda_tv: float = option(1.0, "weight of total variation of image and disparity", low=0)
    lambda_scale: float = option(1.0, "weight of the mean scale", low=0)
    geo_iter: int = option(0, "until this step only the disparity map is guided", unit="steps", low=0)
    as_latent_ratio: float = option(
        0.2, "chance per step that the disparity map is guided, not the image", low=0, high=1
    )
    warmup_iter: int = option(
        1500, "length of the annealing from max_t_range to t_range", unit="steps", low=1
    )
    densify_from_iter: int = option(100, "density control starts after this step", unit="steps", low=0)
    densify_until_iter: int = option(
        3000, "and ends before this one; 0: no density control", unit="steps", low=0
    )
    densification_interval: int = option(100, "steps between densifications", unit="steps", low=1)
    densify_grad_threshold: float = option(
        0.00075, "mean screen-space gradient (NDC units) from which to densify", low=0
    )
    densify_stats: str = option(
        "all_views",
        "views that count for densification: all of a step, or as in LucidDreamer the last",
        choices=("all_views", "last_view"),
    )
    percent_dense: float = option(
        0.003, "Gaussians are split above this share of default_radius, cloned below", low=0
    )
    prune_opacity: float = option(0.005, "Gaussians fainter than this are removed", low=0, high=1)
    opacity_reset_interval: int = option(300, "steps between opacity resets", unit="steps", low=1)
    use_progressive: bool = option(
        False, "camera ranges widen when this is FALSE (LucidDreamer's meaning, kept)"
    )
    progressive_view_iter: int = option(500, "first step at which camera ranges widen", unit="steps", low=0)
    scale_up_cameras_iter: int = option(500, "steps between widenings", unit="steps", low=1)
    scale_up_factor: float = option(0.95, "factor on the camera distance at each widening", above=0, high=1)
    fovy_scale_up_factor: tuple[float, float] = option(
        (0.75, 1.1), "factors on both ends of the field of view at each widening", above=0
    )
    phi_scale_up_factor: float = option(1.5, "factor on azimuth and polar bounds at each widening", low=1)
    save_process: bool = option(True, "write the video of the process")
    pro_frames_num: int = option(600, "frames of that video", unit="frames", low=1, high=100_000)
    pro_render_45: bool = option(False, "add a ring of cameras from above to that video")

    @property
    def relax_cameras(self) -> bool:
        """Whether the camera ranges widen during training: ``use_progressive`` reads the other way round."""
        return not self.use_progressive


@dataclass(frozen=True)
class PipelineParams:
    """The rasterizer."""

    backend: str = option(
        "auto", "kernels; auto: the fastest that the device has", choices=("auto", "cpu", "torch", "cuda")
    )
    convert_SHs_python: bool = option(False, "colour is the sigmoid of the stored value, without harmonics")
    compute_cov3D_python: bool = option(False, "compute covariances before the rasterizer, not in it")
    debug: bool = option(False, "check the rasterizer's inputs and outputs at every call")


@dataclass(frozen=True)
class GenerateCamParams:
    """Cameras, and the shape to start from (+z up, front on +y, objects about +-0.5)."""

    init_shape: str = option(
        "sphere",
        "points to start from; shape, shap-e, shap_e and (instead of Point-E) pointe: Shap-E's",
        choices=(
            "sphere",
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
        "where Shap-E is missing or makes nothing: start from a sphere with a warning, or stop",
        choices=("sphere", "stop"),
    )
    init_path: str | None = option(None, "a .ply, .obj, .glb or .stl to start from, with init_shape: file")
    init_num_pts: int = option(100_000, "points to start from", low=4, high=50_000_000)
    init_scale: float = option(1.0, "factor on the size of the starting shape", above=0, high=100)
    use_pointe_rgb: bool = option(False, "keep the starting shape's colours, else mid-grey")
    image_w: int = option(512, "width of the renders", unit="px", low=16, high=8192)
    image_h: int = option(512, "height of the renders", unit="px", low=16, high=8192)
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
    render_45: bool = option(True, "test and video cameras include a ring from above")
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


@dataclass(frozen=True)
class GuidanceParams:
    """The diffusion model, the prompt and the loss."""

    text: str = option("", "the prompt; ', front view' and the like are added to it")
    negative: str = option("", "negative prompt: the base of classifier-free guidance")
    cfg_base: str = option(
        "negative",
        "prompt of that base (LucidDreamer's, or Eq. 4's empty one)",
        choices=("negative", "empty"),
    )
    inverse_text: str = option("", "prompt of the DDIM inversion (ISM)")
    model_key: str | None = option(
        None, "toybox (comes with this program), a local folder, a .safetensors file, or a hub id"
    )
    is_safe_tensor: bool = option(False, "model_key is a single file")
    base_model_key: str | None = option(
        None, "model that lends its settings to a single file; none: those of its family, which are shipped"
    )
    prediction_type: str = option(
        "auto",
        "what the U-Net predicts; auto: as its settings say (a single file of SD 2.x: asked of the U-Net)",
        choices=("auto", "epsilon", "v_prediction"),
    )
    vae_key: str | None = option(
        None,
        "another autoencoder: a folder, a hub id, or taesd (SD 1.x and 2.x: 9 times less work, another gradient)",
    )
    LoRA_path: str | None = option(None, "LoRA or learned embedding to add to the model")
    textual_inversion_path: str | None = option(None, "textual inversion to add to the model")
    fp16: bool = option(True, "run the diffusion model in half precision (where the device can)")
    vram_O: bool = option(False, "LucidDreamer's switch for HardwareParams.memory=8gb")
    guidance: str = option(
        "SD", "the loss (docs/methods.md); SD: vdm, or sds where sds is true", choices=GUIDANCES
    )
    sds: bool = option(False, "LucidDreamer's switch for plain SDS")
    guidance_scale: float = option(7.5, "weight s in e_0 + s (e_y - e_0)")
    guidance_scale_final: float | None = option(
        None, "s at the end of the run, reached linearly (Consistent3D: 50); none: s stays"
    )
    cfg_form: str = option(
        "standard", "standard as above; paper: e_y + s (e_y - e_0), Eq. 4", choices=("standard", "paper")
    )
    lambda_guidance: float = option(1.0, "factor on the guidance's gradient", low=0)
    weighting: str = option(
        "ism",
        "w(t): sqrt((1-a)/a), 1-a, 1, or sqrt(a)(1-a)",
        choices=("ism", "sds", "uniform", "fantasia3d"),
    )
    gradient_clip: tuple[float, float] = option(
        (0.0, 0.0), "limit of the gradient's elements at the start and later; 0: none", low=0
    )
    gradient_clip_iter: int = option(
        1000, "steps from the first limit to the second (GaussianDreamer: 1.5 to 2 over 1000)", low=1
    )
    gradient_normalize: bool = option(False, "divide the gradient by its norm (CSD's first stage)")
    C_batch_size: int = option(1, "views per step", unit="views", low=1, high=1024)
    t_range: tuple[float, float] = option(
        (0.02, 0.5), "timesteps after the warm-up, as shares of the schedule", low=0, high=1, ordered=True
    )
    max_t_range: float = option(0.98, "upper end of the timesteps at the start", low=0, high=1)
    timestep_schedule: str = option(
        "warmup",
        "range of t: LucidDreamer's, ProlificDreamer's, or one falling t (DreamGaussian; HiFA)",
        choices=("warmup", "two_stage", "linear", "sqrt"),
    )
    num_train_timesteps: int | None = option(None, "length of the schedule; none: 1000", low=2, high=1000)
    timestep_per_view: bool = option(False, "one timestep per view, else one per step for all")
    noise_seed: int = option(0, "seed of noise and timesteps", low=0)
    noise_offset: float = option(
        0.0, "deviation of the noise added per channel (LucidDreamer: 0.1)", low=0, high=10
    )
    fix_noise: bool = option(False, "one noise for the whole run")
    dca: bool = option(True, "anneal the coefficient of the learned term (Eq. 18)")
    dca_cutoff: int = option(300, "timestep up to which it is annealed; 0: never", low=0, high=999)
    operator: str = option("ulite", "the learned degradation M", choices=("ulite", "linear", "ulite_noise"))
    operator_input: str = option("cond", "what M reads: e_y, or the guided noise", choices=("cond", "cfg"))
    operator_lr: float = option(0.01, "learning rate of M", above=0)
    operator_init: str | None = option(
        None, "start M from that of a run (its folder) or a .safetensors file; none: random weights"
    )
    lookahead: bool = option(False, "update M before its output is used, not after")
    dca_learned: bool = option(False, "the coefficient is what M explains of the noise at that t, not Eq. 18")
    m_norm: str = option("batch", "normalisation inside M", choices=("batch", "group"))
    m_time: str = option("none", "how M is told the timestep", choices=("none", "film"))
    perpneg: bool = option(True, "Perp-Neg: push away from the prompts of other views")
    negative_w: float = option(-2.0, "Perp-Neg's base weight", high=0)
    front_decay_factor: float = option(2.0, "Perp-Neg: decay of the front prompt's weight", low=0)
    side_decay_factor: float = option(10.0, "Perp-Neg: decay of the side prompt's weight", low=0)
    lora_rank: int = option(4, "VSD, DreamFlow, ASD, LODS: rank of the LoRA", low=1, high=256)
    lora_lr: float = option(1e-4, "VSD, DreamFlow, ASD: learning rate of the LoRA", above=0)
    lora_warmup_iter: int = option(
        500, "VSD, DreamFlow, ASD: steps over which that rate rises", unit="steps", low=0
    )
    lora_camera_dropout: float = option(
        0.1, "VSD, DreamFlow, ASD: chance that the LoRA is not told the camera", low=0, high=1
    )
    dreamflow_t_range: tuple[float, float] = option(
        (0.2, 1.0),
        "DreamFlow: shares of the schedule that t falls through (inferred)",
        low=0,
        high=1,
        ordered=True,
    )
    dreamflow_inner_steps: int = option(5, "DreamFlow: steps at one t (inferred)", unit="steps", low=1)
    asd_gamma: float = option(-0.75, "ASD: weight of the discriminator's second term; 0: VSD", above=-1)
    lods_scale: float = option(1000.0, "LODS: s; its gradient is 1/s of SDS's", low=1)
    lods_lr: float = option(1e-4, "LODS: learning rate of the null embedding (3D Gaussians)", above=0)
    lods_lora_lr: float = option(5e-7, "LODS with LoRA: learning rate of the LoRA", above=0)
    lods_lora_scale: float = option(0.5, "LODS with LoRA: factor on what the LoRA adds", above=0)
    lmc_init: str | None = option(
        None, "LMC: take the corrective from a run or a .safetensors file; none: train it first"
    )
    lmc_space: str = option(
        "image",
        "LMC: what the corrective imitates, the model's image or its noise",
        choices=("image", "noise"),
    )
    lmc_bank: int = option(64, "LMC: latents to generate and train on (inferred)", low=1, high=100_000)
    lmc_sampling_steps: int = option(
        25, "LMC: DDIM steps for each (inferred)", unit="steps", low=1, high=1000
    )
    lmc_steps: int = option(2000, "LMC: steps of that training (inferred)", unit="steps", low=1)
    lmc_lr: float = option(1e-4, "LMC: learning rate of that training (inferred)", above=0)
    csd_form: str = option(
        "own", "CSD: its own bracket, or that of the paper's Table 1", choices=("own", "table")
    )
    csd_negative: tuple[float, float] = option(
        (0.0, 1.0), "CSD: weight of the negative prompt at the start and later", low=0, high=1
    )
    csd_anneal: float = option(0.5, "CSD: share of the run from the first to the second", above=0, high=1)
    nfsd_cutoff: int = option(
        200, "NFSD: timestep from which the negative prompt is subtracted", low=0, high=1000
    )
    ssd_cutoff: int = option(300, "SSD: timestep up to which it also seeks modes (inferred)", low=0, high=999)
    consistent3d_t_range: tuple[float, float] = option(
        (0.1, 0.7),
        "Consistent3D: shares of the schedule that the lower t falls through",
        low=0,
        high=1,
        ordered=True,
    )
    consistent3d_interval: tuple[float, float] = option(
        (100, 300),
        "Consistent3D: the upper t is above it by a draw from this range",
        unit="timesteps",
        low=1,
        high=999,
        ordered=True,
    )
    delta_t: int = option(80, "ISM: interval after the warm-up", unit="timesteps", low=1, high=999)
    delta_t_start: int = option(100, "ISM: interval at the start", unit="timesteps", low=1, high=999)
    annealing_intervals: bool = option(True, "ISM: anneal delta_t_start to delta_t")
    denoise_guidance_scale: float = option(1.0, "ISM: guidance inside the inversion; up to 1: none")
    xs_delta_t: int = option(200, "ISM: step of the inversion", unit="timesteps", low=1, high=999)
    xs_inv_steps: int = option(5, "ISM: most steps of the inversion", unit="steps", low=1, high=1000)
    xs_eta: float = option(0.0, "ISM: DDIM's eta", low=0, high=1)
    vis_interval: int = option(100, "steps between pictures of the process", unit="steps", low=1)

    @property
    def guidance_method(self) -> str:
        """The loss that runs: ``guidance`` with LucidDreamer's word ``SD`` resolved."""
        if self.guidance == "SD":
            return "sds" if self.sds else "vdm"
        return self.guidance

    @property
    def branches(self) -> int:
        """Texts of a view, at most: prompt and base, and Perp-Neg's two."""
        return 4 if self.perpneg else 2


@dataclass(frozen=True)
class ImageParams:
    """Text to 2D (train2d.py): the picture that is optimised in the place of Gaussians."""

    particle: str = option(
        "latent",
        "what is optimised: latents, or pixels through the encoder (artifacts, says prolific_dreamer2d)",
        choices=("latent", "pixel"),
    )
    particles: int = option(1, "pictures made at once, from one prompt", low=1, high=1024)
    steps: int = option(1000, "optimisation steps", unit="steps", low=1, high=10_000_000)
    lr: float = option(0.03, "Adam's learning rate, betas 0.9 and 0.99 (prolific_dreamer2d: 0.03)", above=0)
    picture_interval: int = option(100, "steps between pictures of the process", unit="steps", low=1)


@dataclass(frozen=True)
class HardwareParams:
    """What the machine has: memory, precision, compilation. None of it changes what is computed, but rounding."""

    memory: str = option(
        "auto",
        "what to fit into; auto: by the memory there is. Smaller ones take longer, and cap the Gaussians",
        choices=("auto", "8gb", "12gb", "24gb", "max"),
    )
    precision: str = option(
        "auto",
        "of the diffusion model; auto: float16 on CUDA where GuidanceParams.fp16 is true, else float32",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    compile: str = option(
        "auto",
        "compile U-Net and image encoder (a slow start, then faster); auto: on CUDA, for 1000 steps or more",
        choices=("auto", "always", "never"),
    )
