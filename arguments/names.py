"""From what a user writes to the dotted name of a setting."""

import difflib

from arguments.config import group_classes, settings
from utils.errors import UserError

_WITHOUT_EFFECT = {
    "LucidDreamer never reads it": """ModelParams.source_path ModelParams.images ModelParams.resolution
        ModelParams.data_device ModelParams.eval ModelParams.opt_path
        OptimizationParams.position_lr_delay_mult OptimizationParams.position_lr_max_steps
        OptimizationParams.resnet_lr OptimizationParams.resnet_lr_init OptimizationParams.resnet_lr_final
        OptimizationParams.lambda_bin OptimizationParams.lambda_sat OptimizationParams.lambda_radius
        OptimizationParams.use_control_net_iter OptimizationParams.progressive_view_init_ratio
        GenerateCamParams.angle_overhead GenerateCamParams.angle_front
        GuidanceParams.hf_key GuidanceParams.scheduler_type GuidanceParams.ddim_inv GuidanceParams.accum
        GuidanceParams.controlnet_model_key GuidanceParams.controlnet_ratio""",
    "the top-level device is meant": "GenerateCamParams.device GuidanceParams.g_device",
    "the kernels compute covariances": "PipelineParams.compute_cov3D_python",
    "the suffix of model_key says it": "GuidanceParams.is_safe_tensor",
}

WITHOUT_EFFECT = {name: reason for reason, names in _WITHOUT_EFFECT.items() for name in names.split()}
"""Keys of LucidDreamer's that are accepted and change nothing, and why."""

MOVED = {
    f"GuidanceParams.{key}": f"{group}.{key}"
    for group, keys in {
        "VDMParams": """dca dca_cutoff dca_learned operator operator_input operator_lr operator_init lookahead
            m_norm m_time""",
        "LoRAParams": "lora_rank lora_lr lora_warmup_iter lora_camera_dropout",
        "DreamFlowParams": "dreamflow_t_range dreamflow_inner_steps",
        "ASDParams": "asd_gamma",
        "LODSParams": "lods_scale lods_lr lods_lora_lr lods_lora_scale",
        "LMCParams": "lmc_init lmc_space lmc_bank lmc_sampling_steps lmc_steps lmc_lr",
        "CSDParams": "csd_form csd_negative csd_anneal",
        "NFSDParams": "nfsd_cutoff",
        "SSDParams": "ssd_cutoff",
        "Consistent3DParams": "consistent3d_t_range consistent3d_interval",
    }.items()
    for key in keys.split()
}
"""Former places of settings, in files and run folders of before, to their present ones."""

_UNDERSCORED = frozenset({"_source_path", "_model_path", "_images", "_resolution", "_white_background"})


def name_in_group(group: str, key: object, where: str) -> str:
    """The dotted name of a key found inside a group (`""`: at the top level).

    Raises:
        UserError: there is no such key; names the nearest.
    """
    bare = key.removeprefix("_") if isinstance(key, str) and key in _UNDERSCORED else key
    name = f"{group}.{bare}" if group else str(bare)
    if name in settings() or name in WITHOUT_EFFECT or name in MOVED:
        return name
    if group and group not in group_classes():
        raise UserError(f"{where}: expected the name of a group, got {group!r}{hint(group)}")
    place = f"the keys of {group}" if group else "the groups and top-level keys"
    raise UserError(f"{where}: expected one of {place}, got {str(key)!r}{hint(str(key), group)}")


def name_of(key: str, where: str) -> str:
    """The dotted name of a key given with or without its group.

    Raises:
        UserError: there is no such key, or several groups have it.
    """
    group, _, bare = key.rpartition(".")
    if group or key in settings() or key in WITHOUT_EFFECT:
        return name_in_group(group, bare, where)
    owners = [name for name in settings() if name.endswith(f".{key.removeprefix('_')}")]
    owners = owners or sorted(name for name in WITHOUT_EFFECT if name.endswith(f".{key.removeprefix('_')}"))
    if len(owners) == 1:
        return name_in_group(owners[0].partition(".")[0], key, where)
    if owners:
        raise UserError(
            f"{where}: expected one setting, got {key!r}, in several groups; write {' or '.join(owners)}"
        )
    if key in group_classes():
        raise UserError(f"{where}: expected the name of a setting, got the group {key}; write {key}.KEY")
    raise UserError(f"{where}: expected the name of a setting, got {key!r}{hint(key)}")


def hint(key: str, group: str = "") -> str:
    """`; did you mean ...?` for a mistaken key, or where the list of all is."""
    known = [*group_classes(), *settings()]
    elsewhere = [name for name in known if name.rpartition(".")[2] == key]
    near = {name.rpartition(".")[2].lower(): name for name in known}
    if group in group_classes():
        near |= {name.rpartition(".")[2].lower(): name for name in known if name.startswith(f"{group}.")}
    found = elsewhere or [near[word] for word in difflib.get_close_matches(key.lower(), near, n=1)]
    return f"; did you mean {' or '.join(found)}?" if found else "; python train.py --help lists all"
