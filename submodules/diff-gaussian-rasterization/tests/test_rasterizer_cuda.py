"""The CUDA kernels against the PyTorch reference in float64: emulated on the CPU, and on a GPU where there is one."""

import ctypes
import functools
import logging
import math
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_emulation import compile_library
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    cuda,
    nvrtc,
    rasterize,
    room,
)
from diff_gaussian_rasterization.room import Room
from gaussian_scenes import SCENES, assert_agrees, beyond_floats, cloud, draw, orbit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = Path(cuda.__file__).with_name("csrc")
SMALL = orbit(1, 67, 45)


@functools.cache
def truth(name: str):
    scene, options = SCENES[name]
    return draw(scene(), SMALL, dtype=torch.float64, backend="torch", **options)


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("name", SCENES)
def test_emulated_kernels_agree_with_the_reference(name):
    scene, options = SCENES[name]
    assert_agrees(draw(scene(), SMALL, backend="cuda", **options), truth(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SCENES)
def test_kernels_on_a_gpu_agree_with_the_reference(name):
    scene, options = SCENES[name]
    assert cuda.available(torch.device("cuda:0"))
    assert_agrees(draw(scene(), SMALL, device="cuda:0", backend="cuda", **options), truth(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_call_on_a_gpu_does_not_wait_for_it():
    scene, cameras = cloud(300), orbit(2, 64, 64)
    draw(scene, cameras, device="cuda:0", backend="cuda")
    leaves = {name: value.to("cuda:0").requires_grad_() for name, value in scene.items()}
    given = {n: v.to("cuda:0") if isinstance(v, torch.Tensor) else v for n, v in cameras.items()}
    means2D = torch.zeros(2, 300, 3, device="cuda:0", requires_grad=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rasterize(means2D=means2D, sh_degree=0, backend="cuda", **leaves, **given).color.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("emulation")
def test_views_may_differ_in_scales_colours_and_degree():
    cameras = orbit(3, 35, 50)
    scene = cloud(200, degree=2)
    scene["scales"] = scene["scales"] * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    fast = draw(scene, cameras, backend="cuda", sh_degree=[0, 2, 1])
    assert_agrees(fast, draw(scene, cameras, torch.float64, backend="torch", sh_degree=[0, 2, 1]))
    scene["colors_precomp"] = torch.rand(3, 200, 3)
    del scene["shs"]
    assert_agrees(draw(scene, cameras, backend="cuda"), draw(scene, cameras, torch.float64, backend="torch"))


@pytest.mark.usefixtures("emulation")
def test_gaussians_at_an_infinite_depth_are_drawn_last():
    scene, camera = beyond_floats()
    given = {"means2D": torch.zeros(1, 4, 3), "sh_degree": 0, **scene, **camera}
    slow = rasterize(**given, backend="torch")
    assert torch.equal(slow.radii[0] > 0, torch.tensor([False, True, True, True]))
    for backend in ("cpu", "cuda"):
        fast = rasterize(**given, backend=backend)
        assert torch.equal(fast.radii, slow.radii)
        torch.testing.assert_close(fast.color, slow.color)
        torch.testing.assert_close(fast.alpha, slow.alpha)


@pytest.mark.usefixtures("emulation")
def test_a_backward_pass_frees_the_lists_though_the_image_lives_on(monkeypatch):
    made = []

    class Arrays(cuda._Arrays):
        def __init__(self, *given, **sizes) -> None:
            super().__init__(*given, **sizes)
            made.append(weakref.ref(self.memory))

    monkeypatch.setattr(cuda, "_Arrays", Arrays)
    scene = cloud(9) | {"means3D": cloud(9)["means3D"].requires_grad_()}
    drawn = rasterize(means2D=torch.zeros(1, 9, 3), sh_degree=0, backend="cuda", **scene, **orbit(1, 9, 9))
    assert sum(memory() is not None for memory in made) == 1
    drawn.color.sum().backward()
    assert all(memory() is None for memory in made)
    assert drawn.color.grad_fn is not None


def assert_same_image(one, other) -> None:
    """Bit for bit; in gradients, warps add up in any order."""
    for a, b in zip(one[0], other[0], strict=True):
        assert torch.equal(a, b)
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).norm() <= 1e-4 * gradient.norm(), name


@pytest.fixture
def rooms(monkeypatch) -> list[int]:
    """How many pairs of Gaussian and tile each call had room for."""
    noted: list[int] = []
    capacity = Room.capacity
    monkeypatch.setattr(Room, "capacity", lambda *given: noted.append(capacity(*given)) or noted[-1])
    return noted


@pytest.mark.usefixtures("emulation")
def test_pairs_that_do_not_fit_are_drawn_all_the_same_and_fit_the_next_time(rooms, monkeypatch):
    scene, cameras = cloud(200, size=0.1), orbit(2, 67, 45)
    roomy = draw(scene, cameras, backend="cuda")
    monkeypatch.setattr(room, "FIRST_CAPACITY", 7)
    cuda._rooms.clear()
    for _ in range(3):
        assert_same_image(draw(scene, cameras, backend="cuda"), roomy)
    assert rooms[1] == 7
    assert 200 < rooms[2] == rooms[3] < rooms[0]


@pytest.mark.usefixtures("emulation")
def test_room_for_pairs_is_that_of_the_scene_which_is_drawn(rooms, monkeypatch):
    """Whatever was drawn before: a large scene takes no room from a small one, nor the other way."""
    monkeypatch.setattr(room, "FIRST_CAPACITY", 8)
    small, large, cameras = cloud(20), cloud(300, size=0.3), orbit(2, 67, 45)
    for scene in (small, small, large, large, small, large):
        draw(scene, cameras, backend="cuda")
    assert rooms[4] == rooms[1]
    assert rooms[5] == rooms[3] > 20 * rooms[1]


@pytest.mark.usefixtures("emulation")
def test_a_call_in_a_stream_that_is_captured_is_refused_and_does_no_harm(monkeypatch):
    call = {"means2D": torch.zeros(1, 9, 3), "sh_degree": 0, "backend": "cuda", **cloud(9), **orbit(1, 9, 9)}
    with monkeypatch.context() as capture:
        capture.setattr(cuda, "_is_captured", lambda _: True)
        with pytest.raises(RuntimeError, match="captured"):
            rasterize(**call)
    assert not any(each.reports for each in cuda._rooms.values())
    rasterize(**call)


def test_nothing_depends_on_the_order_in_which_blocks_and_threads_begin(emulation):
    forward = draw(cloud(300), SMALL, backend="cuda")
    emulation.reverse = True
    backward = draw(cloud(300), SMALL, backend="cuda")
    assert_same_image(forward, backward)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [("half_a_warp", "deadlock"), ("two_collectives", "meets"), ("half_a_block", "deadlock")],
)
def test_the_emulation_finds_collectives_that_not_all_threads_reach(emulation, kernel, message):
    with emulation.launching(cuda.CFrame()) as launch, pytest.raises(AssertionError, match=message):
        launch(kernel, 1, 64)


def test_in_reverse_a_block_misses_what_a_lower_one_writes(emulation):
    found = []
    for reverse in (False, True):
        emulation.reverse = reverse
        counts = torch.zeros(4, dtype=torch.int32)
        with emulation.launching(cuda.CFrame(radii=counts.data_ptr())) as launch:
            launch("after_a_lower_block", 4, 32)
        found.append(counts.tolist())
    assert found == [[1, 2, 3, 4], [1, 1, 1, 1]]


@pytest.mark.usefixtures("emulation")
def test_more_tiles_than_short_keys_hold_are_sorted_as_well(monkeypatch):
    short = draw(cloud(100), SMALL, backend="cuda")
    monkeypatch.setattr(cuda, "SHORT_KEYS", 4)
    monkeypatch.setattr(cuda, "DIGIT_BITS", 3)
    assert_same_image(draw(cloud(100), SMALL, backend="cuda"), short)


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("means3D", (3, 1), math.nan),
        ("means3D", (3, 1), math.inf),
        ("opacities", (4, 0), math.nan),
        ("scales", (0, 0), math.inf),
        ("rotations", (1, 3), math.nan),
        ("shs", (2, 0, 1), math.inf),
        ("viewmatrix", (0, 2, 2), math.nan),
        ("bg", (0, 1), math.nan),
        ("tanfovx", (0,), 0.0),
    ],
)
def test_bad_numbers_are_found_at_once_or_by_the_next_call(name, index, value):
    good = {
        "means2D": torch.zeros(1, 9, 3),
        "sh_degree": 0,
        "backend": "cuda",
        **cloud(9),
        **orbit(1, 20, 20),
    }
    broken = good[name].clone()
    broken[index] = value
    bad = good | {name: broken}
    with pytest.raises(ValueError, match=name):
        rasterize(**bad, debug=True)
    assert torch.isfinite(rasterize(**good, debug=True).color).all()
    rasterize(**bad)
    with pytest.raises(ValueError, match=name):
        rasterize(**good)
    rasterize(**good)


