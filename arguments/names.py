"""From what a user writes to the dotted name of a setting."""

import difflib

from arguments.config import group_classes, settings
from utils.errors import UserError

_WITHOUT_EFFECT = {
    "ModelParams": "source_path images resolution data_device eval opt_path",
    "OptimizationParams": """position_lr_delay_mult position_lr_max_steps
        resnet_lr resnet_lr_init resnet_lr_final lambda_bin lambda_sat lambda_radius
        use_control_net_iter progressive_view_init_ratio""",
    "GenerateCamParams": "angle_overhead angle_front device",
    "GuidanceParams": """g_device hf_key scheduler_type ddim_inv controlnet_model_key controlnet_ratio
        accum""",
}

WITHOUT_EFFECT = frozenset(
    f"{group}.{key}" for group, keys in _WITHOUT_EFFECT.items() for key in keys.split()
)
"""Keys that LucidDreamer declares and never reads, or overwrites by the top-level device."""

_UNDERSCORED = frozenset({"_source_path", "_model_path", "_images", "_resolution", "_white_background"})


def name_in_group(group: str, key: object, where: str) -> str:
    """The dotted name of a key found inside a group (``""``: at the top level).

    Raises:
        UserError: there is no such key; names the nearest.
    """
    bare = key.removeprefix("_") if isinstance(key, str) and key in _UNDERSCORED else key
    name = f"{group}.{bare}" if group else str(bare)
    if name in settings() or name in WITHOUT_EFFECT:
        return name
    if group and group not in group_classes():
        names = ", ".join(group_classes())
        raise UserError(f"{where}: expected one of the groups {names}, got {group!r}{hint(group)}")
    place = f"the keys of {group}" if group else "the groups and top-level keys"
    raise UserError(f"{where}: expected one of {place}, got {str(key)!r}{hint(str(key), group)}")


def name_of(key: str, where: str) -> str:
    """The dotted name of a key given with or without its group.

    Raises:
        UserError: there is no such key, or several groups have it.
    """
    group, _, bare = key.rpartition(".")
    if group or key in settings():
        return name_in_group(group, bare, where)
    owners = [name for name in settings() if name.endswith(f".{key.removeprefix('_')}")]
    owners = owners or sorted(name for name in WITHOUT_EFFECT if name.endswith(f".{key.removeprefix('_')}"))
    if len(owners) == 1:
        return name_in_group(owners[0].partition(".")[0], key, where)
    if owners:
        raise UserError(
            f"{where}: expected one setting, got {key!r}, in several groups; write {' or '.join(owners)}"
        )
    raise UserError(f"{where}: expected the name of a setting, got {key!r}{hint(key)}")


def hint(key: str, group: str = "") -> str:
    """``; did you mean ...?`` for a mistaken key, or where the list of all is."""
    known = [*group_classes(), *settings()]
    elsewhere = [name for name in known if name.rpartition(".")[2] == key]
    near = {name.rpartition(".")[2].lower(): name for name in known}
    if group in group_classes():
        near |= {name.rpartition(".")[2].lower(): name for name in known if name.startswith(f"{group}.")}
    found = elsewhere or [near[word] for word in difflib.get_close_matches(key.lower(), near, n=1)]
    return f"; did you mean {' or '.join(found)}?" if found else "; python train.py --help lists all"
