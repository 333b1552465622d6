"""Builds the CPU kernel: one shared library with a plain C interface, no Python or torch headers.

A file `kernel_<name>.cpp` is compiled with the flags of its instruction set, where the compiler has them. Without a
working compiler, and without one that can be fetched, the package installs all the same and uses its PyTorch path.
"""

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compiler

SOURCES = Path("diff_gaussian_rasterization/csrc")
COMMON = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
COMMON_MSVC = ["/std:c++17", "/O2", "/EHsc"]
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}


class BuildKernel(build_ext):
    """Compiles every source with its own flags, under a file name that does not depend on the Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return compiler.library_name(os.path.join(*fullname.split(".")))

    def get_export_symbols(self, _ext: Extension) -> list[str]:
        return []

    def build_extensions(self) -> None:
        with compiler.working(self.compiler) as self.compiler:
            super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        macros: list[tuple[str, str | None]] = []
        objects: list[str] = []
        for name, flags in INSTRUCTION_SETS.items():
            if self._accepts(flags):
                macros.append((f"GS_HAS_{name.upper()}", None))
                objects += self._compile([SOURCES / f"kernel_{name}.cpp"], flags, [])
        objects += self._compile([SOURCES / "kernel_portable.cpp"], [], [])
        objects += self._compile(
            [SOURCES / f"{name}.cpp" for name in ("thread_pool", "rasterizer", "trilinear")], [], macros
        )
        threads = ["-pthread"] if compiler.machine()[0] == "linux" else []
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(objects, target, extra_postargs=threads, target_lang="c++")

    def _compile(
        self, sources: list[Path], flags: list[str], macros: list[tuple[str, str | None]]
    ) -> list[str]:
        return self.compiler.compile(
            [str(s) for s in sources],
            output_dir=self.build_temp,
            macros=macros,
            extra_postargs=self._common() + flags,
            depends=[str(s) for s in SOURCES.glob("*")],
        )

    def _common(self) -> list[str]:
        return COMMON_MSVC if self.compiler.compiler_type == "msvc" else COMMON

    def _accepts(self, flags: list[str]) -> bool:
        """Whether this compiler makes code for an x86 machine with these flags, and for no other machine as well.

        Microsoft's takes flags that it does not know, and has no vector types: it makes the portable build alone.
        """
        if self.compiler.compiler_type == "msvc":
            return False
        if compiler.machine()[1] != "x86_64" or "arm64" in os.environ.get("ARCHFLAGS", ""):
            return False
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.cpp")
            probe.write_text("#include <immintrin.h>\nint probe() { return 0; }\n", encoding="utf-8")
            try:
                self.compiler.compile([str(probe)], output_dir=folder, extra_postargs=COMMON + flags)
            except CompileError:
                return False
        return True


setup(
    ext_modules=[
        Extension(
            "diff_gaussian_rasterization.libgaussians",
            sources=sorted(str(s) for s in SOURCES.glob("*.cpp")),
            depends=sorted(str(s) for s in SOURCES.glob("*") if s.suffix != ".cpp"),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel},
)
