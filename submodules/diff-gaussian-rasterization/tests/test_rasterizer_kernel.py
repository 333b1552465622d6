"""The compiled kernel against the PyTorch reference in float64."""

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from diff_gaussian_rasterization import cpu, rasterize, set_num_threads
from gaussian_scenes import SCENES, assert_agrees, cloud, draw, orbit
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the compiled kernel was not built")


@pytest.fixture(params=cpu.instruction_sets())
def instruction_set(request):
    cpu.use_instruction_set(request.param)
    yield request.param
    cpu.use_instruction_set(cpu.instruction_sets()[0])


@functools.cache
def truth(name: str):
    scene, options = SCENES[name]
    return draw(scene(), orbit(1, 203, 117), dtype=torch.float64, backend="torch", **options)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("name", SCENES)
def test_kernel_agrees_with_the_reference(name):
    scene, options = SCENES[name]
    assert_agrees(draw(scene(), orbit(1, 203, 117), backend="cpu", **options), truth(name))


@pytest.mark.usefixtures("instruction_set")
def test_views_may_differ_in_scales_colours_and_degree():
    cameras = orbit(3, 70, 50)
    scene = cloud(200, degree=2)
    scene["scales"] = scene["scales"] * torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    degrees = [0, 2, 1]
    fast = draw(scene, cameras, backend="cpu", sh_degree=degrees)
    assert_agrees(fast, draw(scene, cameras, dtype=torch.float64, backend="torch", sh_degree=degrees))

    scene["colors_precomp"] = torch.rand(3, 200, 3)
    del scene["shs"]
    assert_agrees(draw(scene, cameras, backend="cpu"), draw(scene, cameras, torch.float64, backend="torch"))


def test_bits_do_not_depend_on_the_number_of_threads():
    cameras = orbit(3, 203, 117)
    results = []
    for threads in (1, 2, 3, 7):
        set_num_threads(threads)
        results.append(draw(cloud(3000, degree=1), cameras, backend="cpu", sh_degree=1))
    set_num_threads(None)
    first_images, first_gradients = results[0]
    for images, gradients in results[1:]:
        for one, other in zip(first_images, images, strict=True):
            assert torch.equal(one, other)
        for name, gradient in gradients.items():
            assert torch.equal(gradient, first_gradients[name]), name


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def openmp_libraries() -> set[str]:
    maps = Path("/proc/self/maps")
    return (
        set(re.findall(r"lib(gomp|omp|iomp5)[-.]", maps.read_text(encoding="utf-8")))
        if maps.exists()
        else set()
    )


@pytest.mark.skipif(
    openmp_libraries() != {"gomp"}, reason="GNU's OpenMP alone ends its threads when it rests"
)
def test_torchs_threads_rest_while_the_kernel_runs_and_come_back(monkeypatch):
    def multiply() -> int:
        torch.ones(500, 500) @ torch.ones(500, 500)
        return threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        busy = multiply()
        cpu.rest_torch_threads()
        until = time.monotonic() + 10.0
        while threads() > busy - 2 and time.monotonic() < until:  # the kernel forgets a thread a little later
            time.sleep(0.01)
        assert threads() == busy - 2
        assert (multiply(), torch.get_num_threads()) == (busy, 3)
    finally:
        torch.set_num_threads(before)
    rested = []
    monkeypatch.setattr(cpu, "rest_torch_threads", lambda: rested.append(True))
    draw(cloud(5), orbit(1, 9, 9), backend="cpu")
    assert len(rested) == 2  # forward and backward


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_draws_as_well():
    script = textwrap.dedent("""
        import os, torch
        from diff_gaussian_rasterization import rasterize
        from gaussian_scenes import cloud, orbit
        torch.set_num_threads(2)
        scene = {"means2D": torch.zeros(1, 50, 3), **cloud(50), **orbit(1, 40, 30)}
        torch.ones(500, 500) @ torch.ones(500, 500)
        child = os.fork()
        if child == 0:
            rasterize(sh_degree=0, backend="cpu", **scene)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """)
    command = [sys.executable, "-W", "ignore", "-c", script]
    with subprocess.Popen(command, cwd=Path(__file__).parent, start_new_session=True) as process:
        try:
            assert process.wait(timeout=60) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_backward_twice_gives_the_same_gradient():
    scene = {name: value.requires_grad_() for name, value in cloud(50).items()}
    drawn = rasterize(means2D=torch.zeros(1, 50, 3), sh_degree=0, backend="cpu", **scene, **orbit(1, 40, 30))
    loss = drawn.color.square().sum()
    first = torch.autograd.grad(loss, list(scene.values()), retain_graph=True)
    again = torch.autograd.grad(loss, list(scene.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_absolute_gradients_add_up_as_gradients_do(backend):
    means2D = torch.zeros(1, 50, 3, requires_grad=True)
    drawn = rasterize(
        means2D=means2D, sh_degree=0, backend=backend, absgrad=True, **cloud(50), **orbit(1, 40, 30)
    )
    loss = drawn.color.square().sum()
    loss.backward(retain_graph=True)
    once = means2D.absgrad.clone()
    loss.backward()
    assert once.sum() > 0
    torch.testing.assert_close(means2D.absgrad, 2 * once)


@settings(max_examples=15, deadline=None)
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
    (fast, gradients), (slow, _) = (draw(scene, orbit(1, width, height), backend=b) for b in ("cpu", "torch"))
    for name in ("color", "alpha"):
        a, b = getattr(fast, name), getattr(slow, name)
        assert torch.isfinite(a).all()
        assert ((a - b).abs() > 1e-3).float().mean() <= 0.02
    assert all(torch.isfinite(g).all() for g in gradients.values())
