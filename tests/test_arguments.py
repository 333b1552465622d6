"""Settings: what reaches the Config, what is refused and in which words, and that help costs nothing."""

import ast
import dataclasses
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from arguments import Config, GuidanceParams, VDMParams, differences, load, names, to_yaml
from arguments.check import has_form
from arguments.config import settings, value_of
from arguments.describe import describe
from arguments.names import MOVED, WITHOUT_EFFECT
from utils.errors import UserError

ROOT = Path(__file__).parents[1]
READERS = (
    "dreammapping",
    "field_renderer",
    "gaussian_renderer",
    "guidance",
    "scene",
    "train.py",
)
"""Where a setting is read, if it is. Not the benchmarks: a setting must change a run."""
ENOUGH = ["model_key=toybox", "text=a red car"]


def configured(*words: str) -> Config:
    return load([*ENOUGH, *words])[0]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("GuidanceParams.guidance_scale=15", "GuidanceParams.guidance_scale", 15.0),
        ("guidance_scale=15", "GuidanceParams.guidance_scale", 15.0),
        ("text=a fox, sitting = resting: 3", "GuidanceParams.text", "a fox, sitting = resting: 3"),
        ("text='a fox'", "GuidanceParams.text", "a fox"),
        ("text=yes", "GuidanceParams.text", "yes"),
        ("text=007", "GuidanceParams.text", "007"),
        (
            "text=caf\udcc3\udca9",
            "GuidanceParams.text",
            "café",
        ),  # as LC_ALL=C hands over what UTF-8 a user types
        ("fp16=no", "GuidanceParams.fp16", False),
        ("fp16=0", "GuidanceParams.fp16", False),
        ("_white_background=false", "ModelParams.white_background", False),
        ("ModelParams._white_background=false", "ModelParams.white_background", False),
        ("init_num_pts=20_000", "GenerateCamParams.init_num_pts", 20_000),
        ("feature_lr=1e-3", "OptimizationParams.feature_lr", 1e-3),
        ("t_range=[0.1, 0.4]", "GuidanceParams.t_range", (0.1, 0.4)),
        ("max_gaussians=null", "ModelParams.max_gaussians", None),
        ("max_gaussians=5000", "ModelParams.max_gaussians", 5000),
        ("LoRA_path=null", "GuidanceParams.LoRA_path", None),
        ("negative=", "GuidanceParams.negative", ""),
        ("device=cuda:1", "device", "cuda:1"),
        ("seed=7", "seed", 7),
        ("lora_rank=8", "LoRAParams.lora_rank", 8),
        ("LoRAParams.lora_rank=8", "LoRAParams.lora_rank", 8),
        ("GuidanceParams.lora_rank=8", "LoRAParams.lora_rank", 8),
        ("GuidanceParams.csd_negative=[0.5, 1]", "CSDParams.csd_negative", (0.5, 1.0)),
        ("representation=image", "ModelParams.representation", "image"),
    ],
)
def test_override_reaches_config(word: str, name: str, value: object) -> None:
    assert value_of(configured(word), name) == value


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--seed", "3"], "seed", 3),
        (["--test_ratio", "3"], "test_ratio", 3),
        (["--save_ratio", "4"], "save_ratio", 4),
        (["--save_video", "False"], "save_video", False),
        (["--offline"], "offline", True),
        (["--viewer"], "viewer", True),
        (["--port", "2355"], "port", 2355),
    ],
)
def test_flags_set_top_level(words: list[str], name: str, value: object) -> None:
    assert value_of(configured(*words), name) == value


def test_override_wins_over_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = written(
        tmp_path, "seed: 1\nGuidanceParams:\n  text: a fox\n  model_key: toybox\n  C_batch_size: 2\n"
    )
    config, command = load(["C_batch_size=3", "--opt", str(path), "seed=4", "seed=5"])
    assert (config.seed, config.GuidanceParams.C_batch_size, config.GuidanceParams.text) == (5, 3, "a fox")
    assert command.opt == path


