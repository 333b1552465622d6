"""The list of a sweep: every prompt with every combination of settings and every seed."""

import dataclasses
import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arguments import Config, load, to_yaml
from arguments.check import PAIR, check_text, kind_of, shown
from arguments.config import settings as all_settings
from arguments.load import read_file
from arguments.names import MOVED, name_of
from arguments.yaml_text import read_yaml
from dreammapping.sweep.slug import digest, run_name
from utils.errors import UserError
from utils.inputs import regular_file
from utils.paths import user_path

KEYS = ("opt", "prompts", "settings", "seeds", "output")
"""What a sweep file may hold."""
OWN = {
    "GuidanceParams.text": "prompts",
    "seed": "seeds",
    "ModelParams.workspace": "output",
    "ModelParams.output_path": "output",
    "ModelParams.model_path": "output",
}
"""Settings that a sweep gives by itself, and what says so."""
NOISE = "GuidanceParams.noise_seed"
MOST = 100_000
"""Runs of one list."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder, by which all else knows it.
        settings: the digest of its settings without prompt, seed and folder; `Grid.settings` has them.
        varied: those that the sweep varies, by their full names.
    """

    name: str
    prompt: str
    seed: int
    settings: str
    varied: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """The list, and each combination of settings as YAML by its digest."""

    jobs: list[Job]
    settings: dict[str, str]


@dataclass(frozen=True)
class Wish:
    """What a user asks for, not yet checked.

    Attributes:
        settings: by name as written; what is a list of values is varied.
        seeds: how many from 0, or which.
        output: the sweep's folder.
    """

    opt: Path
    prompts: list[str]
    settings: dict[str, Any]
    seeds: int | list[int]
    output: Path


def read_sweep(path: Path) -> dict[str, Any]:
    """The keys of a sweep file, its prompts as a list.

    Raises:
        UserError: it cannot be read, is no sweep, or has an unknown key or an empty list.
    """
    tree = _read(path)
    if not isinstance(tree, dict) or not tree:
        raise UserError(
            f"{path}: expected a sweep with {', '.join(KEYS)}, got {_kind(tree)}; see docs/sweeps.md"
        )
    for key, value in tree.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            advice = f"did you mean {near[0]}?" if near else "settings of runs go below settings:"
            raise UserError(f"{path}: expected one of {', '.join(KEYS)}, got {shown(key)}; {advice}")
        if value in ([], {}, None, ""):
            raise UserError(
                f"{path}: {key}: expected at least one, got {shown(value)}; fill it or leave it out"
            )
    if isinstance(tree.get("prompts"), str):
        tree["prompts"] = read_prompts(_beside(path, tree["prompts"], "prompts"))
    return tree


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, a line each; empty lines and those that begin with # are left out.

    Raises:
        UserError: it cannot be read, or has no prompt.
    """
    try:
        lines = regular_file(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected prompts as UTF-8 text, got: {error}; mend the file") from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UserError(f"{path}: expected a prompt a line, found none; write one")
    return prompts


def wish(
    path: Path | None,
    prompts: Path | None = None,
    opt: str | None = None,
    words: Iterable[str] = (),
    seeds: int | None = None,
    output: str | None = None,
) -> Wish:
    """A sweep file and what the command line says beside it, which counts more.

    Raises:
        UserError: there is no prompt, or no settings file, or something has not the form that it must have.
    """
    tree = read_sweep(path) if path is not None else {}
    where = str(path) if path is not None else "command line"
    for key in ("opt", "output"):
        if not isinstance(tree.get(key, ""), str):
            raise UserError(
                f"{where}: {key}: expected one path as text, got {shown(tree[key])}; write it in quotes"
            )
    if prompts is not None:
        tree["prompts"] = read_prompts(prompts)
    if not tree.get("prompts"):
        raise UserError(f"{where}: expected prompts, got none; give --prompts FILE, a prompt a line")
    if opt is None and "opt" not in tree:
        raise UserError(
            f"{where}: expected a settings file, got none; give --opt configs/quickstart.yaml or another"
        )
    listed = tree["prompts"]
    if not isinstance(listed, list) or not all(isinstance(prompt, str) for prompt in listed):
        raise UserError(
            f"{where}: prompts: expected a list of texts, got {shown(listed)}; put quotes around each"
        )
    given = tree.get("settings", {})
    if not isinstance(given, dict):
        raise UserError(
            f"{where}: settings: expected 'key: value' lines, got {shown(given)}; indent its keys"
        )
    given = {name_of(str(key), where): value for key, value in flat(given)}
    given |= dict(_override(word) for word in words)
    named = prompts if path is None else path
    assert named is not None
    return Wish(
        opt=user_path(opt, "--opt") if opt is not None else _beside(Path(where), tree["opt"], "opt"),
        prompts=listed,
        settings=given,
        seeds=_seeds(tree.get("seeds", 1) if seeds is None else seeds, where if seeds is None else "--seeds"),
        output=user_path(output or tree.get("output") or str(Path("output") / named.stem), "--output"),
    )


def grid(wanted: Wish) -> Grid:
    """Every run of a wish, in order: prompt by prompt, in each setting by setting, in each seed by seed.

    Raises:
        UserError: a setting is wrong, by itself or in a combination; or two runs would be the same.
    """
    fixed, lists = _varied(wanted.settings)
    short = short_names(lists)
    seeds = range(wanted.seeds) if isinstance(wanted.seeds, int) else wanted.seeds
    count = math.prod(len(values) for values in lists.values())
    if len(wanted.prompts) * count * len(seeds) > MOST:
        raise UserError(f"sweep: expected at most {MOST} runs, got {len(wanted.prompts)} prompts x {count} "
                        f"settings x {len(seeds)} seeds; make several sweeps of it")  # fmt: skip
    combined = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    texts = [settings_text(wanted.opt, {**fixed, **varied}) for varied in combined]
    jobs: dict[str, Job] = {}
    for prompt, (varied, text), seed in itertools.product(
        wanted.prompts, zip(combined, texts, strict=True), seeds
    ):
        if not prompt.strip():
            raise UserError("prompts: expected a text, got an empty one; leave it out")
        check_text(prompt, "prompts")
        name = run_name(prompt, {short[key]: _whole(value) for key, value in varied.items()}, seed)
        if name in jobs:
            raise UserError(
                f"sweep: expected every run once, got {name} twice ({shown(prompt)}); leave one out"
            )
        jobs[name] = Job(name, prompt, seed, digest(text), varied)
    return Grid(list(jobs.values()), {digest(text): text for text in texts})


def _whole(value: Any) -> str:
    """A value as `shown`, but never shortened: two long paths may differ in the middle."""
    return shown(value) if value is None or isinstance(value, bool) else repr(value).strip("'")


def settings_text(opt: Path, changes: Mapping[str, Any]) -> str:
    """All settings of a run but prompt, seed and folder, as YAML: a settings file with changes.

    Where `noise_seed` is not given, it is left out: it is the seed's. `init_prompt` counts only where the sweep gives
    it: that of the file belongs to the file's prompt, and every run starts from its own.

    Raises:
        UserError: as `load`.
    """
    given = {**changes, "GuidanceParams.text": "checked with each prompt", "seed": 0}
    config, _ = load(["--opt", str(opt)], given)
    if config.starts_from_text and "GenerateCamParams.init_prompt" not in changes:
        cameras = dataclasses.replace(config.GenerateCamParams, init_prompt="")
        config = dataclasses.replace(config, GenerateCamParams=cameras)
    text = to_yaml(without_identity(config))
    if NOISE in changes or any(entry.name == NOISE for entry in read_file(opt)):
        return text
    tree = yaml.safe_load(text)
    del tree["GuidanceParams"]["noise_seed"]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None, width=1000)


def without_identity(config: Config) -> Config:
    """A run's settings as all runs of a combination have them."""
    return dataclasses.replace(
        config,
        seed=0,
        GuidanceParams=dataclasses.replace(config.GuidanceParams, text=""),
        ModelParams=dataclasses.replace(
            config.ModelParams, workspace="run", output_path="output", model_path=""
        ),
    )


