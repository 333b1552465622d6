"""The sorts and lists of the CUDA kernels against torch's stable sort: emulated, and on a GPU where there is one."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import pytest
import torch
from diff_gaussian_rasterization import cuda, rasterize
from diff_gaussian_rasterization.room import Room
from gaussian_scenes import beyond_floats, cloud, orbit
from torch import Tensor

GAP, PATTERN = 1024, 0xA5


class Guarded(cuda._Arrays):
    """Behind every array lie bytes that nobody may write; and what is not zero in it is nothing to read."""

    made: list["Guarded"] = []  # noqa: RUF012

    def __init__(self, device: torch.device, zero: bool = False, **sizes: int) -> None:
        super().__init__(device, zero, **{name: size + GAP for name, size in sizes.items()})
        self.sizes = sizes
        if not zero:
            self.memory.fill_(PATTERN)
        for guard in self.guards():
            guard.fill_(PATTERN)
        self.made.append(self)

    def guards(self) -> list[Tensor]:
        ends = [*self.offsets.values(), len(self.memory)][1:]
        return [
            self.memory[self.offsets[name] + size : end]
            for (name, size), end in zip(self.sizes.items(), ends, strict=True)
        ]

    def bytes(self) -> int:
        return sum(self.sizes.values())

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.memory[self.offsets[name] :][: self.sizes[name]].view(dtype).clone()

    def write(self, name: str, values: Tensor) -> None:
        start = self.offsets[name]
        self.memory[start : start + self.sizes[name]] = values.contiguous().view(-1).view(torch.uint8)

    def check(self) -> None:
        assert all(bool((guard == PATTERN).all()) for guard in self.guards())


@pytest.fixture(autouse=True)
def guarded(monkeypatch) -> Iterator[list[Guarded]]:
    """Checked at the end of every test."""
    monkeypatch.setattr(cuda, "_Arrays", Guarded)
    monkeypatch.setattr(Guarded, "made", [])
    yield Guarded.made
    for arrays in Guarded.made:
        arrays.check()


def digits_of_chunks(keys: Tensor, plan: cuda._Sort) -> Tensor:
    """What the first pass has to be given."""
    counts = torch.zeros(plan.blocks, 1 << plan.bits, dtype=torch.int32)
    batches = -(-len(keys) // cuda.BATCH)
    size = max(-(-batches // plan.blocks) * cuda.BATCH, 1)
    for chunk, part in enumerate(keys.split(size)):
        counts[chunk] = torch.bincount(part & ((1 << plan.bits) - 1), minlength=1 << plan.bits)
    return counts


def sorted_by_depth(keys: Tensor, blocks: int | None, device: str) -> tuple[Tensor, Tensor]:
    """The order of the keys, and the keys in it."""
    count, plan = len(keys), cuda._Sort(cuda.DEPTH_BITS, len(keys))
    plan = limited(plan, blocks)
    a = Guarded(
        torch.device(device), keys=4 * count, other_keys=4 * count, order=4 * count, other_order=4 * count
    )
    counts = Guarded(torch.device(device), zero=True, counts=plan.passes * plan.count_bytes)
    a.write("keys", keys.to(torch.int32))
    first = digits_of_chunks(keys, plan).view(-1)
    counts.write("counts", torch.cat([first, torch.zeros((plan.passes - 1) * len(first), dtype=torch.int32)]))
    steps = plan.steps((a["keys"], a["other_keys"]), (a["order"], a["other_order"]), counts["counts"])
    steps[0].values = None
    frame = cuda.CFrame()
    frame.views.count, frame.gaussians.count = 1, count
    with cuda._kernels(torch.device(device)).launching(frame) as launch:
        for n, step in enumerate(steps):
            step.next_counts = steps[n + 1].counts if n + 1 < len(steps) else None
            frame.sort = step
            launch("gs_sort_depths", plan.blocks, cuda.THREADS)
    return a.read("order", torch.int32), a.read("keys", torch.int32)


def sorted_by_tile(keys: Tensor, tiles: int, blocks: int | None, device: str) -> tuple[Tensor, Tensor]:
    """The same for pairs, whose number the kernels read on the device."""
    count, room = len(keys), len(keys) + 77
    plan = limited(cuda._Sort((tiles - 1).bit_length(), room), blocks)
    short = tiles <= cuda.SHORT_KEYS
    width, dtype = (2, torch.int16) if short else (4, torch.int32)
    a = Guarded(
        torch.device(device),
        keys=width * room, other_keys=width * room, order=4 * room, other_order=4 * room, report=16,
        counts=plan.passes * plan.count_bytes,
    )  # fmt: skip
    steps = plan.steps((a["keys"], a["other_keys"]), (a["order"], a["other_order"]), a["counts"])
    first = "keys" if steps[0].keys == a["keys"] else "other_keys"
    beyond = torch.full((room - count,), -1)
    a.write(first, torch.cat([keys, beyond]).to(dtype))
    a.write(first.replace("keys", "order"), torch.cat([torch.arange(count), beyond]).to(torch.int32))
    a.write("report", torch.tensor([count, 0]))
    counts = torch.full((plan.passes, plan.blocks, 1 << plan.bits), -1, dtype=torch.int32)
    counts[0] = digits_of_chunks(keys, plan)
    a.write("counts", counts)
    frame = cuda.CFrame(report=a["report"], capacity=room, key_bytes=width)
    with cuda._kernels(torch.device(device)).launching(frame) as launch:
        for step in steps:
            frame.sort = step
            if step.shift:
                launch("gs_count_tiles", plan.blocks, cuda.THREADS)
            launch("gs_sort_tiles", plan.blocks, cuda.THREADS)
    mask = (1 << 8 * width) - 1
    return a.read("order", torch.int32)[:count], a.read("keys", dtype)[:count].int() & mask


def limited(plan: cuda._Sort, blocks: int | None) -> cuda._Sort:
    """A plan of few blocks, each with more than one batch."""
    if blocks is not None:
        plan.blocks = blocks
        plan.count_bytes = 4 * blocks << plan.bits
    return plan


def random_keys(count: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


def depths(count: int) -> Tensor:
    """Bits of floats around 2, where the highest digit changes, with ties."""
    values = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 1.5
    values[::3] = values[:1]
    return values.view(torch.int32).long()


KEYS: dict[str, tuple[Callable[[], Tensor], int | None]] = {
    "none": (lambda: random_keys(0, 1), None),
    "one": (lambda: torch.tensor([5]), None),
    "all equal": (lambda: torch.full((2100,), 0x40123456), None),
    "backwards": (lambda: torch.arange(2500, 0, -1), None),
    "few values": (lambda: random_keys(3000, 3), None),
    "whole range": (lambda: random_keys(3000, (1 << 31) - 1), None),
    "depths": (lambda: depths(5000), None),
    "one less than a batch": (lambda: random_keys(2047, 1 << 20), None),
    "a batch": (lambda: random_keys(2048, 1 << 20), None),
    "one more than a batch": (lambda: random_keys(2049, 1 << 20), None),
    "powers of two": (
        lambda: torch.cat([(1 << torch.arange(31)) - 1, 1 << torch.arange(31)]).repeat(3),
        None,
    ),
    "batches of a block": (lambda: depths(9000), 2),
    "a block without elements": (lambda: depths(4097), 7),
}
TILES = {"none": 4, "one": 6, "few values": 3, "a batch": 1 << 20, "one more than a batch": 1 << 20}


def assert_sorted(found: tuple[Tensor, Tensor], keys: Tensor) -> None:
    expected = torch.sort(keys, stable=True)
    assert torch.equal(found[0].long(), expected.indices)
    assert torch.equal(found[1].long(), expected.values)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["emulated", pytest.param("on_a_gpu", marks=needs_gpu)])
def device(request) -> str:
    if request.param == "on_a_gpu":
        return "cuda:0"
    request.getfixturevalue("emulation")
    return "cpu"


@pytest.mark.parametrize("name", KEYS)
def test_depths_are_sorted_as_torch_sorts_them(name, device):
    make, blocks = KEYS[name]
    order, keys = sorted_by_depth(make(), blocks, device)
    assert_sorted((order.cpu(), keys.cpu()), make())


@pytest.mark.parametrize("tiles", [1, 2, 3, 64, 65, 255, 256, 257, 1024, 1 << 16, (1 << 16) + 1, 1 << 18])
def test_pairs_are_sorted_by_tile_as_torch_sorts_them(tiles, device):
    for count, blocks in ((2049, None), (4500, 2)):
        keys = random_keys(count, tiles)
        keys[:3] = tiles - 1
        order, found = sorted_by_tile(keys, tiles, blocks, device)
        assert_sorted((order.cpu(), found.cpu()), keys)


@pytest.mark.parametrize("name", TILES)
def test_few_pairs_and_equal_ones_are_sorted_by_tile(name, device):
    keys = KEYS[name][0]()
    order, found = sorted_by_tile(keys, TILES[name], None, device)
    assert_sorted((order.cpu(), found.cpu()), keys)


@needs_gpu
def test_millions_are_sorted_on_a_gpu():
    """As many as keep every multiprocessor busy, several times over."""
    for keys in (
        depths(3_000_000),
        torch.full((2_000_000,), 0x40123456),
        random_keys(2_500_000, (1 << 31) - 1),
    ):
        order, found = sorted_by_depth(keys, None, "cuda:0")
        assert_sorted((order.cpu(), found.cpu()), keys)
    for tiles in (1024, 4096, 1 << 18):
        keys = random_keys(8_000_000, tiles).sort().values.roll(12345)
        order, found = sorted_by_tile(keys, tiles, None, "cuda:0")
        assert_sorted((order.cpu(), found.cpu()), keys)


def test_threads_that_begin_in_reverse_order_sort_the_same(emulation):
    emulation.reverse = True
    keys = depths(4097)
    assert_sorted(sorted_by_depth(keys, 2, "cpu"), keys)
    assert_sorted(sorted_by_tile(keys % 1024, 1024, 2, "cpu"), keys % 1024)


@pytest.mark.parametrize(
    ("bits", "most", "passes", "digit"),
    [(31, 2_000_000, 4, 8), (12, 10_000_000, 2, 6), (10, 9, 2, 5), (8, 0, 1, 8), (0, 5, 1, 1), (17, 5, 3, 6)],
)
def test_a_sort_makes_as_many_passes_as_its_bits_ask_for(bits, most, passes, digit):
    plan = cuda._Sort(bits, most)
    assert (plan.passes, plan.bits) == (passes, digit)
    assert plan.passes * plan.bits >= bits
    assert 1 <= plan.blocks <= 256
    assert plan.blocks << plan.bits <= 1 << 15  # every block reads that many counts


def lists_of_call(scene: dict, cameras: dict, guarded: list[Guarded], device: str) -> tuple[Guarded, int]:
    """What a call keeps for its backward pass, and its tiles."""
    guarded.clear()
    given = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in (scene | cameras).items()}
    drawn = rasterize(
        means2D=torch.zeros(len(given["viewmatrix"]), len(given["means3D"]), 3, device=device),
        sh_degree=0, backend="cuda", **given,
    )  # fmt: skip
    views, _, height, width = drawn.color.shape
    return guarded[0], views * -(-width // 16) * -(-height // 16)


def assert_lists_are_those_of_torch(kept: Guarded, tiles: int, cameras: dict) -> None:
    """The slow path's, as plain as can be: sort by depth, list the pairs, sort by tile; both stable."""
    splats = kept.read("splats", torch.float32).cpu().view(-1, 16)
    rects = kept.read("rects", torch.int16).cpu().view(-1, 4).long()
    touched = ((rects[:, 2] - rects[:, 0]) * (rects[:, 3] - rects[:, 1]) > 0).nonzero()[:, 0]
    expected = touched[torch.sort(splats[touched, 10], stable=True).indices]
    order = kept.read("order", torch.int32).cpu().long()
    assert torch.equal(order[: len(expected)], expected)
    assert torch.equal(order.sort().values, torch.arange(len(splats)))
    columns, rows = -(-cameras["image_width"] // 16), -(-cameras["image_height"] // 16)
    count = len(splats) // max(len(cameras["viewmatrix"]), 1)
    keys, members = [], []
    for splat in expected.tolist():
        x0, y0, x1, y1 = rects[splat].tolist()
        for y in range(y0, y1):
            keys += [(splat // count * rows + y) * columns + x for x in range(x0, x1)]
        members += [splat] * ((x1 - x0) * (y1 - y0))
    by_tile = torch.sort(torch.tensor(keys, dtype=torch.int64), stable=True)
    report = kept.read("report", torch.int64)
    assert report.tolist() == [len(keys), 0]
    entries = kept.read("entries", torch.int32).cpu().long()[: len(keys)]
    assert torch.equal(entries, torch.tensor(members, dtype=torch.int64)[by_tile.indices])
    starts = torch.searchsorted(by_tile.values, torch.arange(tiles + 1))
    assert torch.equal(kept.read("tile_starts", torch.int32).cpu().long(), starts)


def at_one_place(count: int) -> dict:
    """Gaussians of equal depth in each view."""
    return cloud(count) | {"means3D": torch.full((count, 3), 0.1)}


SCENES = {
    "none": (lambda: cloud(0), orbit(2, 40, 24)),
    "one": (lambda: cloud(1, size=0.2), orbit(1, 33, 17)),
    "equal depths": (lambda: at_one_place(70), orbit(2, 50, 50)),
    "around the camera": (lambda: cloud(600, size=0.2, spread=2.0), orbit(3, 67, 45)),
    "infinite depths": (lambda: beyond_floats()[0], beyond_floats()[1]),
    "none visible": (lambda: cloud(300) | {"means3D": torch.full((300, 3), 40.0)}, orbit(1, 40, 24)),
    "more than a batch": (lambda: cloud(700, size=0.1), orbit(3, 67, 45)),
    "one tile": (lambda: cloud(300), orbit(1, 16, 16)),
    "256 tiles": (lambda: cloud(40, size=0.1), orbit(1, 256, 256)),
    "272 tiles": (lambda: cloud(40, size=0.1), orbit(1, 272, 256)),
}


@pytest.mark.parametrize("name", SCENES)
def test_order_and_lists_are_those_of_torch(name, device, guarded):
    make, cameras = SCENES[name]
    assert_lists_are_those_of_torch(*lists_of_call(make(), cameras, guarded, device), cameras)


@pytest.mark.parametrize("reverse", [False, True])
def test_long_chunks_are_added_up_and_listed_in_several_turns(reverse, emulation, monkeypatch, guarded):
    """As those of more than 2^18 Gaussians and of more than 2^19 pairs, whichever thread begins."""
    monkeypatch.setattr(cuda, "MAX_CHUNKS", 2)
    monkeypatch.setattr(cuda, "BATCH", 1 << 30)
    emulation.reverse = reverse
    cameras = orbit(3, 67, 45)
    kept, tiles = lists_of_call(cloud(700, size=0.1), cameras, guarded, "cpu")
    assert kept.read("report", torch.int64)[0] > 2 * 2048
    assert_lists_are_those_of_torch(kept, tiles, cameras)


@pytest.mark.usefixtures("emulation")
def test_nothing_is_listed_of_pairs_that_do_not_fit(monkeypatch, guarded):
    monkeypatch.setattr(Room, "capacity", lambda *_: 7)
    kept, _ = lists_of_call(cloud(20), orbit(1, 40, 24), guarded, "cpu")
    assert kept.read("report", torch.int64)[0] > 7
    for name in ("entries", "tile_starts"):
        assert (kept.read(name, torch.uint8) == PATTERN).all()


class NoKernels:
    """Launches nothing."""

    @contextlib.contextmanager
    def launching(self, _argument: ctypes.Structure):
        yield lambda *_: None


@pytest.mark.usefixtures("emulation")
def test_memory_of_a_call_is_counted_by_gaussians_and_pairs(monkeypatch, guarded):
    """Bytes until the backward pass, and more in the call: 76 and 12 a Gaussian and view, 4 and 8 a pair."""
    monkeypatch.setattr(cuda, "_kernels", lambda _: NoKernels())
    sizes = {}
    for splats, pairs in ((1, 1), (1001, 1), (1, 1_000_001)):
        guarded.clear()
        cuda._rooms.clear()  # the report is whatever lay in memory
        monkeypatch.setattr(Room, "capacity", lambda *_, pairs=pairs: pairs)
        lists_of_call(cloud(splats), orbit(1, 256, 256), guarded, "cpu")
        kept, zeros, passing = guarded
        sizes[splats, pairs] = (kept.bytes(), passing.bytes(), zeros.bytes())
    base = sizes.pop((1, 1))
    per_splat, per_pair = (
        [round((a - b) / 1000, 3) for a, b in zip(sizes[key], base, strict=True)] for key in sizes
    )
    assert per_splat == [76, 12.024, 0]  # and 8 bytes for every 256
    assert per_pair[0] == 4000
    assert 8000 <= per_pair[1] < 8300  # and counts of digits
    assert base[2] + sizes[1, 1_000_001][2] < 2 << 20


def test_structures_are_those_of_the_kernels(emulated_kernels):
    size = emulated_kernels.library.size_of_frame
    size.restype = ctypes.c_size_t
    assert ctypes.sizeof(cuda.CFrame) == size()
