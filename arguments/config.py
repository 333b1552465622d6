"""All settings of a run in one object, and the YAML that gives it back."""

import dataclasses
from dataclasses import field
from functools import cache

import yaml

from arguments import groups
from arguments.option import option
from arguments.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Config:
    """The run as a whole."""

    ModelParams: groups.ModelParams = field(default_factory=groups.ModelParams)
    OptimizationParams: groups.OptimizationParams = field(default_factory=groups.OptimizationParams)
    PipelineParams: groups.PipelineParams = field(default_factory=groups.PipelineParams)
    GenerateCamParams: groups.GenerateCamParams = field(default_factory=groups.GenerateCamParams)
    GuidanceParams: groups.GuidanceParams = field(default_factory=groups.GuidanceParams)
    VDMParams: groups.VDMParams = field(default_factory=groups.VDMParams)
    LoRAParams: groups.LoRAParams = field(default_factory=groups.LoRAParams)
    DreamFlowParams: groups.DreamFlowParams = field(default_factory=groups.DreamFlowParams)
    ASDParams: groups.ASDParams = field(default_factory=groups.ASDParams)
    LODSParams: groups.LODSParams = field(default_factory=groups.LODSParams)
    LMCParams: groups.LMCParams = field(default_factory=groups.LMCParams)
    CSDParams: groups.CSDParams = field(default_factory=groups.CSDParams)
    NFSDParams: groups.NFSDParams = field(default_factory=groups.NFSDParams)
    SSDParams: groups.SSDParams = field(default_factory=groups.SSDParams)
    Consistent3DParams: groups.Consistent3DParams = field(default_factory=groups.Consistent3DParams)
    FieldParams: groups.FieldParams = field(default_factory=groups.FieldParams)
    ImageParams: groups.ImageParams = field(default_factory=groups.ImageParams)
    HardwareParams: groups.HardwareParams = field(default_factory=groups.HardwareParams)
    seed: int = option(
        0,
        "seed of every random choice, including noise and timesteps unless noise_seed is set",
        low=0,
        high=2**32 - 1,
    )
    device: str = option("auto", "where to run: auto, cpu, mps, cuda or cuda:1")
    offline: bool = option(False, "never ask a hub for weights")
    viewer: bool = option(False, "show the run in a browser on this machine as it grows")
    port: int = option(8080, "port of that viewer, or the next free one", low=1, high=65535)
    preset: str = option("", "a label: the --preset that made these settings", choices=("", *PRESETS))
    test_ratio: int = option(5, "test pictures this many times per run", low=1)
    save_ratio: int = option(2, "save the Gaussians this many times per run", low=1)
    checkpoint_interval: int = option(500, "steps between checkpoints", unit="steps", low=1)
    log_interval: int = option(10, "steps between lines of metrics.jsonl", unit="steps", low=1)
    save_video: bool = option(True, "write a turntable video with each set of test pictures")
    page: bool = option(True, "write index.html, the run's page, when it is finished")
    video_frames: int = option(120, "frames of one turn of that video", unit="frames", low=1, high=10_000)

    @property
    def iterations(self) -> int:
        """Steps of the run, whatever is optimised."""
        return self.ImageParams.steps if self._is_picture else self.OptimizationParams.iterations

    @property
    def picture_interval(self) -> int:
        """Steps between pictures of the process, whatever is optimised."""
        return self.ImageParams.picture_interval if self._is_picture else self.GuidanceParams.vis_interval

    @property
    def _is_picture(self) -> bool:
        return self.ModelParams.representation == "image"

    @property
    def is_field(self) -> bool:
        """Whether a radiance field is optimised."""
        return self.ModelParams.representation in ("grid", "hash")

    @property
    def starts_from_text(self) -> bool:
        """Whether Shap-E makes what the run starts from."""
        if self._is_picture or self.ModelParams.pretrained_model_path:
            return False
        return self.GenerateCamParams.init_from_text


@cache
def group_classes() -> dict[str, type]:
    """The groups by name, in order."""
    return {f.name: getattr(groups, f.name) for f in dataclasses.fields(Config) if "option" not in f.metadata}


@cache
def settings() -> dict[str, dataclasses.Field]:
    """Every setting by its dotted name (`GuidanceParams.text`, `seed`)."""
    named = {f.name: f for f in dataclasses.fields(Config) if "option" in f.metadata}
    for group, kind in group_classes().items():
        named |= {f"{group}.{f.name}": f for f in dataclasses.fields(kind)}
    return named


def value_of(config: Config, name: str) -> object:
    """The value of a setting by its dotted name."""
    group, _, key = name.rpartition(".")
    return getattr(getattr(config, group) if group else config, key)


def to_yaml(config: Config) -> str:
    """Every setting as YAML; `load` gives the same Config from it."""
    tree = {name: dataclasses.asdict(getattr(config, name)) for name in group_classes()}
    for group in tree.values():
        group.update({key: list(value) for key, value in group.items() if isinstance(value, tuple)})
    tree |= {name: getattr(config, name) for name in settings() if "." not in name}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)
