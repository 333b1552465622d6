"""Builds the neighbour search: one shared library with a plain C interface, no Python or torch headers.

Without a working compiler, and without one that can be fetched, the package installs all the same and uses scipy.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compiler


class BuildLibrary(build_ext):
    """Names the library without the Python version, which it does not depend on."""

    def build_extensions(self) -> None:
        with compiler.working(self.compiler) as self.compiler:
            super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type == "msvc":
            ext.extra_compile_args = ["/std:c++17", "/O2", "/EHsc"]
        super().build_extension(ext)

    def get_ext_filename(self, fullname: str) -> str:
        return compiler.library_name(os.path.join(*fullname.split(".")))

    def get_export_symbols(self, _ext: Extension) -> list[str]:
        return []


setup(
    ext_modules=[
        Extension(
            "simple_knn.libneighbors",
            sources=["simple_knn/csrc/neighbors.cpp"],
            depends=["simple_knn/csrc/nearest.h"],
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"],
            extra_link_args=["-pthread"] if compiler.machine()[0] == "linux" else [],
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
)
