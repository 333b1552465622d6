"""What every test stands on: no model hub, few threads, one seed, and a way to ask for a GPU."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import random
import signal
from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import torch
from diff_gaussian_rasterization import set_num_threads

# Small tensors are slower on many threads, and workers beside each other have a core each; the matrix of tests asks for
# threads all the same.
_usual = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads())
_threads = int(os.environ.get("TEST_THREADS", _usual))
torch.set_num_threads(_threads)
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("reproducible")

# What a test writes need not outlive the machine; that a file is flushed is the matter of tests/test_files.py.
os.fsync = lambda _file: None

# Whoever starts the tests in the background, or under nohup, has these ignored, and so would the programs of the tests.
for _number in (signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Every test starts from the same random state, in whatever order the tests run."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_again() -> Iterator[None]:
    """Whole commands set how many threads there are; the next test has as many as the others."""
    yield
    torch.set_num_threads(_threads)
    set_num_threads(None)


@pytest.fixture(autouse=True)
def _checks(request, monkeypatch) -> None:
    """Whole runs call a function thousands of times: checks of shapes, which tests of the parts have, are a quarter."""
    if request.node.get_closest_marker("whole_runs"):
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator on the CPU, as every random function of the program takes one."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def gpu() -> torch.device:
    """The CUDA device; a test that asks for it is skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def prior(tmp_path_factory):
    """The folder of a diffusion model of random weights, tiny in all its parts; nobody writes into it."""
    from tests.tiny_models import save_pipeline

    return save_pipeline(tmp_path_factory.mktemp("prior"), autoencoder="tiny")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Whole programs, as processes that are there a fraction of a second after they were asked for."""
    from tests.faults import programs

    with programs.programs(tmp_path_factory.mktemp("programs")) as server:
        yield server