def _varied(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Settings with one value, and those with a list of values."""
    fixed, lists = {}, {}
    for name, value in given.items():
        name = MOVED.get(name, name)
        if name in OWN:
            raise UserError(
                f"settings: {name}: expected another setting, got what {OWN[name]} gives; leave it out"
            )
        pair = name in all_settings() and kind_of(all_settings()[name])[0] == PAIR
        if not isinstance(value, list) or (pair and not all(isinstance(each, list) for each in value)):
            fixed[name] = value
        elif not value:
            raise UserError(f"settings: {name}: expected at least one value, got []; fill it or leave it out")
        else:
            lists[name] = value
    return fixed, lists


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without its group, where no other has the same."""
    bare = {name: name.rpartition(".")[2] for name in names}
    alike = Counter(bare.values())
    return {name: short if alike[short] == 1 else name for name, short in bare.items()}


def varied_names(jobs: Iterable[Job]) -> dict[str, str]:
    """What all that is varied is called, by its full names."""
    return short_names(dict.fromkeys(key for job in jobs for key in job.varied))


def flat(tree: dict[Any, Any]) -> Iterable[tuple[str, Any]]:
    """`Group.key` and value of settings that may stand in their groups, as in a settings file."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", content) for inner, content in value.items())
        else:
            yield str(key), value


def _override(word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or word.startswith("-"):
        raise UserError(f"command line: expected key=value, got {word!r}; --help lists the options")
    name = name_of(key, "command line")
    if not text.strip().startswith("["):
        return name, text
    try:
        return name, read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(
            f"command line: {key}: expected a list such as [1, 2], got {text!r}; mend it"
        ) from error


def _seeds(seeds: Any, where: str) -> int | list[int]:
    whole = [seeds] if isinstance(seeds, int) else seeds
    if (
        isinstance(whole, list)
        and whole
        and all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in whole)
        and seeds != 0
    ):
        return seeds
    raise UserError(
        f"{where}: seeds: expected a number of seeds or a list of them, got {shown(seeds)}; try 3 or [0, 7]"
    )


def _beside(path: Path, name: str, key: str) -> Path:
    """A file that a sweep file names: as seen from where the program runs, else from the file's own folder."""
    found = user_path(name, f"{path}: {key}")
    beside = path.parent / found
    return beside if not found.exists() and beside.exists() else found


def _read(path: Path) -> Any:
    try:
        return read_yaml(regular_file(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected YAML, got: {' '.join(str(error).split())}; mend it") from error


def _kind(tree: Any) -> str:
    return "nothing" if not tree else f"a {type(tree).__name__}"
