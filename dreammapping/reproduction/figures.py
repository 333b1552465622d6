"""The paper's figures and tables that compare runs: which variants stand side by side, and what is compared.

A variant is a name and its settings; two figures that have the same variant have the same runs.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreammapping.reproduction.methods import METHODS, settings_of
from utils.repository import QUICKSTART, ROOT

Kind = Literal["gaussians", "field", "image"]
CONFIGS = ROOT / "configs"
TOYBOX_SETTINGS: dict[Kind, Path] = {
    "gaussians": QUICKSTART,
    "field": CONFIGS / "field" / "quickstart.yaml",
    "image": CONFIGS / "image" / "toybox.yaml",
}
PAPER_SETTINGS: dict[Kind, Path] = {
    "gaussians": CONFIGS / "hamburger.yaml",
    "field": CONFIGS / "field" / "dreammapping.yaml",
    "image": CONFIGS / "image" / "sd21.yaml",
}
"""Of every other prior: the paper's own."""

Words = tuple[str, ...]
_VDM = "GuidanceParams.guidance=vdm"
_SDS = "GuidanceParams.guidance=sds"
_SDS_7 = (_SDS, "GuidanceParams.guidance_scale=7.5")
_SDS_100 = (_SDS, "GuidanceParams.guidance_scale=100")


@dataclass(frozen=True)
class Variant:
    """A column.

    Attributes:
        words: its settings beside the figure's own.
        file: a settings file that stands for both with every other prior than the toybox.
    """

    caption: str
    words: Words
    file: Path | None = None


@dataclass(frozen=True)
class Pair:
    """A comparison: the first variant's scores less the second's."""

    first: str
    second: str
    measure: str


@dataclass(frozen=True)
class Figure:
    """A figure or a table.

    Attributes:
        place: what it is in the paper, with its caption in a few words.
        size: prompts and seeds unless others are asked for, without a GPU and with one.
        iterations: of every run, where the settings' own are not meant.
    """

    name: str
    place: str
    kind: Kind
    variants: dict[str, Variant]
    pairs: tuple[Pair, ...] = ()
    size: tuple[tuple[int, int], tuple[int, int]] = ((2, 1), (12, 4))
    iterations: int | None = None

    def settings(self, *, toybox: bool) -> Path:
        """The settings file that its variants change."""
        return (TOYBOX_SETTINGS if toybox else PAPER_SETTINGS)[self.kind]


CLIP, PRECISION = "CLIP score", "R-precision"
SATURATION, DETAIL, DETAIL_OFF = "saturation", "fine detail, dB", "off in detail, dB"
SECONDS, EVALUATIONS, BACKWARD = "seconds", "evaluations per view", "of these backward"
FID, KID, CMMD, MIND = "3D-FID", "KID x 1000", "CMMD", "MIND"
APPEARANCE = (CLIP, PRECISION, SATURATION, DETAIL, DETAIL_OFF)


def pairs(names: Sequence[tuple[str, str]], measures: Sequence[str]) -> tuple[Pair, ...]:
    """Every comparison by every measure."""
    return tuple(Pair(first, second, measure) for first, second in names for measure in measures)


VARIANTS = {
    "sds": Variant("SDS, CFG 7.5", _SDS_7),
    "sds_100": Variant("SDS, CFG 100", _SDS_100),
    "vdm_without_dca": Variant("VDM", (_VDM, "VDMParams.dca=false")),
    "vdm": Variant("VDM + DCA", (_VDM, "VDMParams.dca=true")),
    "vdm_linear": Variant("linear operator", (_VDM, "VDMParams.operator=linear")),
    "vdm_ulite_noise": Variant("U-Lite with noise", (_VDM, "VDMParams.operator=ulite_noise")),
    "vdm_cutoff_100": Variant("cut-off 100", (_VDM, "VDMParams.dca_cutoff=100")),
    "vdm_cutoff_500": Variant("cut-off 500", (_VDM, "VDMParams.dca_cutoff=500")),
    "vsd": Variant("VSD", ("GuidanceParams.guidance=vsd", *METHODS["vsd"])),
}
"""Those of several figures. `vdm` is the paper's choice in all of them: U-Lite without noise, cut-off 300."""


def _of(*names: str, **captions: str) -> dict[str, Variant]:
    """Shared variants; one may have another caption here."""
    return {
        name: dataclasses.replace(VARIANTS[name], caption=captions.get(name, VARIANTS[name].caption))
        for name in names
    }


NAMES = {
    "consistent3d": "Consistent3D",
    "dreamflow": "DreamFlow",
    "lods_lora": "LODS, LoRA",
    "vdm": VARIANTS["vdm"].caption,
}
"""Of the methods whose names are not only capitals."""


def _name(method: str) -> str:
    return NAMES.get(method, method.upper())


def image_variants(names: Sequence[str]) -> dict[str, Variant]:
    """Losses in two dimensions, each with its guidance scale after an @, or that of the settings."""
    variants = {}
    for given in names:
        name, _, scale = given.partition("@")
        words = (f"GuidanceParams.guidance={name}",)
        words += (f"GuidanceParams.guidance_scale={scale}",) if scale else ()
        variants[given] = Variant(f"{_name(name)}, CFG {scale}" if scale else _name(name), words)
    return variants


def _system(caption: str, config: str, words: Words) -> Variant:
    return Variant(caption, words, CONFIGS / "baselines" / f"{config}.yaml")


