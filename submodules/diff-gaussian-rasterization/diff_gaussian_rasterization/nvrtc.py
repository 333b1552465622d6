"""CUDA kernels from source, at first use: compiled by NVRTC, kept on disk, launched through the driver.

Nothing but a driver is needed: NVRTC comes with torch's CUDA builds, or with `pip install nvidia-cuda-nvrtc`. Sources
include no headers but those beside them. This file is the same in `diff_gaussian_rasterization` and in `simple_knn`.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p, create_string_buffer
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

Launch = Callable[[str, int, int], None]
"""Runs the kernel of a name by so many blocks of so many threads."""
CACHE_VARIABLE = "GAUSSIAN_KERNEL_CACHE"
"""Environment variable that names the folder of compiled kernels."""


class Unavailable(RuntimeError):
    """CUDA kernels cannot be compiled or loaded on this machine."""


class Module:
    """The kernels of one source file, ready to run on one device.

    Args:
        source: the `.cu` file; headers are the `.h` files beside it.
        device: a CUDA device.

    Raises:
        Unavailable: no driver, no NVRTC, a source that it does not compile, or code that the driver does not take.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        self.device = device
        self.functions: dict[str, c_void_p] = {}
        self.driver = _driver()
        major, minor = torch.cuda.get_device_capability(device)
        binary = binary_for(source, 10 * major + minor)
        self.handle = c_void_p()
        try:
            with self._current():
                self._check(self.driver.cuModuleLoadData(byref(self.handle), binary), "cuModuleLoadData")
        except RuntimeError as error:
            raise Unavailable(str(error)) from error

    @contextlib.contextmanager
    def launching(self, argument: ctypes.Structure) -> Iterator[Launch]:
        """Launches of kernels that take `argument` by value as it is then, on torch's current stream of the device.

        A launch does not wait. What all of them need is asked for once: it takes longer than a launch.
        """
        stream = c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        arguments = (c_void_p * 1)(ctypes.addressof(argument))
        start = self.driver.cuLaunchKernel

        def launch(kernel: str, blocks: int, threads: int) -> None:
            function = self.functions.get(kernel) or self._function(kernel)
            status = start(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, None)
            if status:
                self._check(status, f"launch of {kernel}")

        with self._current():
            yield launch

    def _function(self, kernel: str) -> c_void_p:
        function = c_void_p()
        status = self.driver.cuModuleGetFunction(byref(function), self.handle, kernel.encode())
        self._check(status, f"cuModuleGetFunction({kernel})")
        self.functions[kernel] = function
        return function

    @contextlib.contextmanager
    def _current(self) -> Iterator[None]:
        """Torch's context of the device is the current one; autograd's threads may not have one yet."""
        before = c_void_p()
        self._check(self.driver.cuCtxGetCurrent(byref(before)), "cuCtxGetCurrent")
        context = _context(self.device.index or 0)
        if before.value == context.value:
            yield
            return
        self._check(self.driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        try:
            yield
        finally:
            if before.value:
                self.driver.cuCtxSetCurrent(before)

    def _check(self, status: int, what: str) -> None:
        if status:
            text = c_char_p()
            self.driver.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"CUDA, {what}: {(text.value or b'unknown error').decode()} ({status})")


def binary_for(source: Path, architecture: int) -> bytes:
    """Machine code for compute capability `architecture` (90 is 9.0), from the cache or compiled and put there.

    A device that is newer than NVRTC gets PTX, which its driver compiles.

    Raises:
        Unavailable: no NVRTC, or it does not compile the source.
    """
    texts = {path.name: path.read_bytes() for path in sorted(source.parent.glob("*.h"))}
    library = _nvrtc()
    supported = _supported(library)
    known = architecture in supported
    oldest, older = supported[0], [a for a in supported if a <= architecture]
    target = f"sm_{architecture}" if known else f"compute_{max(older, default=oldest)}"
    options = (f"--gpu-architecture={target}", "--std=c++17", "--fmad=true")
    key = hashlib.sha256(repr((_version(library), options, source.read_bytes(), texts)).encode()).hexdigest()
    cached = cache_folder() / f"{source.stem}-{target}-{key[:32]}.bin"
    with contextlib.suppress(OSError):
        return cached.read_bytes()
    binary = _compile(library, source.name, source.read_bytes(), texts, options, cubin=known)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as temporary:
            temporary.write(binary)
        os.replace(temporary.name, cached)
    except OSError as error:
        logger.warning(
            "compiled CUDA kernels cannot be kept (%s), so every start compiles them: "
            "set %s to a folder that can be written",
            *(error, CACHE_VARIABLE),
        )
    return binary


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "gaussian-kernels"


