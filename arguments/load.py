"""From the command line and a YAML file to a checked Config."""

import argparse
import copy
import dataclasses
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NoReturn

import yaml

from arguments.check import check_together, check_value, complaint, has_form, kind_of, shown
from arguments.config import Config, group_classes, settings, value_of
from arguments.describe import describe
from arguments.flags import FLAGS, UPSTREAM_FLAGS, Command
from arguments.names import MOVED, WITHOUT_EFFECT, name_in_group, name_of
from arguments.presets import PRESETS
from arguments.yaml_text import LARGEST, read_yaml
from utils.console import write_out
from utils.errors import UserError
from utils.inputs import regular_file
from utils.paths import user_path

log = logging.getLogger(__name__)

COMMAND_LINE, PYTHON = "command line", "overrides"
PLACE = ("ModelParams.output_path", "ModelParams.workspace", "ModelParams.model_path")
"""The settings that say where a run is: a folder that was moved has others and is the same run."""


@dataclass(frozen=True)
class Entry:
    """One setting as it was given.

    Attributes:
        given: its dotted name, as written; a group's key may have moved since to a group of its own.
        where: a file, the command line or a preset.
    """

    given: str
    value: object
    where: str

    @property
    def name(self) -> str:
        """The dotted name of the setting that is meant."""
        return MOVED.get(self.given, self.given)


def load(
    argv: list[str] | None = None, changes: Mapping[str, object] | None = None
) -> tuple[Config, Command]:
    """Read `--opt FILE.yaml`, apply `Group.key=value` and `key=value` on top, and check everything.

    Args:
        argv: the words after `train.py`; those of the process if None.
        changes: settings by name, with or without their group, on top of all. Text is read as on the command line
            where the setting is none.

    Raises:
        UserError: anything that a user can have got wrong, in one line.
        SystemExit: after `--help` is printed.
    """
    flags, words = _parse(argv)
    overrides = [_override(word) for word in words]
    for flag in ("--seed", *UPSTREAM_FLAGS):
        value = getattr(flags, flag.removeprefix("--"))
        if value is not None:
            overrides.append(_override(f"{flag.removeprefix('--')}={value}"))
    if flags.offline:
        overrides.append(Entry("offline", True, COMMAND_LINE))
    if flags.viewer:
        overrides.append(Entry("viewer", True, COMMAND_LINE))
    _remark_twice(overrides)
    overrides += [_change(key, value) for key, value in (changes or {}).items()]
    path = _settings_file(flags.opt) if flags.opt is not None else None
    entries = read_file(path) if path else []
    entries += _preset(flags.preset, entries) + overrides
    config = _one_seed(build(entries), entries)
    check_together(config, {entry.name: entry.where for entry in entries}, complete=not flags.print_config)
    _remark(config, entries)
    command = Command(
        opt=path,
        names_folder=any(entry.name in PLACE for entry in overrides),
        print_config=flags.print_config,
        dry_run=flags.dry_run,
        resume=flags.resume,
        debug=flags.debug,
        quiet=flags.quiet,
        force=flags.force,
    )
    return config, command


def _one_seed(config: Config, entries: list[Entry]) -> Config:
    """`seed` is the seed of everything: of noise and timesteps, too, unless `noise_seed` is given."""
    if any(entry.name == "GuidanceParams.noise_seed" for entry in entries):
        return config
    guidance = dataclasses.replace(config.GuidanceParams, noise_seed=config.seed)
    return dataclasses.replace(config, GuidanceParams=guidance)


def _preset(name: str | None, entries: list[Entry]) -> list[Entry]:
    """What a preset makes of the settings of a file; none gets below its least."""
    if name is None:
        return []
    if name not in PRESETS:
        raise UserError(
            f"{COMMAND_LINE}: --preset: expected one of {', '.join(PRESETS)}, got {name!r}; leave it out"
        )
    before = build(entries)
    values: dict[str, object] = {"preset": name}
    for key, share in PRESETS[name].items():
        least = settings()[key].metadata["option"].low or 0
        values[key] = max(round(share * value_of(before, key)), int(least))  # type: ignore[operator]
    return [Entry(key, value, f"--preset {name}") for key, value in values.items()]


