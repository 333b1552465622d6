"""CUDA kernels on the CPU (`cuda_emulation.h`), for tests where there is no GPU."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAGS = [
    *("-std=c++17", "-O2", "-march=native", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra"),
    "-Wno-unknown-pragmas",  # nvcc's
    "-fvisibility=hidden",  # two emulations in one process must not share their fibers
]


class Emulation:
    """Launches kernels as `nvrtc.Module` does. With `reverse`, blocks and their threads begin in reverse order."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.emulate.restype = ctypes.c_char_p
        self.reverse = False

    @contextlib.contextmanager
    def launching(self, argument: ctypes.Structure):
        def launch(kernel: str, blocks: int, threads: int) -> None:
            error = self.library.emulate(
                kernel.encode(), blocks, threads, ctypes.byref(argument), int(self.reverse)
            )
            assert not error, f"{kernel}: {error.decode()}"

        yield launch


def compile_library(source: Path, folder: Path, *includes: Path) -> Path:
    """A shared library of one C++ file. Skips the test where there is no compiler."""
    found = (shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name)
    compiler = next((path for path in found if path), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    library = folder / f"{source.stem}.so"
    folders = [word for folder in includes for word in ("-I", folder)]
    subprocess.run([compiler, *FLAGS, "-Wno-unused-function", *folders, source, "-o", library], check=True)
    return library


def compile_emulation(source: Path, kernels: Path, folder: Path) -> Emulation:
    """`source` includes the header, then a file of `kernels`."""
    return Emulation(compile_library(source, folder, kernels, HERE))
