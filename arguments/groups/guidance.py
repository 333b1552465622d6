"""LucidDreamer's keys of the guidance, and what all methods share."""

from dataclasses import dataclass

from arguments.option import option

METHODS = (
    "vdm", "sds", "vsd", "dreamflow", "asd", "lods", "lods_lora", "lmc", "csd", "nfsd", "ism", "ssd", "consistent3d",
)  # fmt: skip
"""The losses: each is `guidance/<name>.py`."""
GUIDANCES = ("SD", *METHODS)
"""Words for `GuidanceParams.guidance`; `SD` is LucidDreamer's and leaves the choice to `sds`."""


@dataclass(frozen=True)
class GuidanceParams:
    """The diffusion model, the prompt, and what all losses share."""

    text: str = option("", "the prompt; ', front view' and the like are added to it")
    view_words: bool = option(
        True, "add them; without them all views see the bare prompt, and Perp-Neg has nothing to do"
    )
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
    noise_seed: int = option(0, "seed of noise and timesteps; left out: that of seed", low=0)
    noise_offset: float = option(
        0.0, "deviation of the noise added per channel (LucidDreamer: 0.1)", low=0, high=10
    )
    fix_noise: bool = option(False, "one noise for the whole run")
    perpneg: bool = option(True, "Perp-Neg: push away from the prompts of other views")
    negative_w: float = option(-2.0, "Perp-Neg's base weight", high=0)
    front_decay_factor: float = option(2.0, "Perp-Neg: decay of the front prompt's weight", low=0)
    side_decay_factor: float = option(10.0, "Perp-Neg: decay of the side prompt's weight", low=0)
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
        """The loss that runs: `guidance` with LucidDreamer's word `SD` resolved."""
        if self.guidance == "SD":
            return "sds" if self.sds else "vdm"
        return self.guidance

    @property
    def branches(self) -> int:
        """Texts of a view, at most: prompt and base, and Perp-Neg's two."""
        return 4 if self.perpneg else 2
