"""The CUDA kernels (`csrc/kernels.cu`), compiled at first use by NVRTC. The host never waits for the device.

How many pairs of Gaussian and tile there are, and whether an input was not finite, is known on the device first. It
is copied to the host behind the call and read by a later one: that sizes the lists of pairs, and raises the error.
A call whose pairs do not fit draws the same image by a slower path.
"""

import functools
import logging
from collections import deque
from ctypes import Structure, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diff_gaussian_rasterization import nvrtc, structures
from diff_gaussian_rasterization.inputs import Gaussians, Views
from diff_gaussian_rasterization.reference import TILE, Outputs
from diff_gaussian_rasterization.structures import INPUTS, CGaussians, CGradients, CImages, CViews, pointer

logger = logging.getLogger(__name__)

THREADS = 256
"""Threads of a block, in every kernel; a tile of 16x16 pixels is one block."""
SPLAT_FLOATS, SUM_FLOATS = 16, 16
FIRST_CAPACITY = 1 << 16
RECENT_CALLS = 32
"""Calls after which room that none of them needed is given back."""
SHORT_KEYS = 1 << 15
"""Tiles from which keys take four bytes instead of two."""
MAX_CAPACITY = 1 << 28
"""Pairs of Gaussian and tile that are ever listed, about 8 GB; beyond, the slower path draws."""
BROKEN = {
    1: "means3D",
    2: "opacities",
    4: "shs or colors_precomp",
    8: "scales, rotations or cov3D_precomp",
    16: "viewmatrix, projmatrix, campos, bg, tanfovx or tanfovy",
}


class Kernels(Protocol):
    """What runs a kernel; `nvrtc.Module`, or the emulation of the tests."""

    def launch(self, kernel: str, blocks: int, threads: int, argument: Structure) -> None: ...


class CFrame(Structure):
    """`CudaFrame` of the kernels."""

    _fields_ = [
        ("gaussians", CGaussians),
        ("views", CViews),
        ("images", CImages),
        ("image_gradients", CImages),
        ("gradients", CGradients),
        *((n, c_void_p) for n in ("splats", "rects", "depths", "radii", "touched", "order", "ends")),
        *((n, c_void_p) for n in ("keys", "sorted_keys", "sorted_pairs", "pair_splats", "entries")),
        *((n, c_void_p) for n in ("tile_starts", "sums", "report")),
        ("capacity", c_int64),
        ("key_bytes", c_int64),
    ]


