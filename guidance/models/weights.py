"""Which weight files of a model are loaded: for each component one whole set of one variant, safetensors first.

A variant is a word in the files' names (`fp16`, `non_ema`). Works on names alone, so that folders and hubs are alike.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

VARIANTS = ("", "fp32", "ema", "fp16", "bf16", "non_ema")
"""The better ones first; those with other names come after them, by their names."""
PICKLES = ("pytorch_model.bin", "diffusion_pytorch_model.bin")
MAY_BE_PICKLES = "shap_e_renderer"
"""Shap-E's publisher has no safetensors of this component: beside it, pickles are read too, as weights alone."""
OTHER_NETWORKS = ("transformer", "prior", "decoder")
"""What other families (Flux, SD 3, Kandinsky) have in the place of a U-Net."""

_FILE = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:\.(?P<variant>[\w-]+?))?(?:-(?P<shard>\d+)-of-(?P<count>\d+))?"
    r"(?:\.(?P<older>[\w-]+))?\.safetensors"
)
_INDEX = re.compile(
    r"(?:model|diffusion_pytorch_model)\.safetensors(?:\.(?P<older>[\w-]+))?\.index(?:\.(?P<variant>[\w-]+))?\.json"
)


@dataclass(frozen=True)
class WeightSet:
    """The files of a component, relative to its model; `index` says which of several holds which weight."""

    variant: str | None
    files: list[str]
    index: str | None = None

    @property
    def pickled(self) -> bool:
        return self.files[0].endswith(".bin")


def weight_set(names: Sequence[str], component: str, *, pickles: bool = False) -> WeightSet | None:
    """The best whole set among the files of a model; None where there is none.

    Args:
        names: of all files, relative to the model.
        component: its folder, "" for the model itself.
        pickles: take a pickle where there are no safetensors.
    """
    single: dict[str, str] = {}
    indices: dict[str, str] = {}
    shards: dict[str, dict[int, str]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for name in inside(names, component):
        base = name.rpartition("/")[2]
        if found := _INDEX.fullmatch(base):
            indices[found["variant"] or found["older"] or ""] = name
        elif found := _FILE.fullmatch(base):
            variant = found["variant"] or found["older"] or ""
            if found["shard"] is None:
                single[variant] = name
            else:
                shards[variant][int(found["shard"])] = name
                counts[variant] = max(counts.get(variant, 0), int(found["count"]))
    whole = {variant: WeightSet(variant or None, [name]) for variant, name in single.items()}
    for variant, index in indices.items():
        found = shards[variant]
        if found and sorted(found) == list(range(1, counts[variant] + 1)):
            whole[variant] = WeightSet(variant or None, [found[number] for number in sorted(found)], index)
    if whole:
        return whole[min(whole, key=_rank)]
    pickled = [name for name in inside(names, component) if name.rpartition("/")[2] in PICKLES]
    return WeightSet(None, pickled[:1]) if pickles and pickled else None


def _rank(variant: str) -> tuple[int, str]:
    return (VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS), variant)


def inside(names: Sequence[str], component: str) -> list[str]:
    """The files in a component's folder and in none below it."""
    prefix = f"{component}/" if component else ""
    return sorted(name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :])


def weight_sets(names: Sequence[str], components: Sequence[str]) -> dict[str, WeightSet]:
    """The set of each component that has one; without components, the model's own under ""."""
    pickles = MAY_BE_PICKLES in components
    found = {component: weight_set(names, component, pickles=pickles) for component in components or ("",)}
    return {component: each for component, each in found.items() if each is not None}


def missing_parts(
    names: Sequence[str], components: Sequence[str], without_weights: Sequence[str]
) -> list[str]:
    """What a model lacks and what to do, for messages; without components, it is one component itself."""
    sets = weight_sets(names, components)
    here = {component: inside(names, component) for component in components or ("",)}
    other = next((each for each in OTHER_NETWORKS if inside(names, each) and here.get("unet") == []), None)
    if other is not None:
        return [f"no unet but a {other}, so it is of another family; use a Stable Diffusion 1.x or 2.x"]
    missing = [
        f"no {component}; copy the whole folder again" for component, files in here.items() if not files
    ]
    return missing + [
        _without_weights(component, files)
        for component, files in here.items()
        if files and component not in sets and component not in without_weights
    ]


def _without_weights(component: str, names: list[str]) -> str:
    what = f"no {component or 'model'}'s weights"
    bases = [name.rpartition("/")[2] for name in names]
    if parts := [base for base in bases if base.endswith(".safetensors")]:
        return f"{what} but {parts[0]}, which alone is none or a part of them; copy the whole folder again"
    if pickles := [base for base in bases if base.endswith((".bin", ".ckpt", ".pt"))]:
        return f"{what} but {pickles[0]}, a pickle that can run code when it is read; save it as .safetensors"
    return f"{what}; copy the whole folder again"