def read_file(path: Path) -> list[Entry]:
    """The entries of a YAML file, read as YAML 1.1 (`100_000` is a number), as LucidDreamer reads it."""
    tree = _parse_yaml(path)
    where = str(path)
    if not isinstance(tree, dict) or not tree:
        found = "nothing" if not tree else f"a {type(tree).__name__}"
        raise UserError(f"{where}: expected groups such as GuidanceParams, got {found}; see configs/cat.yaml")
    entries = []
    for group, content in tree.items():
        if group not in group_classes():
            entries.append(Entry(name_in_group("", group, where), content, where))
        elif isinstance(content, dict):
            for key, value in content.items():
                entries.append(Entry(name_in_group(group, key, where), value, where))
        elif content is not None:
            raise UserError(
                f"{where}: {group}: expected 'key: value' lines, got {shown(content)}; indent its keys"
            )
    _refuse_twice(entries)
    return entries


def _refuse_twice(entries: list[Entry]) -> None:
    """Refuse a file that gives one setting under two names, of which one would be dropped without a word."""
    given: dict[str, Entry] = {}
    for entry in entries:
        before = given.setdefault(entry.name, entry)
        if before is not entry and entry.name not in WITHOUT_EFFECT:
            same = before.given == entry.given  # but for LucidDreamer's underscore
            found = "got it twice" if same else f"got it as {before.given} and as {entry.given}"
            raise UserError(f"{entry.where}: {entry.name}: expected it once, {found}; keep one of the two")


def _remark_twice(entries: list[Entry]) -> None:
    """Say of a setting that a command line gives twice which value counts."""
    last = {entry.name: entry for entry in entries}
    for name in dict.fromkeys(entry.name for entry in entries if entry.value != last[entry.name].value):
        log.warning("%s: %s is given more than once; %s counts", COMMAND_LINE, name, shown(last[name].value))


def differences(path: Path, config: Config) -> list[str]:
    """The names of the settings that a run's settings file, also one of an earlier version, has otherwise.

    Raises:
        UserError: the file cannot be read.
    """
    before = build(read_file(path))
    return sorted(name for name in settings() if value_of(before, name) != value_of(config, name))