class _Report:
    """What the device found in one call, on its way to the host."""

    def __init__(self, found: Tensor) -> None:
        self.device, self.event = found.device, None
        if found.is_cuda:
            self.values = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self.values.copy_(found, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.values = found.clone()

    def arrived(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()


@dataclass
class _Device:
    """What one device remembers between calls."""

    capacity: int = field(default_factory=lambda: FIRST_CAPACITY)
    needed: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_CALLS))
    reports: deque[_Report] = field(default_factory=deque)

    def read_reports(self) -> None:
        """Takes in what has arrived.

        Raises:
            ValueError: an earlier call was given a NaN or an infinity.
        """
        while self.reports and self.reports[0].arrived():
            report = self.reports.popleft()
            pairs, broken = report.values.tolist()
            self.make_room(pairs)
            names = [name for bit, name in BROKEN.items() if broken & bit]
            if names:
                raise ValueError(
                    f"{'; '.join(names)}: expected finite numbers and positive fields of view, got others "
                    f"(in this call or an earlier one on {report.device}; debug=True finds it at once)"
                )

    def make_room(self, pairs: int) -> None:
        """Grows at once; shrinks when no recent call has needed half of what there is."""
        self.needed.append(pairs)
        most = max(self.needed)
        roomy = min(most + most // 4, MAX_CAPACITY)
        idle = len(self.needed) == RECENT_CALLS and 2 * roomy < self.capacity
        if pairs > self.capacity:
            self.capacity = roomy
        elif idle and self.capacity > FIRST_CAPACITY:
            self.capacity = max(roomy, FIRST_CAPACITY)


_devices: dict[torch.device, _Device] = {}


@functools.cache
def _compiled(device: torch.device) -> Kernels:
    return nvrtc.Module(Path(__file__).with_name("csrc") / "kernels.cu", device)


def _kernels(device: torch.device) -> Kernels:
    return _compiled(device)


@functools.cache
def available(device: torch.device) -> bool:
    """Whether the kernels run on this device; logs one warning if they do not."""
    try:
        _kernels(device)
    except nvrtc.Unavailable as error:
        logger.warning(
            "the CUDA rasterizer is missing (%s): the PyTorch path is used, which is far slower", error
        )
        return False
    return True


def fits(means3D: Tensor) -> bool:
    """Whether the kernels take tensors like this one."""
    return means3D.device.type == "cuda" and means3D.dtype == torch.float32


def render(gaussians: Gaussians, views: Views, absgrad: bool = False, debug: bool = False) -> Outputs:
    """Draws every view; as `reference.render`, but a NaN or an infinity is found late unless `debug` is set.

    Raises:
        ValueError: an input of this call (with `debug`) or of an earlier one was not finite.
        RuntimeError: the kernels cannot be compiled, or there is more to draw than their indices can count.
    """
    device = gaussians.means3D.device
    if len(views) * len(gaussians.means3D) >= 1 << 31:
        raise RuntimeError("more than 2^31 Gaussians times views: draw fewer at once")
    state = _devices.setdefault(device, _Device())
    state.read_reports()
    if absgrad:
        gaussians.means2D.absgrad = gaussians.means2D.new_zeros(*gaussians.means2D.shape[:2], 2)
    drawn = Outputs(*_Rasterize.apply(views, absgrad, *(getattr(gaussians, name) for name in INPUTS)))
    if debug:
        for report in state.reports:
            report.wait()
        state.read_reports()
    return drawn


@functools.lru_cache(maxsize=64)
def _degrees(degrees: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, because copying them to the device would wait for it."""
    return torch.tensor(degrees, dtype=torch.int32, device=device)


class _Run:
    """One call: its frame, and the tensors that the frame points into."""

    def __init__(self, views: Views, inputs: dict[str, Tensor | None], images: tuple[Tensor, ...]) -> None:
        self.like = inputs["means3D"]
        self.kernels = _kernels(self.like.device)
        self.count = len(views) * len(self.like)
        self.tiles = len(views) * -(-views.width // TILE) * -(-views.height // TILE)
        self.tensors: dict[str, Tensor] = {}
        described, kept = structures.views(views, _degrees(views.sh_degrees, self.like.device))
        self.kept = [*kept, *images, *(t for t in inputs.values() if t is not None)]
        self.frame = CFrame(
            gaussians=structures.gaussians(inputs), views=described, images=CImages(*map(pointer, images))
        )

    def new(self, name: str, *shape: int, dtype: torch.dtype, zero: bool = False) -> Tensor:
        """A tensor that the frame's field of that name points to."""
        make = torch.zeros if zero else torch.empty
        return self.point(name, make(shape, dtype=dtype, device=self.like.device))

    def point(self, name: str, tensor: Tensor) -> Tensor:
        self.tensors[name] = tensor
        setattr(self.frame, name, pointer(tensor))
        return tensor

    def launch(self, kernel: str, threads: int) -> None:
        if threads:
            self.kernels.launch(kernel, -(-threads // THREADS), THREADS, self.frame)

    def draw(self, views: int, capacity: int) -> Tensor:
        """Fills the images; returns the radii."""
        self.new("splats", self.count, SPLAT_FLOATS, dtype=torch.float32)
        self.new("rects", self.count, dtype=torch.int64)
        depths = self.new("depths", self.count, dtype=torch.float32)
        radii = self.new("radii", views, len(self.like), dtype=torch.int32)
        touched = self.new("touched", self.count, dtype=torch.int32)
        self.new("report", 2, dtype=torch.int64, zero=True)
        self.launch("gs_project", max(self.count, views))

        order = self.point("order", torch.sort(depths, stable=True).indices)
        self.point("ends", touched[order].cumsum(0, dtype=torch.int64))
        short = self.tiles < SHORT_KEYS
        self.frame.capacity, self.frame.key_bytes = capacity, 2 if short else 4
        keys = self.new("keys", capacity, dtype=torch.int16 if short else torch.int32)
        self.new("pair_splats", capacity, dtype=torch.int32)
        self.launch("gs_list_pairs", capacity)

        sorted_keys, sorted_pairs = torch.sort(keys, stable=True)
        self.point("sorted_keys", sorted_keys)
        self.point("sorted_pairs", sorted_pairs)
        self.new("entries", capacity, dtype=torch.int32)
        self.new("tile_starts", self.tiles + 1, dtype=torch.int32)
        self.launch("gs_list_tiles", capacity + 1)
        self.launch("gs_draw", self.tiles * THREADS)
        return radii

    def forget_what_only_drawing_needs(self) -> None:
        for name in ("keys", "sorted_keys", "sorted_pairs", "pair_splats", "depths", "ends", "radii"):
            setattr(self.frame, name, None)
            del self.tensors[name]


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, views: Views, absgrad: bool, *tensors: Tensor | None):
        inputs = {
            name: None if t is None else t.contiguous() for name, t in zip(INPUTS, tensors, strict=True)
        }
        like, size = inputs["means3D"], (views.height, views.width)
        color, depth, alpha = (like.new_empty(len(views), channels, *size) for channels in (3, 1, 1))
        state = _devices.setdefault(like.device, _Device())
        run = _Run(views, inputs, (color, depth, alpha))
        radii = run.draw(len(views), state.capacity)
        state.reports.append(_Report(run.tensors["report"]))
        run.forget_what_only_drawing_needs()
        run.kept = []  # inputs and images live in the saved tensors, or autograd could not free them
        ctx.views, ctx.absgrad, ctx.run = views, tensors[1] if absgrad else None, run
        ctx.save_for_backward(*inputs.values(), color, depth, alpha)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return color, radii, depth, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, g_color, _radii, g_depth, g_alpha):
        *tensors, color, depth, alpha = ctx.saved_tensors
        inputs = dict(zip(INPUTS, tensors, strict=True))
        needed = dict(zip(INPUTS, ctx.needs_input_grad[2:], strict=True))
        out = {name: torch.empty_like(t) if needed[name] else None for name, t in inputs.items()}
        means2D = inputs["means2D"]
        absolute = None if ctx.absgrad is None else means2D.new_empty(*means2D.shape[:2], 2)
        gradients = [None if g is None else g.contiguous() for g in (g_color, g_depth, g_alpha)]

        run = _Run(ctx.views, inputs, (color, depth, alpha))
        for name, tensor in ctx.run.tensors.items():
            run.point(name, tensor)
        run.frame.capacity = ctx.run.frame.capacity
        run.frame.image_gradients = CImages(*map(pointer, gradients))
        run.frame.gradients = structures.gradients(out, absolute, means2D.shape[-1])
        run.new("sums", run.count, SUM_FLOATS, dtype=torch.float32, zero=True)
        run.launch("gs_replay" if absolute is None else "gs_replay_absolute", run.tiles * THREADS)
        run.launch("gs_project_backward", len(run.like))
        if absolute is not None:
            ctx.absgrad.absgrad.add_(absolute)
        return None, None, *out.values()
