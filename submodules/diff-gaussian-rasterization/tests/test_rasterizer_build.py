"""A build finds a compiler, or asks for one: decided by trying, not by names."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
TARGETS = {
    "x86_64-windows-gnu": (".dll", b"MZ"),
    "aarch64-macos": (".so", bytes.fromhex("cffaedfe0c000001")),  # 64 bit, ARM
    "x86_64-macos": (".so", bytes.fromhex("cffaedfe07000001")),
}


@pytest.fixture
def compiler():
    pytest.importorskip("setuptools", minversion="77")
    spec = importlib.util.spec_from_file_location("gaussian_compiler", PACKAGE / "compiler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def use(monkeypatch, command: str) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, command)


@pytest.mark.skipif(os.name == "nt", reason="Microsoft's compiler is not chosen by CC")
def test_a_compiler_that_is_missing_or_broken_is_none(compiler, monkeypatch, tmp_path):
    for command in ("/nowhere/c++", script(tmp_path / "broken", "exit 1")):
        use(monkeypatch, command)
        assert not compiler.compiles()
        assert compiler.requirements() == [compiler.ZIG]
        for hook in (compiler.get_requires_for_build_wheel, compiler.get_requires_for_build_editable):
            monkeypatch.chdir(PACKAGE)
            assert compiler.ZIG in hook()


@pytest.mark.skipif(os.name == "nt", reason="Microsoft's compiler is not chosen by CC")
def test_a_compiler_that_compiles_is_enough(compiler, monkeypatch, tmp_path):
    """The stand-in writes what it is told to."""
    use(
        monkeypatch,
        script(tmp_path / "cxx", 'while [ $# -gt 1 ]; do test "$1" = -o && : > "$2"; shift; done; exit 0'),
    )
    monkeypatch.chdir(PACKAGE)
    assert compiler.compiles()
    assert compiler.requirements() == []
    assert compiler.ZIG not in compiler.get_requires_for_build_wheel()
    monkeypatch.setattr(compiler, "find_spec", lambda _: object())
    with compiler.working("the usual") as chosen:
        assert chosen == "the usual"


def test_zig_is_used_where_it_is_at_hand_and_nothing_else_works(compiler, monkeypatch):
    monkeypatch.setattr(compiler, "compiles", lambda: False)
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    for found, expected in ((None, "the usual"), (object(), "zig's")):
        monkeypatch.setattr(compiler, "find_spec", lambda _, found=found: found)
        monkeypatch.setattr(compiler, "zig", lambda: "zig's")
        with compiler.working("the usual") as chosen:
            assert chosen == expected
            cache = os.environ.get("ZIG_GLOBAL_CACHE_DIR")
            assert (cache is not None and Path(cache).is_dir()) == bool(found)
        assert "ZIG_GLOBAL_CACHE_DIR" not in os.environ
        assert cache is None or not Path(cache).exists()  # it holds a C++ library


@pytest.mark.parametrize("target", TARGETS)
def test_zig_is_told_what_to_compile_for(compiler, monkeypatch, target):
    monkeypatch.setattr(compiler, "TARGET", target)
    front = compiler.zig()
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-mcpu=baseline"]
    for name in ("compiler_so", "compiler_so_cxx", "linker_so", "linker_so_cxx"):
        assert getattr(front, name)[: len(command)] == command
    assert ("-fPIC" in front.compiler_so_cxx) == ("windows" not in target)
    assert compiler.library_name("lib") == "lib" + TARGETS[target][0]


@pytest.fixture(scope="module")
def ziglang(tmp_path_factory):
    """The folder of a fetched compiler, and its cache."""
    folder = tmp_path_factory.mktemp("ziglang")
    requirement = next(
        line.split('"')[1]
        for line in (PACKAGE / "compiler.py").read_text().splitlines()
        if line.startswith("ZIG =")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", folder, requirement], check=True
    )
    return folder


def build(ziglang: Path, out: Path, target: str = "") -> Path:
    environment = os.environ | {
        "PATH": str(out),  # no compiler there
        "CC": "cc",
        "CXX": "c++",
        "PYTHONPATH": str(ziglang),
        "ZIG_GLOBAL_CACHE_DIR": str(ziglang / "cache"),
        "ZIG_LOCAL_CACHE_DIR": str(ziglang / "cache"),
        "GAUSSIAN_KERNEL_TARGET": target,
    }
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-lib",
        out,
        "--build-temp",
        out / "objects",
    ]
    subprocess.run(command, cwd=PACKAGE, env=environment, check=True)
    return next(out.glob("diff_gaussian_rasterization/libgaussians.*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="builds for the machine that it runs on")
def test_zig_builds_the_kernel_that_a_compiler_builds(ziglang, tmp_path):
    """The same instruction sets and images that agree, in a process that loads the fetched compiler's library."""
    library = build(ziglang, tmp_path)
    program = f"""
import ctypes, torch
from diff_gaussian_rasterization import cpu
from gaussian_scenes import SCENES, assert_agrees, draw, orbit
usual = cpu.instruction_sets()
real = ctypes.CDLL
ctypes.CDLL = lambda _: real({str(library)!r})
cpu.kernel.cache_clear()
assert cpu.instruction_sets() == usual, cpu.instruction_sets()
ctypes.CDLL = real
for name in usual:
    cpu.use_instruction_set(name)
    for scene, options in SCENES.values():
        pair = [draw(scene(), orbit(1, 67, 45), backend=b, **o) for b, o in
                (("cpu", options), ("torch", options | {{"dtype": torch.float64}}))]
        assert_agrees(*pair)
"""
    path = os.pathsep.join([str(PACKAGE / "tests"), str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_zig_builds_for_other_systems(ziglang, tmp_path, target):
    suffix, magic = TARGETS[target]
    library = build(ziglang, tmp_path, target)
    assert library.suffix == suffix
    content = library.read_bytes()
    assert content.startswith(magic)
    for name in (
        b"gs_forward",
        b"gs_backward",
        b"gs_release",
        b"gs_instruction_sets",
        b"gs_use_instruction_set",
    ):
        assert name in content