def build(entries: list[Entry]) -> Config:
    """A Config from entries, later ones winning, each of the right type and within its range."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = copy.deepcopy(_defaults())
    final = {entry.name: entry for entry in entries if entry.name not in WITHOUT_EFFECT}
    for entry in final.values():
        try:
            if not has_form(settings()[entry.name], entry.value):
                raise ValueError
            default = value_of(_plain_defaults(), entry.name)
            if (
                type(entry.value) is not type(default) or entry.value != default
            ):  # most of a run's own file are
                OmegaConf.update(tree, entry.name, entry.value)
        except (OmegaConfBaseException, ValueError, OverflowError) as error:
            raise complaint(entry.name, entry.value, entry.where) from error
    config: Any = OmegaConf.to_object(tree)
    for entry in final.values():
        check_value(entry.name, value_of(config, entry.name), entry.where)
    return config


@cache
def _plain_defaults() -> Config:
    return Config()


@cache
def _defaults() -> Any:
    """The defaults as a typed OmegaConf tree that can be written to; kept, as making it takes most of a load."""
    from omegaconf import OmegaConf

    tree: Any = OmegaConf.structured(Config)
    OmegaConf.set_readonly(tree, False)
    for group in group_classes():
        OmegaConf.set_readonly(tree[group], False)
    return tree


def _parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = _Parser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", dest="help", action="store_true")
    for flag, (value, _) in FLAGS.items():
        if value:
            parser.add_argument(flag)
        else:
            parser.add_argument(flag, action="store_true")
    for flag in UPSTREAM_FLAGS:
        parser.add_argument(flag)
    flags, words = parser.parse_known_args(argv)
    if flags.help:
        write_out(describe() + "\n")
        raise SystemExit(0)
    return flags, words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{COMMAND_LINE}: {message}; python train.py --help lists all")


def _override(word: str) -> Entry:
    key, equals, text = word.partition("=")
    if word.startswith("-"):
        near = difflib.get_close_matches(key, [*FLAGS, *UPSTREAM_FLAGS], n=1)
        known = key.lstrip("-") in {name.rpartition(".")[2] for name in settings()} | settings().keys()
        advice = f"write {key.lstrip('-')}=VALUE" if known else "python train.py --help lists all"
        advice = f"did you mean {near[0]}?" if near and not known else advice
        raise UserError(f"{COMMAND_LINE}: expected key=value or a flag, got {word!r}; {advice}")
    if not equals:
        advice = f"--opt {word}" if word.endswith((".yaml", ".yml")) else "key='value' where it has spaces"
        raise UserError(f"{COMMAND_LINE}: expected key=value or a flag, got {word!r}; write {advice}")
    name = name_of(key, COMMAND_LINE)
    return Entry(name, _override_value(name, _as_utf8(text)), COMMAND_LINE)


def _as_utf8(text: str) -> str:
    """A word whose bytes the locale could not read (as `LC_ALL=C`), read as UTF-8 as all files are."""
    try:
        return text.encode("ascii", "surrogateescape").decode()
    except UnicodeError:
        return text  # it was read, or is no UTF-8


def _change(key: object, value: object) -> Entry:
    """A setting as Python gives it: numbers and arrays of NumPy and torch are plain ones, a path is its text."""
    name = name_of(str(key), PYTHON)
    if isinstance(value, PurePath):
        value = _as_utf8(str(value))
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, list):
        value = [item.tolist() if hasattr(item, "tolist") else item for item in value]
    if isinstance(value, str) and not _takes_text(name):
        value = _override_value(name, value)
    return Entry(name, value, PYTHON)


def _takes_text(name: str) -> bool:
    name = MOVED.get(name, name)
    return name in settings() and kind_of(settings()[name])[0] is str


def _override_value(name: str, text: str) -> object:
    """Text stays as it is; everything else is read as YAML, so that it means what it means in a file."""
    name = MOVED.get(name, name)
    if name in WITHOUT_EFFECT:
        return text
    kind, optional = kind_of(settings()[name])
    if kind is str and not (optional and text == "null"):
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        return text


def _parse_yaml(path: Path) -> object:
    try:
        if regular_file(path).stat().st_size > LARGEST:
            raise UserError(f"{path}: expected settings of at most {LARGEST} bytes, got more; check the path")
        return read_yaml(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"{path}: expected UTF-8 text, got byte {byte:#x}; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: expected YAML, got {_yaml_problem(error)}; mend that line") from error


def _settings_file(name: str) -> Path:
    """The path of `--opt`; where there is no such file, the nearest name is told."""
    path = user_path(name, "--opt")
    if path.exists():
        return path
    beside = sorted(str(file) for folder in {path.parent, Path("configs")} for file in folder.glob("*.yaml"))
    near = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else "see the folder configs/"
    raise UserError(f"{path}: expected a settings file, found none; {advice}")


def _yaml_problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        problem = str(error.problem).removeprefix("but ")
        return f"{problem} at line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _remark(config: Config, entries: list[Entry]) -> None:
    """Say once which keys have no effect, which have moved, and that LucidDreamer's word for its loss means ours."""
    idle = [entry for entry in entries if entry.name in WITHOUT_EFFECT]
    if idle:
        named: dict[str, list[str]] = {}
        for entry in idle:
            named.setdefault(WITHOUT_EFFECT[entry.name], []).append(entry.name)
        reasons = "; ".join(
            f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in named.items()
        )
        log.warning("%s: these keys have no effect and are ignored: %s", idle[0].where, reasons)
    moved = [entry for entry in entries if entry.given in MOVED]
    if moved:
        names = ", ".join(dict.fromkeys(f"{entry.given} is now {entry.name}" for entry in moved))
        log.info("%s: taken from their former place: %s", moved[0].where, names)
    if config.GuidanceParams.guidance == "SD" and not config.GuidanceParams.sds:
        log.warning(
            "guidance: SD runs VDM with DCA (LucidDreamer's ISM was replaced); "
            "set GuidanceParams.guidance to choose"
        )
