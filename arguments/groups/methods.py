"""What one method alone reads: a group each, handed to it and to no other."""

from dataclasses import dataclass

from arguments.option import option


@dataclass(frozen=True)
class VDMParams:
    """VDM with DCA: the degradation operator M and the coefficient of the learned term."""

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


@dataclass(frozen=True)
class LoRAParams:
    """The LoRA that VSD, DreamFlow and ASD learn, and LODS in its second form."""

    lora_rank: int = option(4, "rank of the LoRA", low=1, high=256)
    lora_lr: float = option(1e-4, "VSD, DreamFlow, ASD: learning rate of the LoRA", above=0)
    lora_warmup_iter: int = option(
        500, "VSD, DreamFlow, ASD: steps over which that rate rises", unit="steps", low=0
    )
    lora_camera_dropout: float = option(
        0.1, "VSD, DreamFlow, ASD: chance that the LoRA is not told the camera", low=0, high=1
    )


@dataclass(frozen=True)
class DreamFlowParams:
    """DreamFlow: its falling t."""

    dreamflow_t_range: tuple[float, float] = option(
        (0.2, 1.0),
        "shares of the schedule that t falls through (inferred)",
        low=0,
        high=1,
        ordered=True,
    )
    dreamflow_inner_steps: int = option(5, "steps at one t (inferred)", unit="steps", low=1)


@dataclass(frozen=True)
class ASDParams:
    """ASD: its discriminator."""

    asd_gamma: float = option(-0.75, "weight of the discriminator's second term; 0: VSD", above=-1)


@dataclass(frozen=True)
class LODSParams:
    """LODS, with a learned text or a LoRA for its null branch."""

    lods_scale: float = option(1000.0, "s; its gradient is 1/s of SDS's", low=1)
    lods_lr: float = option(1e-4, "learning rate of the null embedding (3D Gaussians)", above=0)
    lods_lora_lr: float = option(5e-7, "LODS with LoRA: learning rate of the LoRA", above=0)
    lods_lora_scale: float = option(0.5, "LODS with LoRA: factor on what the LoRA adds", above=0)


@dataclass(frozen=True)
class LMCParams:
    """LMC-SDS: its manifold corrective and what that is trained on."""

    lmc_init: str | None = option(
        None, "take the corrective from a run or a .safetensors file; none: train it first"
    )
    lmc_space: str = option(
        "image",
        "what the corrective imitates, the model's image or its noise",
        choices=("image", "noise"),
    )
    lmc_bank: int = option(64, "latents to generate and train on (inferred)", low=1, high=100_000)
    lmc_sampling_steps: int = option(25, "DDIM steps for each (inferred)", unit="steps", low=1, high=1000)
    lmc_steps: int = option(2000, "steps of that training (inferred)", unit="steps", low=1)
    lmc_lr: float = option(1e-4, "learning rate of that training (inferred)", above=0)


@dataclass(frozen=True)
class CSDParams:
    """CSD: its form, and the weight of the negative prompt."""

    csd_form: str = option(
        "own", "CSD's own bracket, or that of the paper's Table 1", choices=("own", "table")
    )
    csd_negative: tuple[float, float] = option(
        (0.0, 1.0), "weight of the negative prompt at the start and later", low=0, high=1
    )
    csd_anneal: float = option(0.5, "share of the run from the first to the second", above=0, high=1)


@dataclass(frozen=True)
class NFSDParams:
    """NFSD: where the negative prompt counts."""

    nfsd_cutoff: int = option(200, "timestep from which the negative prompt is subtracted", low=0, high=1000)


@dataclass(frozen=True)
class SSDParams:
    """SSD: where it also seeks modes."""

    ssd_cutoff: int = option(300, "timestep up to which it also seeks modes (inferred)", low=0, high=999)


@dataclass(frozen=True)
class Consistent3DParams:
    """Consistent3D: its two levels of t."""

    consistent3d_t_range: tuple[float, float] = option(
        (0.1, 0.7),
        "shares of the schedule that the lower t falls through",
        low=0,
        high=1,
        ordered=True,
    )
    consistent3d_interval: tuple[float, float] = option(
        (100, 300),
        "the upper t is above it by a draw from this range",
        unit="timesteps",
        low=1,
        high=999,
        ordered=True,
    )