@pytest.mark.usefixtures("emulation")
def test_the_classic_call_reports_bad_numbers_with_debug():
    cameras = orbit(1, 20, 20)
    fields = {n: v[0] if isinstance(v, torch.Tensor) else v for n, v in cameras.items()}
    camera = GaussianRasterizationSettings(
        **fields, scale_modifier=1.0, sh_degree=0, prefiltered=False, debug=True
    )
    scene = cloud(9) | {"means2D": torch.zeros(9, 3)}
    scene["means3D"][0] = math.nan
    with pytest.raises(ValueError, match="means3D"):
        GaussianRasterizer(camera, backend="cuda")(**scene)


@pytest.mark.usefixtures("emulation")
def test_no_gaussians_and_no_views():
    drawn, gradients = draw(cloud(0), orbit(2, 21, 13), backend="cuda")
    assert torch.equal(drawn.color, orbit(2, 21, 13)["bg"][:, :, None, None].expand(2, 3, 13, 21))
    assert gradients["shs"].shape == (0, 1, 3)
    none = {n: v[:0] if isinstance(v, torch.Tensor) else v for n, v in orbit(1, 21, 13).items()}
    drawn, gradients = draw(cloud(5), none, backend="cuda")
    assert drawn.color.shape == (0, 3, 13, 21)
    assert torch.equal(gradients["means3D"], torch.zeros(5, 3))


