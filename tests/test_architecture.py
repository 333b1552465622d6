"""Laws about the source itself: layers, devices, pins, and pages that name what exists."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "arguments", "benchmarks", "field_renderer", "gaussian_renderer", "guidance", "scene", "toybox", "utils",
)  # fmt: skip
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md")),
)


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_imports_point_down() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    result = run_python("-c", code)
    assert result.returncode == 0, result.stdout + result.stderr


def test_settings_load_without_anything_heavy() -> None:
    heavy = {"torch", "numpy", "diffusers", "transformers"}
    code = f"import sys, arguments; print(sorted({heavy} & set(sys.modules)))"
    result = run_python("-c", code)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def fixed_devices(tree: ast.AST) -> list[int]:
    """Lines that choose CUDA: `.cuda()`, `device="cuda"`, `.to("cuda")`, `torch.device("cuda")`."""
    lines = []
    for node in ast.walk(tree):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "cuda" and not node.args:
                lines.append(node.lineno)
            given = [word.value for word in node.keywords if word.arg == "device"]
            given += node.args if called in ("to", "device") else []
        elif isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args]
            pairs = [*zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True)]
            pairs += zip(node.kwonlyargs, node.kw_defaults, strict=True)
            given = [
                default for argument, default in pairs if argument.arg == "device" and default is not None
            ]
        lines += [x.lineno for x in given if isinstance(x, ast.Constant) and str(x.value).startswith("cuda")]
    return lines


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("x.cuda()", True),
        ("x.to('cuda')", True),
        ("torch.device('cuda:0')", True),
        ("torch.zeros(3, device='cuda')", True),
        ("def f(x, device='cuda'): ...", True),
        ("def f(*, device='cuda'): ...", True),
        ("x.to(device)", False),
        ("torch.device('cuda' if available else 'cpu')", False),
        ("device.type == 'cuda'", False),
        ("rasterize(backend='cuda')", False),
        ("torch.cuda.is_available()", False),
    ],
)
def test_the_search_for_fixed_devices_finds_them(code: str, found: bool) -> None:
    assert bool(fixed_devices(ast.parse(code))) == found


def test_no_device_is_hard_coded() -> None:
    found = {str(path.relative_to(ROOT)): fixed_devices(ast.parse(path.read_text())) for path in sources()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def normalised(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert {normalised(each) for each in wanted} - {normalised(pin) for pin in pins} == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_link_to_what_exists(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_files_that_exist(page: str) -> None:
    folders = "|".join((*PACKAGES, "configs", "docs", "tests", "submodules"))
    named = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]*\w/?)", (ROOT / page).read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_no_file_holds_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    texts = [
        *sources(),
        *(ROOT / page for page in PAGES),
        *(ROOT / "dreammapping").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
    assert [str(path) for path in texts if marks.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "names",
    [
        ("diff-gaussian-rasterization/compiler.py", "simple-knn/compiler.py"),
        (
            "diff-gaussian-rasterization/diff_gaussian_rasterization/nvrtc.py",
            "simple-knn/simple_knn/nvrtc.py",
        ),
    ],
)
def test_what_both_packages_need_is_the_same_file_in_each(names: tuple[str, str]) -> None:
    """Each is installed without the other."""
    first, second = ((ROOT / "submodules" / name).read_bytes() for name in names)
    assert first == second


def test_guidance_lists_what_it_gives_before_anything_is_loaded():
    code = "import guidance, sys; assert set(guidance.__all__) <= set(dir(guidance)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
