"""How to add a loss, as CONTRIBUTING.md says: followed in a copy of the program, where its tests then pass."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = (
    *sorted(path.parent.name for path in ROOT.glob("*/__init__.py")),
    "configs", "docs", "submodules/diff-gaussian-rasterization/tests", "tests",
    "CONTRIBUTING.md", "README.md", "Makefile", "constraints.txt", "pyproject.toml", "train.py",
)  # fmt: skip
LOSS = '''"""SDS with a part of its noise: a loss that only a test needs."""

from arguments.groups import DampedParams
from guidance.interface import Draw, Guidance, Residual


class DampedGuidance(Guidance, name="damped"):
    """s times what SDS sends."""

    damped: DampedParams

    def residual(self, draw: Draw) -> Residual:
        predicted = self.predict(draw)
        guided_noise = self.guided(predicted, draw.step)
        return Residual(self.damped.damping * (guided_noise - draw.noise), predicted, guided_noise)
'''
GROUP = '''

@dataclass(frozen=True)
class DampedParams:
    """The damped loss."""

    damping: float = option(0.5, "factor on the bracket (a test's)", above=0)
'''
SETTINGS = """# SDS with a part of its noise.
#
# Source: a test.
# Inferred: everything.

seed: 0

ModelParams: {workspace: damped, bg_aug_ratio: 0.66}
OptimizationParams: {iterations: 5000}
GenerateCamParams: {init_shape: shape, init_prompt: a hamburger., init_num_pts: 50_000}
GuidanceParams: {text: A delicious hamburger., negative: dull, model_key: sd21-base, guidance: damped}
DampedParams: {damping: 0.5}
"""


def insert(file: Path, before: str, text: str) -> None:
    """Put text right after the one place of `before`."""
    content = file.read_text(encoding="utf-8")
    assert content.count(before) == 1, (file, before)
    file.write_text(content.replace(before, before + text), encoding="utf-8")


@pytest.fixture
def copy(tmp_path) -> Path:
    """The program in a folder of its own; the weights of its prior are links."""
    leave = shutil.ignore_patterns("__pycache__", "*.png", "*.safetensors", "cache", "node_modules")
    for name in NEEDED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=leave, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    for weights in (ROOT / "toybox" / "prior").rglob("*.safetensors"):
        (tmp_path / weights.relative_to(ROOT)).symlink_to(weights)
    return tmp_path


def follow_the_recipe(root: Path) -> None:
    (root / "guidance" / "damped.py").write_text(LOSS)
    groups = root / "arguments" / "groups"
    insert(groups / "guidance.py", "METHODS = (\n", '    "damped",\n')
    with (groups / "methods.py").open("a") as file:
        file.write(GROUP)
    with (groups / "__init__.py").open("a") as file:
        file.write("\nfrom arguments.groups.methods import DampedParams as DampedParams\n")
    insert(
        root / "arguments" / "config.py",
        "    HardwareParams: groups.HardwareParams = field(default_factory=groups.HardwareParams)\n",
        "    DampedParams: groups.DampedParams = field(default_factory=groups.DampedParams)\n",
    )
    (root / "configs" / "baselines" / "damped.yaml").write_text(SETTINGS)
    insert(
        root / "docs" / "methods.md",
        "forward + backward |\n| --- | --- | --- | --- | --- |\n",
        "| `damped` | `(e_cfg - eps) / 2` | a test | | 2 + 0 |\n",
    )
    insert(
        root / "tests" / "test_guidance_training.py", "EVALUATIONS = {\n", '    "damped": [({}, 1, 2, 0)],\n'
    )
    insert(
        root / "dreammapping" / "reproduction" / "methods.py",
        "METHODS: Overrides = {\n",
        '    "damped": ("DampedParams.damping=0.25",),\n',
    )


def test_a_loss_that_is_added_by_the_recipe_passes_the_tests_of_all_losses(copy):
    follow_the_recipe(copy)
    files = ("arguments", "configs", "guidance_methods", "guidance_training", "methods_table")
    chosen = (
        "damped or every_method_has_a_row or method_of_table_1 or every_word or page_has or vdn or not_finite"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen,
         *(f"tests/test_{name}.py" for name in files)],
        cwd=copy, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-4000:]


def test_the_recipe_names_every_file_that_must_change(copy):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    recipe = page.partition("## How to add a loss")[2].partition("\n## ")[0]
    before = contents(copy)
    follow_the_recipe(copy)
    touched = {path for path, text in contents(copy).items() if before.get(path) != text}
    assert len(touched) == 9
    for path in touched:
        named = path.replace("damped.py", "<name>.py").replace("damped.yaml", "<name>.yaml")
        assert f"`{named}`" in recipe, path


def contents(root: Path) -> dict[str, bytes]:
    suffixes = {".py", ".yaml", ".md"}
    files = (path for path in root.rglob("*") if path.suffix in suffixes and path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