def test_command_holds_the_flags() -> None:
    _, command = load([*ENOUGH, "--resume", "--dry-run", "--quiet", "--debug", "--offline", "--force"])
    assert (command.resume, command.dry_run, command.quiet, command.debug) == (True, True, True, True)
    assert (command.force, command.print_config, command.opt) == (True, False, None)


def test_print_config_needs_no_prompt() -> None:
    config, command = load(["--print-config"])
    assert command.print_config
    assert config == Config()


def test_groups_without_keys_are_empty(tmp_path: Path) -> None:
    path = written(tmp_path, "ModelParams:\nGuidanceParams: {text: a fox, model_key: toybox}\n")
    assert load(["--opt", str(path)])[0].ModelParams == Config().ModelParams


BAD_FILES = {
    "empty": ("", "expected groups such as GuidanceParams, got nothing"),
    "only comments": ("# nothing\n", "got nothing"),
    "list": ("- a\n- b\n", "got a list"),
    "scalar": ("hello", "got a str"),
    "broken": ("GuidanceParams: [1, 2\nseed: 3\n", "expected YAML, got expected ',' or ']'"),
    "tab": ("GuidanceParams:\n\ttext: a\n", "at line 2"),
    "python object": ("seed: !!python/object:os.system {}\n", "expected YAML"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "got found another document at line 2"),
    "impossible date": ("GuidanceParams:\n  text: 2024-13-45\n", "expected YAML"),
    "bottomless": ("[" * 600, "expected YAML"),
    "not UTF-8": (b"GuidanceParams:\n  text: caf\xe9\n", "expected UTF-8 text, got byte 0xe9"),
    "group is a list": (
        "GuidanceParams: [1, 2]\n",
        "GuidanceParams: expected 'key: value' lines, got [1, 2]",
    ),
    "group is text": ("GuidanceParams: fox\n", "GuidanceParams: expected 'key: value' lines, got 'fox'"),
    "unknown key": ("GuidanceParams:\n  guidance_scal: 3\n", "did you mean GuidanceParams.guidance_scale?"),
    "unknown group": ("GuidanceParms:\n  text: a\n", "did you mean GuidanceParams?"),
    "key of another group": ("ModelParams:\n  text: a\n", "did you mean GuidanceParams.text?"),
    "key without its group": ("text: a\n", "did you mean GuidanceParams.text?"),
    "key that is no text": ("GuidanceParams:\n  yes: a\n", "got 'True'"),
    "nothing like it": ("GuidanceParams:\n  qqqqqq: 1\n", "--help lists all"),
    "text as a date": ("GuidanceParams:\n  text: 2024-01-02\n", "expected text (in quotes)"),
    "text as a number": (
        "ModelParams:\n  workspace: 007\n",
        "ModelParams.workspace: expected text (in quotes), got 7",
    ),
    "text as truth": ("GuidanceParams:\n  text: yes\n", "expected text (in quotes), got true"),
    "no value": ("GuidanceParams:\n  text:\n", "GuidanceParams.text: expected text (in quotes), got null"),
    "mapping for a number": ("seed: {a: 1}\n", "seed: expected a whole number 0 .. 4294967295, got {'a': 1}"),
    "huge number": (f"seed: {'9' * 5000}\n", "expected"),
    "infinite": ("GuidanceParams:\n  guidance_scale: .inf\n", "guidance_scale: expected a number, got inf"),
    "not a number": (
        "OptimizationParams:\n  feature_lr: .nan\n",
        "feature_lr: expected a number > 0, got nan",
    ),
    "group twice": (
        "GuidanceParams:\n  text: a\nseed: 1\nGuidanceParams:\n  model_key: toybox\n",
        "'GuidanceParams' of line 1 a second time at line 4",
    ),
    "key twice": ("ModelParams:\n  batch: 1\n  batch: 2\n", "'batch' of line 2 a second time at line 3"),
    "key twice in braces": ("ModelParams: {batch: 1, 'batch': 2}\n", "'batch' of line 1 a second time"),
    "key under two names": (
        "ModelParams: {white_background: true, _white_background: false}\n",
        "ModelParams.white_background: expected it once, got it twice; keep one",
    ),
    "key at its former place too": (
        "GuidanceParams: {lora_rank: 2}\nLoRAParams: {lora_rank: 4}\n",
        "got it as GuidanceParams.lora_rank and as LoRAParams.lora_rank; keep one",
    ),
    "alias bomb": (
        "GuidanceParams: {guidance_scale: [&x0 [l,l,l,l,l,l,l,l,l,l]"
        + "".join(f",&x{i} [{','.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 10))
        + "]}\n",
        "more than 10000 values",
    ),
    "merge bomb": (
        "m0: &m0 {a: 1}\n"
        + "".join(f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
        "more than 10000 values",
    ),
    "alias of itself": ("seed: &a [*a]\n", "an alias of what it stands in at line 1"),
    "unknown alias": ("seed: *a\n", "undefined alias"),
    "deep in blocks": ("- " * 5000 + "a\n", "more than 20 levels"),
    "empty integer": ("seed: !!int ''\n", "no valid int at line 1"),
    "no timestamp": ("seed: !!timestamp x\n", "no valid timestamp"),
    "no float": ("seed: !!float ''\n", "no valid float"),
    "no pairs": ("seed: !!omap [1]\n", "expected YAML"),
    "no binary": ("seed: !!binary '\u00e9'\n", "expected YAML"),
    "a number as a key": ("seed: {[1]: 2}\n", "expected YAML"),
    "400 digits": (f"seed: 1{'0' * 400}\n", "got int of 401 letters at line 1"),
    "60 to the many": (f"seed: {'1:' * 100_000}1\n", "letters at line 1"),
    "beyond 64 bits": ("GuidanceParams: {noise_seed: 18446744073709551616}\n", "at most 9223372036854775807"),
    "too long": ("#" * 300_000, "expected settings of at most 262144 bytes"),
    "infinite in a pair": ("GuidanceParams:\n  t_range: [0.1, .nan]\n", "got [0.1, nan]"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_one_clear_line(tmp_path: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load(["--opt", str(path)])
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


BOMB = "[&x0 [l,l,l,l,l,l,l,l,l,l]" + "".join(
    f",&x{i} [{','.join([f'*x{i - 1}'] * 10)}]" for i in range(1, 10)
)
BAD_WORDS = {
    "GuidanceParams.guidance_scael=3": "did you mean GuidanceParams.guidance_scale?",
    "GuidenceParams.text=a": "did you mean GuidanceParams?",
    "ModelParams.text=a": "did you mean GuidanceParams.text?",
    "txet=a": "did you mean GuidanceParams.text?",
    "=3": "expected the name of a setting",
    "GuidanceParams=3": "got the group GuidanceParams; write GuidanceParams.KEY",
    "fox": "expected key=value or a flag, got 'fox'",
    "configs/cat.yaml": "write --opt configs/cat.yaml",
    "--sede": "did you mean --seed?",
    "--guidance_scale=3": "write guidance_scale=VALUE",
    "--opt": "expected one argument",
    "iterations=0": "OptimizationParams.iterations: expected a whole number 1 .. 10000000 (steps), got 0",
    "iterations=2.5": "expected a whole number",
    "iterations=true": "got true",
    "iterations=": "got null",
    "iterations=[": "got '['",
    "guidance_scale=high": "expected a number, got 'high'",
    "guidance_scale=1" + "0" * 400: "expected a number",
    "guidance_scale=${seed}": "'${' is not allowed",
    "text=a ${seed}": "'${' is not allowed",
    "text=\udcff": "expected text",
    "text=???": "expected text",
    "fp16=7": "expected true or false, got 7",
    "fp16=maybe": "expected true or false, got 'maybe'",
    "guidance=vdn": ", got 'vdn'; did you mean vsd?",
    "init_shape=": "expected one of sphere",
    "t_range=0.1": "expected two numbers [low, high] 0 .. 1, got 0.1",
    "t_range=[0.1]": "got [0.1]",
    "t_range=[0.1, 0.2, 0.3]": "got [0.1, 0.2, 0.3]",
    "t_range=[0.1, x]": "got [0.1, 'x']",
    "t_range=[[0.1], 0.2]": "expected two numbers",
    "t_range=[0.4, 0.1]": "expected low <= high, got [0.4, 0.1]; swap them",
    "t_range=[0.4, 1.1]": "0 .. 1, got [0.4, 1.1]",
    "theta_range=[105, 45]": "GenerateCamParams.theta_range: expected low <= high",
    "radius_range=[0.1, 2]": "expected two numbers [low, high] > 0.2 (world units)",
    "fovy_range=[0, 0.5]": "expected two numbers [low, high] > 0, <= 3 (rad)",
    "dca_cutoff=1000": "0 .. 999",
    "max_t_range=0.3": "expected at least t_range's upper end 0.5, got 0.3",
    "negative_w=1": "expected a number <= 0, got 1.0",
    "device=gpu": "device: expected auto, cpu, mps, cuda or cuda:N, got 'gpu'",
    "init_shape=file": "GenerateCamParams.init_path: expected a file, because init_shape is file, got null",
    "init_path=fox.ply": "init_shape: expected file, because init_path is set, got 'sphere'",
    "workspace=": "ModelParams.workspace: expected a name",
    "text= ": "GuidanceParams.text: expected a prompt, got ' '",
    "model_key=null": "GuidanceParams.model_key: expected a diffusion model, got null",
    f"guidance_scale={BOMB}]": "expected a number, got '[&x0 ",
    "seed=1" + "0" * 400: "expected a whole number",
    "seed=!!int ''": "expected a whole number",
    "noise_seed=18446744073709551616": "at most 9223372036854775807",
    "device=cuda:99999999999999999999": "expected auto, cpu, mps, cuda or cuda:N",
    "device=cuda:\u0661": "expected auto, cpu, mps, cuda or cuda:N",
    "t_range=[[[[[[1,2,3,4,5,6,7],2,3,4,5,6],2,3,4,5,6],2,3,4,5,6]]]": ".. 1, got [[[...]]]",
    "max_gaussians=0": "expected a whole number >= 1 or null, got 0",
}


@pytest.mark.parametrize("word", BAD_WORDS)
def test_bad_word_is_one_clear_line(word: str) -> None:
    with pytest.raises(UserError) as caught:
        configured(word)
    assert BAD_WORDS[word] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_contradiction_of_both_sds_switches() -> None:
    with pytest.raises(UserError, match=r"expected SD or sds, because .* is true, got 'vdm'"):
        configured("sds=true", "guidance=vdm")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    written(tmp_path, "seed: 1")
    with pytest.raises(UserError, match=r"found none; did you mean .*run\.yaml"):
        load(["--opt", str(tmp_path / "rum.yaml")])
    with pytest.raises(UserError, match="expected a file, got a folder"):
        load(["--opt", str(tmp_path)])


def test_ambiguous_key_names_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    two = {"ModelParams.batch": None, "GuidanceParams.batch": None}
    monkeypatch.setattr(names, "settings", lambda: two)
    with pytest.raises(UserError, match=r"write ModelParams\.batch or GuidanceParams\.batch"):
        names.name_of("batch", "command line")


def test_one_key_in_two_files_or_words_is_no_mistake(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\nModelParams: {batch: 2}\nOptimizationParams: {}\n")
    assert load(["--opt", str(path), *ENOUGH, "seed=2", "seed=3"])[0].seed == 3


def test_a_few_aliases_and_merges_are_taken(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "GuidanceParams: {text: a, model_key: toybox, t_range: &r [0.1, 0.2]}\n"
        "GenerateCamParams: &c {radius_range: [2, 3]}\nOptimizationParams: {<<: {iterations: 7}}\n"
        "DreamFlowParams: {dreamflow_t_range: *r}\n",
    )
    config = load(["--opt", str(path)])[0]
    assert config.DreamFlowParams.dreamflow_t_range == config.GuidanceParams.t_range == (0.1, 0.2)
    assert config.iterations == 7


@pytest.mark.parametrize(
    "shipped", [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("tests/luciddreamer_configs/*.yaml")]
)
def test_every_shipped_file_loads(shipped: Path) -> None:
    assert load(["--opt", str(shipped), *ENOUGH])[0].GuidanceParams.text == "a red car"


@pytest.mark.parametrize("name", ["/dev/zero", "~no such user/a.yaml", "a" * 300, "a\0b"])
def test_a_settings_file_that_is_none_is_one_line_at_once(name: str) -> None:
    with pytest.raises(UserError, match=r"expected a (file|path)") as caught:
        load(["--opt", name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_tilde_is_the_home_folder_in_settings_and_flags(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path, "seed: 9\n")
    config, _ = load(["--opt", "~/run.yaml", *ENOUGH, "output_path=~/runs"])
    assert config.seed == 9 and config.ModelParams.run_folder == tmp_path / "runs" / "debug"
    assert configured("model_path=~/here").ModelParams.run_folder == tmp_path / "here"
    assert configured("workspace=~/fox").ModelParams.run_folder == tmp_path / "fox"
    assert "~/runs" in to_yaml(config)


@pytest.mark.parametrize("key", ["output_path", "model_path", "workspace"])
def test_a_home_of_nobody_is_one_line(key: str) -> None:
    with pytest.raises(UserError, match=rf"ModelParams\.{key}: expected a path, got '~no such user/a'"):
        _ = configured(f"{key}=~no such user/a").ModelParams.run_folder


class Scalar:
    """As NumPy's and torch's numbers and arrays."""

    def __init__(self, value: object) -> None:
        self.value = value

    def tolist(self) -> object:
        return self.value


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("iterations", Scalar(3), 3),
        ("fp16", Scalar(False), False),
        ("t_range", Scalar([0.1, 0.2]), (0.1, 0.2)),
        ("t_range", (Scalar(0.1), 0.2), (0.1, 0.2)),
        ("t_range", "[0.1, 0.2]", (0.1, 0.2)),
        ("GuidanceParams.lora_rank", 8, 8),
        ("max_gaussians", None, None),
        ("text", "'a' and 'b'", "'a' and 'b'"),
        ("text", "null", "null"),
        ("output_path", Path("runs"), "runs"),
        ("output_path", Path("caf\udcc3\udca9"), "café"),
    ],
)
def test_python_gives_settings_as_they_are(key: str, given: object, value: object) -> None:
    config, _ = load(ENOUGH, {key: given})
    name = names.name_of(key, "test")
    assert value_of(config, MOVED.get(name, name)) == value


@pytest.mark.parametrize("kind", ["object", "nan", "huge", "mapping", "long list", "long text", "bytes"])
def test_what_python_cannot_give_is_one_line(kind: str) -> None:
    value = {
        "object": object(), "nan": math.nan, "huge": 10**5000, "mapping": {"a": 1}, "long list": [[]] * 10**6,
        "long text": "x" * 10**6, "bytes": b"1",
    }[kind]  # fmt: skip
    with pytest.raises(UserError, match=r"overrides: OptimizationParams\.iterations: expected") as caught:
        load(ENOUGH, {"iterations": value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("place", ["former", "present"])
def test_differences_from_a_runs_settings_are_found_by_their_present_names(
    tmp_path: Path, place: str
) -> None:
    """Those of a run of before are at their former places, and it lacks what has come since."""
    config = configured("guidance_scale=9", "lora_rank=8")
    if place == "present":
        path = written(tmp_path, to_yaml(configured("guidance_scale=7", "lora_rank=8")))
    else:
        tree = {"text": "a red car", "model_key": "toybox", "guidance_scale": 7, "lora_rank": 8}
        path = written(tmp_path, yaml.safe_dump({"GuidanceParams": tree}))
    assert differences(path, config) == ["GuidanceParams.guidance_scale"]


@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "vdm"),
        (["sds=true"], "sds"),
        (["guidance=vdm"], "vdm"),
        (["guidance=sds"], "sds"),
        (["guidance=sds", "sds=true"], "sds"),
    ],
)
def test_guidance_method(words: list[str], method: str) -> None:
    assert configured(*words).GuidanceParams.guidance_method == method


@pytest.mark.parametrize(
    ("words", "said"), [([], 1), (["sds=true"], 0), (["guidance=vdm"], 0), (["guidance=sds"], 0)]
)
def test_upstream_guidance_is_remarked_once(
    caplog: pytest.LogCaptureFixture, words: list[str], said: int
) -> None:
    configured(*words)
    assert sum("SD runs VDM with DCA" in message for message in caplog.messages) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=4", "seed=3"], "seed is given more than once; 3 counts"),
        (["--seed", "4", "seed=3"], "seed is given more than once; 4 counts"),
        (["iterations=1", "OptimizationParams.iterations=2"], "iterations is given more than once; 2 counts"),
        (["seed=4", "seed=4"], None),
    ],
)
def test_a_setting_that_is_given_twice_is_told(
    caplog: pytest.LogCaptureFixture, words: list[str], said
) -> None:
    config, _ = load(["text=a", "model_key=toybox", "guidance=vdm", *words])
    assert [line.partition("Params.")[2] or line.partition(": ")[2] for line in caplog.messages] == [
        said
    ] * bool(said)
    assert (config.seed in (0, 3, 4) and said is None) or said.split()[-2] == str(
        config.seed or config.iterations
    )


def test_keys_without_effect_share_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree = {"GuidanceParams": {"text": "a fox", "model_key": "toybox", "guidance": "vdm"}}
    for name in WITHOUT_EFFECT:
        group, _, key = name.rpartition(".")
        (tree.setdefault(group, {}) if group else tree)[key] = [{"any": "thing"}]
    tree["ModelParams"]["_source_path"] = "data"
    with caplog.at_level(logging.WARNING):
        load(["--opt", str(written(tmp_path, yaml.safe_dump(tree)))])
    assert len(caplog.records) == 1
    assert all(name in caplog.messages[0] for name in WITHOUT_EFFECT)
    assert all(caplog.messages[0].count(reason) == 1 for reason in WITHOUT_EFFECT.values())


def test_no_setting_is_without_effect() -> None:
    assert not WITHOUT_EFFECT.keys() & settings().keys()


def attributes_read(folder: Path) -> set[str]:
    """Names that the program's sources, but the settings' own, read as an attribute of something."""
    files = [path for path in folder.rglob("*.py") if path.parts[len(folder.parts)] in READERS]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def read_by_properties() -> set[str]:
    """Names that the settings' own properties read, where a property of that name is read in its turn."""
    read, found = attributes_read(ROOT), set()
    for path in (ROOT / "arguments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (node.name in read or node.name.startswith("_is_")):
                found |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return found


def test_every_setting_is_read_somewhere() -> None:
    """A setting that `--help` prints and nothing reads is a promise that is not kept."""
    read = attributes_read(ROOT) | read_by_properties()
    assert [name for name in settings() if name.rpartition(".")[2] not in read] == []


@pytest.mark.parametrize("place", ["file", "command line"])
def test_keys_at_their_former_place_are_taken_with_one_note(tmp_path: Path, caplog, place: str) -> None:
    """As in the settings and run folders of before, where all of the guidance was one group."""
    defaults = {name: value_of(Config(), new) for name, new in MOVED.items()}
    changed = {"GuidanceParams.lora_rank": 9, "GuidanceParams.m_norm": "group"}
    if place == "file":
        tree = {name.partition(".")[2]: plain(value) for name, value in (defaults | changed).items()}
        tree |= {"text": "a fox", "model_key": "toybox", "guidance": "vdm"}
        words = ["--opt", str(written(tmp_path, yaml.safe_dump({"GuidanceParams": tree})))]
    else:
        given = (defaults | changed).items()
        words = [*ENOUGH, "guidance=vdm", *(f"{name}={json.dumps(plain(value))}" for name, value in given)]
    with caplog.at_level(logging.INFO):
        config, _ = load(words)
    assert (config.LoRAParams.lora_rank, config.VDMParams.m_norm) == (9, "group")
    assert all(value_of(config, MOVED[name]) == defaults[name] for name in defaults.keys() - changed.keys())
    (note,) = caplog.messages
    assert all(f"{name} is now {new}" in note for name, new in MOVED.items())


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_the_later_of_a_former_and_a_present_place_wins() -> None:
    assert configured("GuidanceParams.lora_rank=8", "LoRAParams.lora_rank=2").LoRAParams.lora_rank == 2
    assert configured("LoRAParams.lora_rank=2", "GuidanceParams.lora_rank=8").LoRAParams.lora_rank == 8


def test_a_bad_value_at_a_former_place_is_named_by_its_present_one() -> None:
    with pytest.raises(UserError, match=r"LoRAParams\.lora_rank: expected a whole number 1 \.\. 256, got 0"):
        configured("GuidanceParams.lora_rank=0")


def test_former_places_lead_to_settings_and_are_none_themselves() -> None:
    assert set(MOVED.values()) <= settings().keys()
    assert not MOVED.keys() & (settings().keys() | WITHOUT_EFFECT.keys())


@pytest.mark.parametrize(("representation", "expected"), [("gaussians", (30, 3)), ("image", (40, 4))])
def test_the_length_of_a_run_and_its_pictures_are_those_of_what_is_optimised(
    representation, expected
) -> None:
    config = configured(
        f"representation={representation}",
        "iterations=30",
        "vis_interval=3",
        "steps=40",
        "picture_interval=4",
    )
    assert (config.iterations, config.picture_interval) == expected


def test_a_picture_does_not_start_from_a_shape() -> None:
    words = ("init_shape=shape", "representation=image")
    assert configured(*words[:1]).starts_from_text and not configured(*words).starts_from_text


def test_run_folder() -> None:
    assert configured("workspace=fox").ModelParams.run_folder == Path("output/fox")
    assert configured("workspace=fox", "output_path=/runs").ModelParams.run_folder == Path("/runs/fox")
    assert configured("model_path=here").ModelParams.run_folder == Path("here")


def test_relax_cameras_reads_upstream_switch_the_other_way_round() -> None:
    assert configured().OptimizationParams.relax_cameras
    assert not configured("use_progressive=true").OptimizationParams.relax_cameras


def test_config_is_frozen() -> None:
    config = configured()
    for holder, name in ((config, "seed"), (config.GuidanceParams, "text")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, name, 1)
    assert hash(config) == hash(configured())


@pytest.mark.parametrize("name", settings())
def test_every_default_is_valid_and_explained(name: str) -> None:
    field = settings()[name]
    option = field.metadata["option"]
    assert option.help
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    assert has_form(field, default)
    assert not option.choices or default in option.choices
    for number in default if isinstance(default, list) else [default]:
        if isinstance(number, float) or type(number) is int:
            assert math.isfinite(number)
            assert option.allows(number)


prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "${" not in text and text != "???"
)


@examples(max_examples=25, deadline=None)
@given(
    text=prompts,
    rate=st.floats(min_value=1e-300, max_value=1e300),
    low=st.floats(min_value=0, max_value=0.5),
    cap=st.none() | st.integers(1, 10**9),
)
def test_to_yaml_round_trips(tmp_path_factory, text: str, rate: float, low: float, cap: int | None) -> None:
    config = dataclasses.replace(
        Config(),
        seed=11,
        GuidanceParams=GuidanceParams(text=text, model_key="toybox", t_range=(low, 0.5)),
        VDMParams=VDMParams(operator_lr=rate),
        ModelParams=dataclasses.replace(Config().ModelParams, max_gaussians=cap),
    )
    path = written(tmp_path_factory.mktemp("round"), to_yaml(config))
    assert load(["--opt", str(path)])[0] == config


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_lists_everything_and_imports_nothing_heavy() -> None:
    code = """
import sys
from arguments import load
try:
    load(["--help"])
finally:
    heavy = {"torch", "numpy", "omegaconf", "diffusers"} & sys.modules.keys()
    assert not heavy, heavy
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    for name in settings():
        assert f"  {name.rpartition('.')[2]} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert "[fast]" in done.stdout and "[ |" not in done.stdout


@pytest.mark.parametrize("columns", [80, 99, 100, 140])
def test_help_fits_the_terminal_and_loses_no_word(columns, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = describe()
    assert max(map(len, text.splitlines())) <= columns
    assert sorted(text.split()) == sorted(describe(120).split())


def test_help_that_nobody_reads_to_its_end_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "train.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        program.stdout.close()
        assert program.stderr.read() == b""
    assert program.returncode == 0


def test_loading_imports_no_torch() -> None:
    done = run_python(
        f"import sys; from arguments import load; load({ENOUGH!r}); assert 'torch' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ["cat", "quickstart", "image/toybox"])
def test_a_preset_takes_less_than_the_file_that_it_is_on_top_of(file):
    before, after = (
        load(["--opt", f"configs/{file}.yaml", *words])[0] for words in ([], ["--preset", "fast"])
    )
    assert (before.preset, after.preset) == ("", "fast")
    assert after.iterations == round(0.3 * before.iterations)
    assert after.GenerateCamParams.image_w == before.GenerateCamParams.image_w // 2
    assert after.OptimizationParams.densify_until_iter < after.OptimizationParams.iterations
    assert after.GuidanceParams == before.GuidanceParams


def test_a_preset_is_below_the_command_line():
    config = load(["--opt", "configs/cat.yaml", "--preset", "fast", "image_w=300"])[0]
    assert (config.GenerateCamParams.image_w, config.GenerateCamParams.image_h) == (300, 256)
    assert config.OptimizationParams.iterations == 1500
    with pytest.raises(UserError, match="--preset: expected one of fast, got 'quick'"):
        load(["--preset", "quick"])


def test_a_preset_keeps_within_the_bounds_of_a_setting(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("GenerateCamParams: {image_w: 20}\nOptimizationParams: {iterations: 1, geo_iter: 0}\n")
    config = load(["--opt", str(file), "--preset", "fast", "model_key=toybox", "text=a red car"])[0]
    assert (config.GenerateCamParams.image_w, config.OptimizationParams.iterations) == (16, 1)
    assert config.OptimizationParams.geo_iter == 0


@pytest.mark.parametrize("words", [["--seed", "3"], ["seed=3"]])
def test_the_seed_is_that_of_the_noise_too_unless_that_has_its_own(words, tmp_path):
    assert load([*ENOUGH, *words])[0].GuidanceParams.noise_seed == 3
    assert load([*ENOUGH, *words, "noise_seed=1"])[0].GuidanceParams.noise_seed == 1
    file = tmp_path / "luciddreamers.yaml"
    file.write_text("GuidanceParams: {noise_seed: 0}\n")
    assert load(["--opt", str(file), *ENOUGH, *words])[0].GuidanceParams.noise_seed == 0


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_our_own_settings_leave_the_noise_to_the_seed(file):
    assert load(["--opt", str(file), "--seed", "3"])[0].GuidanceParams.noise_seed == 3