_ANNEALED = ("GuidanceParams.t_range=[0.02,0.98]", "GuidanceParams.max_t_range=0.98")
SYSTEMS = {
    "dreamfusion": _system(
        "DreamFusion", "dreamfusion_gs", (*_SDS_100, "GuidanceParams.weighting=sds", *_ANNEALED)
    ),
    "dreamgaussian": _system(
        "DreamGaussian",
        "dreamgaussian",
        (
            *_SDS_100,
            "GuidanceParams.weighting=sds",
            "GuidanceParams.timestep_schedule=linear",
            "GuidanceParams.view_words=false",
            *_ANNEALED,
        ),
    ),
    "gaussiandreamer": _system(
        "GaussianDreamer",
        "gaussiandreamer",
        (
            *_SDS_100,
            "GuidanceParams.cfg_form=paper",
            "GuidanceParams.weighting=sds",
            "GuidanceParams.timestep_schedule=two_stage",
            "GuidanceParams.t_range=[0.02,0.55]",
            "GuidanceParams.max_t_range=0.98",
        ),
    ),
    "prolificdreamer": _system("ProlificDreamer", "prolificdreamer_gs", VARIANTS["vsd"].words),
    "luciddreamer": _system("LucidDreamer", "luciddreamer", ("GuidanceParams.guidance=ism", *METHODS["ism"])),
    "vdm": Variant("DreamMapping", VARIANTS["vdm"].words),
}
"""The systems of tables 2 to 4. With the toybox each is its loss, scale and timesteps on the quick start's Gaussians,
start and cameras; with every other prior it has the settings of its own file in configs/baselines/."""
_TABLE_1 = (
    "sds",
    "vsd",
    "dreamflow",
    "asd",
    "lods",
    "lods_lora",
    "lmc",
    "csd",
    "nfsd",
    "ism",
    "ssd",
    "consistent3d",
)


def _systems(*names: str) -> dict[str, Variant]:
    return {name: SYSTEMS[name] for name in names}


def _against_ours(names: Sequence[str], measures: Sequence[str]) -> tuple[Pair, ...]:
    return pairs([("vdm", name) for name in names if name != "vdm"], measures)


_TABLE_2 = ("dreamfusion", "dreamgaussian", "gaussiandreamer", "prolificdreamer", "vdm")
_TABLE_3 = ("dreamfusion", "prolificdreamer", "dreamgaussian", "gaussiandreamer", "luciddreamer", "vdm")
_TABLE_4 = ("dreamgaussian", "prolificdreamer", "gaussiandreamer", "luciddreamer", "vdm")
_ABLATION = ((4, 2), (12, 4))
_VSD_ON_A_FIELD = CONFIGS / "field" / "prolificdreamer.yaml"
IMAGE_METHODS = ("sds@7.5", "sds@100", "vsd", "csd", "nfsd", "ism", "vdm")

FIGURES = {
    figure.name: figure
    for figure in (
        Figure(
            "fig6",
            "Figure 6: VDM and DCA against SDS at the same guidance scale",
            "gaussians",
            _of("sds", "vdm_without_dca", "vdm"),
            pairs([("vdm_without_dca", "sds"), ("vdm", "sds"), ("vdm", "vdm_without_dca")], APPEARANCE),
            _ABLATION,
        ),
        Figure(
            "fig7",
            "Figure 7: the degradation operator",
            "gaussians",
            _of("vdm_linear", "vdm_ulite_noise", "vdm", vdm="U-Lite, noise-free"),
            pairs([("vdm", "vdm_linear"), ("vdm_ulite_noise", "vdm")], APPEARANCE),
            _ABLATION,
        ),
        Figure(
            "fig8",
            "Figure 8: the cut-off of DCA",
            "gaussians",
            _of("vdm_cutoff_100", "vdm", "vdm_cutoff_500", vdm="cut-off 300"),
            pairs([("vdm", "vdm_cutoff_100"), ("vdm", "vdm_cutoff_500")], APPEARANCE),
            _ABLATION,
        ),
        Figure(
            "fig9",
            "Figure 9: on a radiance field",
            "field",
            _of("sds", "vsd", "vdm") | {"vsd": dataclasses.replace(VARIANTS["vsd"], file=_VSD_ON_A_FIELD)},
            pairs([("vdm", "sds"), ("vdm", "vsd")], (CLIP, PRECISION, SATURATION, SECONDS)),
        ),
        Figure(
            "fig10",
            "Figure 10: text to 2D; figure 14 with another --model",
            "image",
            image_variants(IMAGE_METHODS),
            pairs(
                [("vdm", "sds@7.5"), ("vdm", "sds@100"), ("vdm", "vsd")],
                (CLIP, PRECISION, SATURATION, SECONDS),
            ),
        ),
        Figure(
            "fig11",
            "Figure 11: variance of the predicted noise, and its correlation with the noise, over t",
            "gaussians",
            _of("vdm"),
        ),
        Figure(
            "table1",
            "Table 1: the methods; how often each evaluates the score model",
            "gaussians",
            {name: Variant(_name(name), words) for name, words in settings_of([*_TABLE_1, "vdm"]).items()},
            size=((1, 1), (1, 1)),
            iterations=40,
        ),
        Figure(
            "table2",
            "Table 2: CLIP score and time of the systems",
            "gaussians",
            _systems(*_TABLE_2),
            _against_ours(_TABLE_2, (CLIP, SECONDS)),
        ),
        Figure(
            "table3",
            "Table 3: 3D-FID of the systems",
            "gaussians",
            _systems(*_TABLE_3),
            _against_ours(_TABLE_3, (FID, KID)),
            ((2, 2), (12, 4)),  # all prompts of a seed are one number
        ),
        Figure("table4", "Table 4: what people prefer", "gaussians", _systems(*_TABLE_4)),
    )
}
