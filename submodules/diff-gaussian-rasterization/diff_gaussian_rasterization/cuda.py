"""The CUDA kernels (`csrc/kernels.cu`), compiled at first use by NVRTC. The host never waits for the device.

How many pairs of Gaussian and tile there are, and whether an input was not finite, is known on the device first. It
is copied to the host behind the call and read by a later one: that sizes the lists of pairs, and raises the error.
A call whose pairs do not fit draws the same image by a slower path, and so do those that the host makes before it has
read that.
"""

import functools
import logging
from contextlib import AbstractContextManager
from ctypes import Structure, c_int32, c_int64, c_void_p
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diff_gaussian_rasterization import nvrtc, structures
from diff_gaussian_rasterization.inputs import Gaussians, Views
from diff_gaussian_rasterization.reference import TILE, Outputs
from diff_gaussian_rasterization.room import Kind, Room
from diff_gaussian_rasterization.structures import INPUTS, CGaussians, CGradients, CImages, CViews, pointer

logger = logging.getLogger(__name__)

THREADS = 256
"""Threads of a block, in every kernel; a tile of 16x16 pixels is one block."""
SPLAT_BYTES, RECT_BYTES, SUM_FLOATS = 64, 8, 12
BATCH = 2048
"""Elements that a block of the sort takes at once."""
DIGIT_BITS = 8
"""Of a pass of a sort, at most."""
DEPTH_BITS = 31
"""Of a positive float."""
SHORT_KEYS = 1 << 16
"""Tiles up to which a pair's key takes two bytes instead of four."""
MAX_CHUNKS = 1024
"""Of the Gaussians in order of depth, whose tiles are added up one by one."""
ALIGNMENT = 256


class Kernels(Protocol):
    """What runs kernels; `nvrtc.Module`, or the emulation of the tests."""

    def launching(self, argument: Structure) -> AbstractContextManager[nvrtc.Launch]: ...


class CRadixPass(Structure):
    """`RadixPass` of the kernels."""

    _fields_ = [
        *((n, c_void_p) for n in ("keys", "values", "sorted_keys", "sorted_values", "counts", "next_counts")),
        *((n, c_int32) for n in ("shift", "bits", "blocks")),
    ]


class CFrame(Structure):
    """`CudaFrame` of the kernels."""

    _fields_ = [
        ("gaussians", CGaussians),
        ("views", CViews),
        ("images", CImages),
        ("image_gradients", CImages),
        ("gradients", CGradients),
        *((n, c_void_p) for n in ("splats", "rects", "radii", "order", "ends", "totals", "broken")),
        *((n, c_void_p) for n in ("entries", "tile_starts", "sums", "report")),
        ("capacity", c_int64),
        ("sum_blocks", c_int32),
        ("key_bytes", c_int32),
        ("sort", CRadixPass),
    ]


_rooms: dict[torch.device, Room] = {}


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


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def render(gaussians: Gaussians, views: Views, absgrad: bool = False, debug: bool = False) -> Outputs:
    """Draws every view; as `reference.render`, but a NaN or an infinity is found late unless `debug` is set.

    Raises:
        ValueError: an input of this call (with `debug`) or of an earlier one was not finite.
        RuntimeError: the kernels cannot be compiled, there is more to draw than their indices can count, or the
            stream is being captured: what a call finds could not be read on the host.
    """
    device = gaussians.means3D.device
    if _is_captured(device):
        raise RuntimeError("the CUDA rasterizer cannot be captured: draw outside of torch.cuda.graph")
    if len(views) * len(gaussians.means3D) >= 1 << 31:
        raise RuntimeError("more than 2^31 Gaussians times views: draw fewer at once")
    room = _rooms.setdefault(device, Room())
    room.read_reports()
    if absgrad:
        gaussians.means2D.absgrad = gaussians.means2D.new_zeros(*gaussians.means2D.shape[:2], 2)
    drawn = Outputs(*_Rasterize.apply(views, absgrad, *(getattr(gaussians, name) for name in INPUTS)))
    if debug:
        room.wait()
        room.read_reports()
    return drawn


@functools.lru_cache(maxsize=64)
def _degrees(degrees: tuple[int, ...], device: torch.device) -> Tensor:
    """Kept, because copying them to the device would wait for it."""
    return torch.tensor(degrees, dtype=torch.int32, device=device)