def _compile(
    library: ctypes.CDLL,
    name: str,
    source: bytes,
    headers: dict[str, bytes],
    options: tuple[str, ...],
    cubin: bool,
) -> bytes:
    program = c_void_p()
    strings = c_char_p * len(headers)
    status = library.nvrtcCreateProgram(
        *(byref(program), source, name.encode(), len(headers)),
        *(strings(*headers.values()), strings(*(header.encode() for header in headers))),
    )
    if status:
        raise Unavailable(f"NVRTC cannot begin to compile {name} (error {status})")
    try:
        encoded = (c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), encoded):
            log = _read(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
            first = next((line for line in log.decode(errors="replace").splitlines() if line.strip()), "")
            raise Unavailable(f"NVRTC does not compile {name}: {first}")
        if cubin:
            return _read(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program)
        return _read(library.nvrtcGetPTXSize, library.nvrtcGetPTX, program)
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _read(size_of, read, program: c_void_p) -> bytes:
    size = c_size_t()
    size_of(program, byref(size))
    text = create_string_buffer(size.value)
    read(program, text)
    return text.raw


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    for path in _candidates():
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            library.nvrtcDestroyProgram.argtypes = [POINTER(c_void_p)]
            library.nvrtcCompileProgram.argtypes = [c_void_p, c_int, c_void_p]
            return library
    raise Unavailable("NVRTC is not found: install torch's CUDA build, or `pip install nvidia-cuda-nvrtc`")


def _candidates() -> Iterator[str]:
    """NVRTC's library as pip's packages bring it, as torch's Windows build has it, as the system finds it."""
    pattern = "nvrtc64_*.dll" if sys.platform == "win32" else "libnvrtc.so*"
    folders = [Path(torch.__file__).parent / "lib"]
    nvidia = importlib.util.find_spec("nvidia")
    for root in (nvidia.submodule_search_locations or ()) if nvidia else ():
        folders += [
            *Path(root).glob("cuda_nvrtc/*"),
            *Path(root).glob("cu[0-9]*/*"),
            *Path(root).glob("cu[0-9]*/bin/*"),
        ]
    found = [
        p
        for folder in folders
        for p in folder.glob(pattern)
        if "alt" not in p.name and "builtins" not in p.name
    ]
    # The one that torch was built with comes first.
    major = (torch.version.cuda or "").split(".")[0]
    yield from map(str, sorted(found, key=lambda p: re.search(rf"[._]{major}", p.name) is None))
    yield from ("libnvrtc.so", *(f"libnvrtc.so.{m}" for m in (major, 13, 12) if m))


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = c_int(), c_int()
    library.nvrtcVersion(byref(major), byref(minor))
    return major.value, minor.value


def _supported(library: ctypes.CDLL) -> list[int]:
    count = c_int()
    library.nvrtcGetNumSupportedArchs(byref(count))
    architectures = (c_int * count.value)()
    library.nvrtcGetSupportedArchs(architectures)
    return sorted(architectures)


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise Unavailable(f"the CUDA driver is not found ({error})") from None
    driver.cuLaunchKernel.argtypes = [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p]
    driver.cuModuleLoadData.argtypes = [POINTER(c_void_p), c_char_p]
    driver.cuModuleGetFunction.argtypes = [POINTER(c_void_p), c_void_p, c_char_p]
    driver.cuCtxSetCurrent.argtypes = [c_void_p]
    return driver


@functools.cache
def _context(device: int) -> c_void_p:
    """The context that torch's runtime uses."""
    torch.cuda.init()
    context, ordinal = c_void_p(), c_int()
    status = _driver().cuDeviceGet(byref(ordinal), device) or _driver().cuDevicePrimaryCtxRetain(
        byref(context), ordinal
    )
    if status:
        raise RuntimeError(f"CUDA device {device}: no context (error {status})")
    return context
