"""distCUDA2 against all pairs, on clouds that break trees."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from simple_knn import _C, cuda, nvrtc
from simple_knn._C import distCUDA2

KERNELS = Path(cuda.__file__).with_name("csrc")
RASTERIZER = Path(__file__).resolve().parents[2] / "diff-gaussian-rasterization"
"""Beside this package in the repository; it has the emulation of CUDA."""

CLOUDS = {
    "uniform": lambda rng: torch.rand(900, 3, generator=rng),
    "duplicates": lambda rng: torch.randint(0, 4, (500, 3), generator=rng).float(),
    "all the same": lambda _: torch.full((300, 3), 0.3),
    "line": lambda rng: torch.rand(400, 1, generator=rng) * torch.tensor([[1.0, -2.0, 0.5]]),
    "plane": lambda rng: torch.rand(400, 3, generator=rng) * torch.tensor([1.0, 1.0, 0.0]),
    "far clusters": lambda rng: (
        torch.randn(400, 3, generator=rng) + 1e4 * torch.arange(400).remainder(3)[:, None]
    ),
    "offset": lambda rng: torch.rand(400, 3, generator=rng) * 0.01 + 500.0,
    "scales": lambda rng: torch.randn(500, 3, generator=rng) * torch.logspace(-6, 6, 500)[:, None],
    "four": lambda rng: torch.rand(4, 3, generator=rng),
}


def all_pairs(points: torch.Tensor) -> torch.Tensor:
    squared = (points[:, None] - points[None]).square().sum(-1).fill_diagonal_(float("inf"))
    return squared.sort(dim=1).values[:, :3].mean(1)


@pytest.fixture(params=["compiled", "scipy"])
def implementation(request, monkeypatch):
    if request.param == "scipy":
        monkeypatch.setattr(_C, "_library", lambda: None)
    elif _C._library() is None:
        pytest.skip("the compiled search was not built")


@pytest.fixture(scope="module")
def emulation(tmp_path_factory):
    """Runs the CUDA kernels on the CPU."""
    if not (RASTERIZER / "tests" / "cuda_emulation.py").exists():
        pytest.skip("needs the emulation of CUDA in diff-gaussian-rasterization/tests, beside this package")
    sys.path.insert(0, str(RASTERIZER / "tests"))
    try:
        from cuda_emulation import compile_emulation
    finally:
        sys.path.pop(0)
    source = Path(__file__).with_name("emulated_neighbors.cpp")
    return compile_emulation(source, KERNELS, tmp_path_factory.mktemp("emulation"))


@pytest.mark.parametrize("name", CLOUDS)
def test_emulated_kernels_equal_all_pairs(name, emulation, monkeypatch):
    monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        cuda.mean_squared_distances(points, 3), all_pairs(points), rtol=1e-5, atol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 1200), levels=st.integers(1, 50), seed=st.integers(0, 1000))
def test_emulated_kernels_equal_the_compiled_search_on_any_lattice_cloud(emulation, count, levels, seed):
    points = torch.randint(0, levels, (count, 3), generator=torch.Generator().manual_seed(seed)).float()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
        found = cuda.mean_squared_distances(points, min(3, count - 1))
    torch.testing.assert_close(found, distCUDA2(points))


def test_emulated_kernels_on_three_levels_of_boxes(emulation, monkeypatch):
    monkeypatch.setattr(cuda, "_kernels", lambda _: emulation)
    points = torch.randn(33_000, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cuda.mean_squared_distances(points, 3), distCUDA2(points))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CLOUDS)
def test_kernels_on_a_gpu_equal_all_pairs(name):
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    assert cuda.available(torch.device("cuda:0"))
    torch.testing.assert_close(distCUDA2(points.cuda()).cpu(), all_pairs(points), rtol=1e-5, atol=1e-12)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nvcc_compiles_the_kernels(architecture, tmp_path):
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings"]
    target = tmp_path / "kernels.cubin"
    done = subprocess.run([*command, KERNELS / "kernels.cu", "-o", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("architecture", [80, 90])
def test_nvrtc_compiles_the_kernels(architecture, tmp_path, monkeypatch):
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    try:
        nvrtc._nvrtc()
    except nvrtc.Unavailable as error:
        pytest.skip(str(error))
    assert nvrtc.binary_for(KERNELS / "kernels.cu", architecture)[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Path(nvrtc.__file__), RASTERIZER / "diff_gaussian_rasterization" / "nvrtc.py"),
        (Path(__file__).resolve().parents[1] / "compiler.py", RASTERIZER / "compiler.py"),
    ],
    ids=["CUDA", "C++"],
)
def test_the_compilers_are_those_of_the_rasterizer(ours, theirs):
    if not theirs.exists():
        pytest.skip("diff-gaussian-rasterization is not beside this package")
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("name", CLOUDS)
@pytest.mark.usefixtures("implementation")
def test_equals_all_pairs(name):
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    torch.testing.assert_close(distCUDA2(points), all_pairs(points), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", CLOUDS)
def test_pairs_in_chunks_equal_all_pairs(name):
    points = CLOUDS[name](torch.Generator().manual_seed(0))
    torch.testing.assert_close(_C._by_all_pairs(points, 3), all_pairs(points), rtol=1e-5, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_fewer_than_four_points():
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    assert distCUDA2(points[:0]).shape == (0,)
    assert distCUDA2(points[:1]).tolist() == [0.0]
    assert distCUDA2(points[:2]).tolist() == [1.0, 1.0]
    assert distCUDA2(points).tolist() == pytest.approx([2.5, 3.0, 4.5])


def test_without_the_compiled_search_scipy_serves_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(_C.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("no such file")))
    _C._library.cache_clear()
    points = CLOUDS["uniform"](torch.Generator().manual_seed(0))
    try:
        with caplog.at_level(logging.WARNING):
            torch.testing.assert_close(distCUDA2(points), all_pairs(points))
            distCUDA2(points)
    finally:
        monkeypatch.undo()
        _C._library.cache_clear()
    assert [record.message for record in caplog.records] == [
        "the compiled neighbour search is missing (no such file): the slower scipy is used"
    ]


def test_without_a_driver_the_kernels_are_missed_once(monkeypatch, caplog):
    def unavailable():
        raise nvrtc.Unavailable("the CUDA driver is not found")

    monkeypatch.setattr(nvrtc, "_driver", unavailable)
    cuda.available.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert [cuda.available(torch.device("cuda:0")) for _ in range(2)] == [False, False]
    finally:
        cuda.available.cache_clear()
    assert [record.message for record in caplog.records] == [
        "the CUDA neighbour search is missing (the CUDA driver is not found): all pairs are compared by PyTorch"
    ]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(4, 120), levels=st.integers(1, 50), seed=st.integers(0, 1000))
def test_any_lattice_cloud(count, levels, seed):
    points = torch.randint(0, levels, (count, 3), generator=torch.Generator().manual_seed(seed)).float()
    torch.testing.assert_close(distCUDA2(points), all_pairs(points))


def test_order_of_the_points_does_not_matter():
    rng = torch.Generator().manual_seed(1)
    points = torch.rand(3000, 3, generator=rng)
    shuffle = torch.randperm(3000, generator=rng)
    assert torch.equal(distCUDA2(points[shuffle]), distCUDA2(points)[shuffle])
    strided = torch.cat([points, points], dim=1)[:, :3]
    assert torch.equal(distCUDA2(strided), distCUDA2(points))


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ([[0.0, 0.0, 0.0]], TypeError, "torch.Tensor"),
        (torch.zeros(5, 3, dtype=torch.float64), TypeError, "float32"),
        (torch.zeros(5, 2), ValueError, r"\(P, 3\)"),
        (torch.zeros(15), ValueError, r"\(P, 3\)"),
        (torch.tensor([[0.0, float("nan"), 0.0]]), ValueError, "finite"),
        (torch.tensor([[0.0, float("inf"), 0.0]]), ValueError, "finite"),
    ],
)
def test_bad_points_are_refused(points, error, message):
    with pytest.raises(error, match=message):
        distCUDA2(points)