@pytest.mark.usefixtures("emulation")
def test_gradients_of_one_output_alone_and_of_no_image():
    scene, cameras = cloud(60), orbit(1, 30, 30)
    for image in ("depth", "alpha"):
        grads = []
        for backend in ("cuda", "torch"):
            means = scene["means3D"].clone().requires_grad_()
            drawn = rasterize(
                means2D=torch.zeros(1, 60, 3),
                sh_degree=0,
                backend=backend,
                **(scene | {"means3D": means}),
                **cameras,
            )
            grads.append(torch.autograd.grad(getattr(drawn, image).sum(), means)[0])
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("emulation")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(0, 40),
    width=st.integers(1, 50),
    height=st.integers(1, 50),
    size=st.floats(1e-6, 1e4),
    spread=st.floats(0.0, 1e3),
    seed=st.integers(0, 1000),
)
def test_any_scene_is_drawn_like_the_reference(count, width, height, size, spread, seed):
    scene = cloud(count, size=size, spread=spread, seed=seed)
    (fast, gradients), (slow, _) = (
        draw(scene, orbit(1, width, height), backend=b) for b in ("cuda", "torch")
    )
    for name in ("color", "alpha"):
        a, b = getattr(fast, name), getattr(slow, name)
        assert torch.isfinite(a).all()
        assert ((a - b).abs() > 1e-3).float().mean() <= 0.02
    assert all(torch.isfinite(g).all() for g in gradients.values())


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_120"])
def test_nvcc_compiles_the_kernels(architecture, tmp_path):
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", "-cubin", "-Werror", "all-warnings"]
    target = tmp_path / "kernels.cubin"
    done = subprocess.run([*command, KERNELS / "kernels.cu", "-o", target], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert target.stat().st_size > 10_000


def nvrtc_or_skip() -> None:
    try:
        nvrtc._nvrtc()
    except nvrtc.Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("architecture", [80, 90])
def test_nvrtc_compiles_the_kernels_once(architecture, tmp_path, monkeypatch):
    nvrtc_or_skip()
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    binary = nvrtc.binary_for(KERNELS / "kernels.cu", architecture)
    assert binary[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "_compile", None)
    assert nvrtc.binary_for(KERNELS / "kernels.cu", architecture) == binary


class FakeNvrtc:
    """Notes what is compiled; knows compute capabilities 8.0 and 9.0."""

    def __init__(self, monkeypatch) -> None:
        self.calls: list[tuple[str, ...]] = []
        monkeypatch.setattr(nvrtc, "_nvrtc", lambda: None)
        monkeypatch.setattr(nvrtc, "_supported", lambda _: [80, 90])
        monkeypatch.setattr(nvrtc, "_version", lambda _: (13, 0))
        monkeypatch.setattr(nvrtc, "_compile", self.compile)

    def compile(self, _library, _name, _source, _headers, options, cubin) -> bytes:
        self.calls.append((options[0], "cubin" if cubin else "ptx"))
        return f"binary {len(self.calls)}".encode()


def test_the_cache_is_keyed_by_source_headers_architecture_and_version(tmp_path, monkeypatch):
    fake = FakeNvrtc(monkeypatch)
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path / "cache"))
    source, header = tmp_path / "k.cu", tmp_path / "k.h"
    source.write_text("one")
    header.write_text("one")
    first = nvrtc.binary_for(source, 80)
    assert nvrtc.binary_for(source, 80) == first
    assert nvrtc.binary_for(source, 90) != first
    header.write_text("two")
    assert nvrtc.binary_for(source, 80) != first
    source.write_text("two")
    nvrtc.binary_for(source, 80)
    monkeypatch.setattr(nvrtc, "_version", lambda _: (13, 1))
    nvrtc.binary_for(source, 80)
    assert len(fake.calls) == 5
    assert not list((tmp_path / "cache").glob("tmp*"))


