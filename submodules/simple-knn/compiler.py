"""A C++ compiler for machines that have none: clang, as PyPI's `ziglang` brings it (100 MB, 400 MB unpacked).

This is also the build backend: setuptools' own, which asks pip for `ziglang` where nothing else compiles. Pip fetches
it into the build's own environment and removes both. The other package has a copy of this file.
"""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403
from setuptools.command.build_ext import customize_compiler, new_compiler
from setuptools.errors import CCompilerError, PlatformError

ZIG = "ziglang==0.17.1"
PROBE = '#include <thread>\nextern "C" int probe() { return static_cast<int>(std::thread::hardware_concurrency()); }\n'
TARGET = os.environ.get("GAUSSIAN_KERNEL_TARGET", "")
"""Another machine to build for, by Zig: `x86_64-windows-gnu`, `aarch64-macos`, `x86_64-macos`."""


def machine() -> tuple[str, str]:
    """What is built for: "linux", "macos" or "windows", and "x86_64" or another architecture."""
    if TARGET:
        architecture, system = TARGET.split("-")[:2]
        return system, architecture
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")
    architecture = platform.machine().lower()
    return system, "x86_64" if architecture == "amd64" else architecture


def library_name(stem: str) -> str:
    """The file of a library that no Python version is part of."""
    return stem + (".dll" if machine()[0] == "windows" else ".so")


def compiles() -> bool:
    """Whether the compiler that setuptools would take (of CC and CXX, if set) makes a C++ library here."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE, encoding="utf-8")
        try:
            compiler = new_compiler()
            customize_compiler(compiler)
            objects = compiler.compile([str(source)], output_dir=folder)
            compiler.link_shared_object(objects, str(Path(folder, "probe.so")), target_lang="c++")
        except (CCompilerError, PlatformError):
            return False
    return True


def requirements() -> list[str]:
    """What a build needs beside setuptools."""
    return [] if compiles() else [ZIG]


def zig():
    """Setuptools' front of Zig's C++ compiler, for every machine of `machine()`'s kind and not for this very one."""
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "c++",
        *(["-target", TARGET] if TARGET else []),
        "-mcpu=baseline",
    ]
    independent = [] if machine()[0] == "windows" else ["-fPIC"]
    compiler = new_compiler(compiler="unix")
    compile_, link = [*command, *independent], [*command, "-shared", "-s"]
    compiler.set_executables(
        compiler=command,
        compiler_cxx=command,
        compiler_so=compile_,
        compiler_so_cxx=compile_,
        linker_exe=command,
        linker_exe_cxx=command,
        linker_so=link,
        linker_so_cxx=link,
    )
    return compiler


@contextmanager
def working(usual) -> Iterator:
    """The compiler to build with: `usual` if it works, else Zig's if that is installed.

    Zig compiles the C++ library first, which takes a minute; that it would keep in the user's cache for ever.
    """
    if not find_spec("ziglang") or (not TARGET and compiles()):
        yield usual
        return
    if "ZIG_GLOBAL_CACHE_DIR" in os.environ:
        yield zig()
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        os.environ["ZIG_GLOBAL_CACHE_DIR"] = os.environ["ZIG_LOCAL_CACHE_DIR"] = cache
        try:
            yield zig()
        finally:
            del os.environ["ZIG_GLOBAL_CACHE_DIR"], os.environ["ZIG_LOCAL_CACHE_DIR"]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    """Setuptools' requirements, and a compiler where there is none."""
    return build_meta.get_requires_for_build_wheel(config_settings) + requirements()


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + requirements()


if __name__ == "__main__":  # what a build without isolation needs beside setuptools, in a line
    sys.stdout.write(" ".join(requirements()) + "\n")
