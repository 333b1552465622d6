"""What a card gains by: compiled code that is kept and not made again, cuDNN's search; and what it needs."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._inductor.runtime.cache_dir_utils import cache_dir

from arguments import HardwareParams
from guidance.prior import compilation
from guidance.prior.channels_last import backend
from guidance.prior.compilation import CACHE_VARIABLE, compiled_folder, keep_compiled
from tests.test_memory import model_of
from tests.tiny_models import save_pipeline
from utils.repository import ROOT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("prior"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A user's cache folder, and no folder of PyTorch's set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, "")  # so that it is put back, whatever the code under test sets
    monkeypatch.delenv(CACHE_VARIABLE)
    return tmp_path / "dreammapping" / "compiled"


def test_compiled_code_is_kept_in_the_users_cache(cache):
    keep_compiled()
    assert os.environ[CACHE_VARIABLE] == str(cache) == str(compiled_folder()) and cache.is_dir()


@pytest.mark.parametrize("name", ["elsewhere", "torchinductor_mine"])
def test_a_folder_that_is_set_stays(cache, monkeypatch, name):
    folder = str(Path(tempfile.gettempdir()) / name)
    monkeypatch.setenv(CACHE_VARIABLE, folder)
    keep_compiled()
    assert os.environ[CACHE_VARIABLE] == folder and not cache.exists()


def test_what_pytorch_itself_has_set_does_not_stay(cache):
    assert cache_dir() == os.environ[CACHE_VARIABLE] != str(cache)  # as its compiler does when it is imported
    keep_compiled()
    assert os.environ[CACHE_VARIABLE] == str(cache)


def test_where_no_folder_can_be_made_pytorchs_own_stays(cache, monkeypatch):
    cache.parent.write_text("a file is in the way")
    keep_compiled()
    assert CACHE_VARIABLE not in os.environ

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compilation, "compiled_folder", homeless)
    keep_compiled()
    assert CACHE_VARIABLE not in os.environ


TWICE = """
import torch
from torch._dynamo.utils import counters
from guidance.prior.compilation import keep_compiled
keep_compiled()
print(float(torch.compile(lambda x: (x * 2).sin().sum())(torch.ones(3))), counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch compiles for a CPU with g++")
def test_a_second_start_finds_what_the_first_one_compiled(cache):
    started = [
        subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    (first, none), (second, found) = (each.stdout.split() for each in started)
    assert int(none) == 0 < int(found) and first == second
    assert any(path.is_file() for path in cache.rglob("*"))


def backends(searched):
    """Of the U-Net and of the encoder."""
    return [backend(searched=searched), backend(searched=searched, trained=True)]


@pytest.mark.parametrize(("compile_", "searched"), [("always", False), ("autotune", True)])
def test_several_kernels_are_tried_where_that_is_asked_for(folder, cache, monkeypatch, compile_, searched):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, backend: seen.append(backend))
    model_of(folder, compile=compile_).compile()
    assert seen == backends(searched)


def test_another_run_of_the_same_weights_compiles_as_it_is_set(folder, cache, monkeypatch):
    seen = []

    def compile_module(self, backend):
        seen.append(backend)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", compile_module)
    loaded = model_of(folder, memory="max")
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        for compile_, searched in (("always", False), ("autotune", True), ("always", False)):
            seen.clear()
            run = loaded.anew(loaded._params, HardwareParams(memory="max", compile=compile_))
            run.compile()
            assert run.compiled and seen == backends(searched)
        torch.backends.cudnn.benchmark = True  # as on a card
        eager = run.anew(run._params, HardwareParams(memory="max", compile="never"))
        assert not eager.compiled and not torch.backends.cudnn.benchmark
        assert eager.unet._compiled_call_impl is eager.vae.encoder._compiled_call_impl is None


@pytest.mark.parametrize(
    ("device", "memory", "searches"), [("cuda", "max", True), ("cuda", "8gb", False), ("cpu", "max", False)]
)
def test_cudnn_searches_where_a_card_has_room(folder, cache, monkeypatch, device, memory, searches):
    """The networks stay on the CPU here: only the device's name is a card's."""
    model = model_of(folder, memory=memory)
    model.device = torch.device(device)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, backend: None)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False):
        model.compile()
        assert torch.backends.cudnn.benchmark is searches
    assert os.environ[CACHE_VARIABLE] == str(cache)


@pytest.mark.parametrize("memory", ["max", "8gb"])
def test_after_the_warm_up_nothing_is_compiled(folder, cache, monkeypatch, memory):
    """Whatever the number of branches, and whatever made the latents: an encoder's are channels last, noise is not."""
    torch._dynamo.reset()
    counter, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, backend: compile_module(self, backend=counter)
    )
    model = model_of(folder, memory=memory)
    model.compile()
    model.warm_up(views=2, batches=range(2 * 2, 4 * 2 + 1))
    warmed = counter.frame_count
    assert warmed > 0
    for layout in (torch.contiguous_format, torch.channels_last):
        for count in range(2 * 2, 4 * 2 + 1):
            latents = torch.zeros(count, 4, *model.latent_size).to(memory_format=layout)
            text = torch.zeros(1, *model.text_shape).expand(count, -1, -1)
            model.predict_noise(latents, torch.ones(count).long(), text)
        images = torch.zeros(2, 3, *model.image_size).to(memory_format=layout).requires_grad_()
        model.encode_images(images, torch.Generator()).sum().backward()
    assert counter.frame_count == warmed