def test_a_device_newer_than_nvrtc_gets_ptx(tmp_path, monkeypatch):
    fake = FakeNvrtc(monkeypatch)
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, str(tmp_path))
    nvrtc.binary_for(KERNELS / "kernels.cu", 121)
    assert fake.calls == [("--gpu-architecture=compute_90", "ptx")]


def test_a_cache_that_cannot_be_written_is_named_once_and_does_no_harm(tmp_path, monkeypatch, caplog):
    FakeNvrtc(monkeypatch)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(nvrtc.CACHE_VARIABLE, os.fspath(blocked / "cache"))
    with caplog.at_level(logging.WARNING):
        assert nvrtc.binary_for(KERNELS / "kernels.cu", 80) == b"binary 1"
    assert nvrtc.CACHE_VARIABLE in caplog.text


class FakeDriver:
    """Has a context, and takes no code."""

    def __getattr__(self, _name):
        return lambda *_: 0

    def cuModuleLoadData(self, *_):
        return 222


def test_code_that_the_driver_does_not_take_makes_the_kernels_unavailable(monkeypatch):
    monkeypatch.setattr(nvrtc, "_driver", FakeDriver)
    monkeypatch.setattr(nvrtc, "_context", lambda _: ctypes.c_void_p())
    monkeypatch.setattr(nvrtc, "binary_for", lambda *_: b"")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with pytest.raises(nvrtc.Unavailable, match="cuModuleLoadData"):
        nvrtc.Module(KERNELS / "kernels.cu", torch.device("cuda:0"))


