"""The CUDA kernels on a CPU, compiled once for all tests."""

from pathlib import Path

import pytest
import torch
from cuda_emulation import compile_emulation
from diff_gaussian_rasterization import cuda


@pytest.fixture(scope="session")
def emulated_kernels(tmp_path_factory):
    source, kernels = Path(__file__).with_name("emulated_kernels.cpp"), Path(cuda.__file__).with_name("csrc")
    return compile_emulation(source, kernels, tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def emulation(emulated_kernels, monkeypatch):
    """Tensors on the CPU are drawn by the CUDA kernels."""
    monkeypatch.setattr(cuda, "_kernels", lambda _: emulated_kernels)
    monkeypatch.setattr(cuda, "fits", lambda means3D: means3D.dtype == torch.float32)
    monkeypatch.setattr(cuda, "available", lambda _: True)
    monkeypatch.setattr(cuda, "_rooms", {})
    monkeypatch.setattr(emulated_kernels, "reverse", False)
    return emulated_kernels