class _Arrays:
    """Arrays in one allocation: to ask for each alone takes longer than to launch a kernel.

    Args:
        sizes: bytes of each, by name.
    """

    def __init__(self, device: torch.device, zero: bool = False, **sizes: int) -> None:
        self.offsets, end = {}, 0
        for name, size in sizes.items():
            self.offsets[name] = end
            end += -(-size // ALIGNMENT) * ALIGNMENT
        make = torch.zeros if zero else torch.empty
        self.memory = make(end, dtype=torch.uint8, device=device)
        self.start = self.memory.data_ptr()

    def __getitem__(self, name: str) -> int:
        """The array's address."""
        return self.start + self.offsets[name]

    def whole_numbers(self, name: str, count: int) -> Tensor:
        """(count,) int64 that begin where the array does."""
        return self.memory[self.offsets[name] :][: 8 * count].view(torch.int64)


class _Sort:
    """How at most `most` keys are sorted by their lowest `bits`; `csrc/radix_sort.h` says what the passes do."""

    def __init__(self, bits: int, most: int) -> None:
        self.passes = max(-(-bits // DIGIT_BITS), 1)
        self.bits = max(-(-bits // self.passes), 1)
        # Every block reads the counts of all of them.
        self.blocks = min(max(-(-most // BATCH), 1), 128 if self.bits > 6 else 256)
        self.count_bytes = 4 * self.blocks << self.bits

    def steps(self, keys: tuple[int, int], values: tuple[int, int], counts: int) -> list[CRadixPass]:
        """The passes, which write into one and the other by turns, the last one into the first.

        Args:
            counts: `count_bytes` for each pass.
        """
        steps = []
        for n in range(self.passes):
            to = (self.passes - 1 - n) % 2
            ends = (keys[1 - to], values[1 - to], keys[to], values[to])
            steps.append(
                CRadixPass(*ends, counts + n * self.count_bytes, None, n * self.bits, self.bits, self.blocks)
            )
        return steps


def _blocks(threads: int) -> int:
    return max(-(-threads // THREADS), 1)


class _Drawing:
    """A forward call: its frame, which the backward pass takes up again."""

    def __init__(self, views: Views, inputs: dict[str, Tensor | None], images: tuple[Tensor, ...]) -> None:
        means = inputs["means3D"]
        self.kernels, self.device, self.views = _kernels(means.device), means.device, len(views)
        self.splats = len(views) * len(means)
        self.tiles = len(views) * -(-views.width // TILE) * -(-views.height // TILE)
        self.kind = Kind(self.tiles, self.splats.bit_length())
        described, self.cameras = structures.views(views, _degrees(views.sh_degrees, means.device))
        self.frame = CFrame(
            gaussians=structures.gaussians(inputs), views=described, images=CImages(*map(pointer, images))
        )

    def draw(self, radii: Tensor, capacity: int) -> _Arrays:
        """Fills the images and `radii`; returns the arrays that the backward pass reads at their addresses."""
        frame, splats = self.frame, self.splats
        by_depth, by_tile = _Sort(DEPTH_BITS, splats), _Sort((self.tiles - 1).bit_length(), capacity)
        frame.radii, frame.capacity = pointer(radii), capacity
        frame.key_bytes = 2 if self.tiles <= SHORT_KEYS else 4
        frame.sum_blocks = min(_blocks(splats), MAX_CHUNKS)
        kept = _Arrays(
            self.device,
            splats=SPLAT_BYTES * splats,
            rects=RECT_BYTES * splats,
            order=4 * splats,
            entries=4 * capacity,
            tile_starts=4 * (self.tiles + 1),
            report=16,
        )
        zeros = _Arrays(self.device, zero=True, broken=4, counts=by_depth.passes * by_depth.count_bytes)
        passing = _Arrays(
            self.device,
            depths=4 * splats,
            other_depths=4 * splats,
            other_order=4 * splats,
            totals=8 * frame.sum_blocks,
            keys=frame.key_bytes * capacity,
            other_keys=frame.key_bytes * capacity,
            other_entries=4 * capacity,
            counts=by_tile.passes * by_tile.count_bytes,
        )
        for name in kept.offsets:
            setattr(frame, name, kept[name])
        frame.broken, frame.totals = zeros["broken"], passing["totals"]
        frame.ends = passing["depths"]  # nobody reads these any more by then

        depths = by_depth.steps(
            (passing["depths"], passing["other_depths"]),
            (kept["order"], passing["other_order"]),
            zeros["counts"],
        )
        for step, following in pairwise(depths):
            step.next_counts = following.counts
        depths[0].values = depths[-1].sorted_keys = None
        pairs = by_tile.steps(
            (passing["keys"], passing["other_keys"]),
            (kept["entries"], passing["other_entries"]),
            passing["counts"],
        )
        with self.kernels.launching(frame) as launch:
            frame.sort = depths[0]
            launch("gs_project", _blocks(max(splats, self.views)), THREADS)
            for step in depths:
                frame.sort = step
                launch("gs_sort_depths", by_depth.blocks, THREADS)
            launch("gs_add_up", frame.sum_blocks, THREADS)
            frame.sort = pairs[0]
            launch("gs_list_pairs", by_tile.blocks, THREADS)
            for step in pairs:
                frame.sort = step
                if step.shift:
                    launch("gs_count_tiles", by_tile.blocks, THREADS)
                launch("gs_sort_tiles", by_tile.blocks, THREADS)
            launch("gs_list_tiles", _blocks(capacity + 1), THREADS)
            if self.tiles:
                launch("gs_draw", self.tiles, THREADS)
        for name in ("radii", "ends", "totals", "broken"):
            setattr(frame, name, None)
        frame.sort = CRadixPass()
        return kept


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, views: Views, absgrad: bool, *tensors: Tensor | None):
        inputs = {
            name: None if t is None else t.contiguous() for name, t in zip(INPUTS, tensors, strict=True)
        }
        like, size = inputs["means3D"], (views.height, views.width)
        color, depth, alpha = (like.new_empty(len(views), channels, *size) for channels in (3, 1, 1))
        radii = torch.empty(len(views), len(like), dtype=torch.int32, device=like.device)
        room = _rooms.setdefault(like.device, Room())
        drawing = _Drawing(views, inputs, (color, depth, alpha))
        kept = drawing.draw(radii, room.capacity(drawing.kind, drawing.splats))
        room.send_report(kept.whole_numbers("report", 2), drawing.kind, drawing.splats)
        # Inputs, images and lists live in the saved tensors alone, or autograd could not free them.
        ctx.absgrad, ctx.drawing = tensors[1] if absgrad else None, drawing
        ctx.save_for_backward(*inputs.values(), color, depth, alpha, kept.memory)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return color, radii, depth, alpha

    @staticmethod
    @once_differentiable
    def backward(ctx, g_color, _radii, g_depth, g_alpha):
        *tensors, color, depth, alpha, _kept = ctx.saved_tensors  # the frame has its addresses
        inputs = dict(zip(INPUTS, tensors, strict=True))
        needed = dict(zip(INPUTS, ctx.needs_input_grad[2:], strict=True))
        out = {name: torch.empty_like(t) if needed[name] else None for name, t in inputs.items()}
        means2D = inputs["means2D"]
        absolute = None if ctx.absgrad is None else means2D.new_empty(*means2D.shape[:2], 2)
        gradients = [None if g is None else g.contiguous() for g in (g_color, g_depth, g_alpha)]

        drawing = ctx.drawing
        sums = means2D.new_zeros(drawing.splats, SUM_FLOATS)
        frame = CFrame.from_buffer_copy(drawing.frame)
        frame.gaussians = structures.gaussians(inputs)
        frame.images = CImages(*map(pointer, (color, depth, alpha)))
        frame.image_gradients = CImages(*map(pointer, gradients))
        frame.gradients = structures.gradients(out, absolute, means2D.shape[-1])
        frame.sums = pointer(sums)
        with drawing.kernels.launching(frame) as launch:
            if drawing.tiles:
                launch("gs_replay" if absolute is None else "gs_replay_absolute", drawing.tiles, THREADS)
            if len(inputs["means3D"]):
                launch("gs_project_backward", _blocks(len(inputs["means3D"])), THREADS)
        if absolute is not None:
            ctx.absgrad.absgrad.add_(absolute)
        return None, None, *out.values()