@pytest.fixture
def driver(emulated_kernels, tmp_path, monkeypatch):
    """`fake_driver.cpp` in the place of the driver, with a device that torch knows of."""
    library = ctypes.CDLL(str(compile_library(Path(__file__).with_name("fake_driver.cpp"), tmp_path)))
    library.fake_use(ctypes.cast(emulated_kernels.library.emulate, ctypes.c_void_p))
    library.fake_set_context.argtypes = [ctypes.c_void_p]
    library.fake_context.restype = library.fake_stream.restype = ctypes.c_void_p
    library.fake_launches.restype = ctypes.c_char_p
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library if name == "libcuda.so.1" else load(name))
    monkeypatch.setattr(nvrtc, "binary_for", lambda *_: b"machine code")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    stream = SimpleNamespace(cuda_stream=library.fake_stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    for cached in (nvrtc._driver, nvrtc._context):
        cached.cache_clear()
    yield library
    for cached in (nvrtc._driver, nvrtc._context):
        cached.cache_clear()


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's name is Linux's")
@pytest.mark.usefixtures("emulation")
def test_kernels_go_through_a_driver_as_it_wants_them(driver, monkeypatch):
    module = nvrtc.Module(KERNELS / "kernels.cu", torch.device("cuda:0"))
    monkeypatch.setattr(cuda, "_kernels", lambda _: module)
    others = 0x7F3123456780
    driver.fake_set_context(others)  # a thread that works on another device, and shall go on there
    scene, options = SCENES["degree 3"]
    assert_agrees(draw(scene(), SMALL, backend="cuda", **options), truth("degree 3"))
    assert driver.fake_context() == others
    with module.launching(cuda.CFrame()) as launch:
        with pytest.raises(RuntimeError, match=r"cuModuleGetFunction\(draw\): refused \(500\)"):
            launch("draw", 1, 32)
        with pytest.raises(RuntimeError, match=r"launch of gs_unknown: no such kernel \(1\)"):
            launch("gs_unknown", 1, 32)
    assert driver.fake_context() == others


class Operators(TorchDispatchMode):
    """Notes the operators that would start something on a device: all but those that reserve memory or look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        views = any(a.alias_info and not a.alias_info.is_write for a in func._schema.arguments)
        if not views and "empty" not in name:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's name is Linux's")
@pytest.mark.usefixtures("emulation")
def test_a_call_starts_no_more_than_this_on_a_device(driver, monkeypatch):
    """Four views of 272 px: 1156 tiles, whose keys take two passes."""
    module = nvrtc.Module(KERNELS / "kernels.cu", torch.device("cuda:0"))
    monkeypatch.setattr(cuda, "_kernels", lambda _: module)
    scene = {name: value.requires_grad_() for name, value in cloud(5, size=0.01).items()}
    means2D = torch.zeros(4, 5, 3, requires_grad=True)
    cuda._degrees((0,) * 4, torch.device("cpu"))
    cameras = orbit(4, 272, 272)
    with Operators() as forward:
        drawn = rasterize(means2D=means2D, sh_degree=0, backend="cuda", **scene, **cameras)
    assert driver.fake_launches().decode().split() == [
        *("gs_project", "gs_sort_depths", "gs_sort_depths", "gs_sort_depths", "gs_sort_depths", "gs_add_up"),
        *("gs_list_pairs", "gs_sort_tiles", "gs_count_tiles", "gs_sort_tiles", "gs_list_tiles", "gs_draw"),
    ]
    assert forward.names == ["stack", "zeros", "copy_"]  # tangents; counts of digits; the report
    driver.fake_forget_launches()
    images = (drawn.color, drawn.depth, drawn.alpha)
    ones = [torch.ones_like(image) for image in images]
    with Operators() as backward:
        torch.autograd.backward(images, ones)
    assert driver.fake_launches().decode().split() == ["gs_replay", "gs_project_backward"]
    assert [name for name in backward.names if name != "detach"] == ["new_zeros"]  # the sums


@pytest.mark.parametrize("missing", ["driver", "NVRTC"])
def test_without_driver_or_nvrtc_others_serve_and_it_is_said_once(missing, monkeypatch, caplog):
    reason = f"the {missing} is not found"

    def unavailable(*_):
        raise nvrtc.Unavailable(reason)

    if missing == "driver":
        monkeypatch.setattr(nvrtc, "_driver", unavailable)
    else:
        monkeypatch.setattr(cuda, "_kernels", unavailable)
    monkeypatch.setattr(cuda, "fits", lambda _: True)
    cuda.available.cache_clear()
    call = {"means2D": torch.zeros(1, 9, 3), "sh_degree": 0, **cloud(9), **orbit(1, 9, 9)}
    try:
        with caplog.at_level(logging.WARNING):
            assert torch.isfinite(rasterize(**call).color).all()
            rasterize(**call)
    finally:
        cuda.available.cache_clear()
    assert [record.message for record in caplog.records if "CUDA rasterizer" in record.message] == [
        f"the CUDA rasterizer is missing ({reason}): the PyTorch path is used, which is far slower"
    ]
    with pytest.raises(RuntimeError, match=reason):
        rasterize(**call, backend="cuda")
