"""Fields themselves: what they interpolate, how they start and grow, what is empty, their files and their surface."""

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diff_gaussian_rasterization import cpu_kernel_available
from safetensors.torch import load_file, save_file

from arguments import FieldParams, GenerateCamParams
from scene.field_file import FORMAT, iteration_of, read_field, write_field
from scene.field_regularizers import emptiness, entropy, facing_away, ramped, sparsity, z_variance
from scene.field_start import Blob, Cuboid, Solid, field_start, solid
from scene.interpolation import cell_of, corner_weights, dense_corners, gather, interpolate
from scene.occupancy import Occupancy
from scene.radiance_field import (
    HASH_PRIMES,
    HashGrid,
    VoxelGrid,
    hash_cells,
    hash_rows,
    hashed_corners,
    new_hash_grid,
    new_voxel_grid,
    resized,
    vertices,
)
from scene.surface import surface, write_mesh
from tests.tolerances import EPS, FORMULA, SUM
from utils.errors import UserError

CPU = torch.device("cpu")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def points(count, bound=0.8, seed=1):
    return (2 * torch.rand(3, count, generator=rng(seed)) - 1) * bound


def small_hash(start=None, *, smoothstep=True, layers=1):
    field = new_hash_grid(
        start or Blob(6.0, 0.5), 0.8, 2.0, cells=hash_cells(4, 3, 30), power=9, features=2, width=8, layers=layers,
        smoothstep=smoothstep, rng=rng(),
    )  # fmt: skip
    for table in field.tables:
        table.data = torch.randn(table.shape, generator=rng(2))
    return field


def small_grid(resolution=9):
    field = new_voxel_grid(Blob(6.0, 0.5), 0.8, 2.0, resolution)
    field.table.data += torch.randn(field.table.shape, generator=rng(2))
    return field


def in_pytorch(table, where, side):
    low, inside = cell_of(where, side)
    return gather(table, dense_corners(low, side), corner_weights(inside))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gather_is_grid_sample_in_value_and_gradient(dtype):
    side = 7
    table = torch.randn(side**3, 4, generator=rng(), dtype=dtype).requires_grad_()
    where = torch.rand(3, 500, generator=rng(1), dtype=dtype)
    mix = torch.randn(500, 4, generator=rng(2), dtype=dtype)
    mix[::3] = 0  # rows without a gradient are left out
    mine = in_pytorch(table, where, side)
    (gradient,) = torch.autograd.grad((mine * mix).sum(), table)
    volume = table.t().reshape(1, 4, side, side, side)  # grid_sample wants x last and first
    asked = (2 * where - 1).flip(0).t().view(1, -1, 1, 1, 3)
    theirs = F.grid_sample(volume, asked, align_corners=True).view(4, -1).t()
    (expected,) = torch.autograd.grad((theirs * mix).sum(), table)
    assert torch.allclose(mine, theirs, atol=64 * EPS[dtype])
    assert torch.allclose(gradient, expected, atol=64 * EPS[dtype] * expected.abs().max().item())


@pytest.mark.skipif(not cpu_kernel_available(), reason="the compiled kernel was not built")
def test_a_grid_that_is_interpolated_in_one_pass_is_that_of_pytorch():
    side, count = 9, 2000
    table = torch.randn(side**3, 4, generator=rng()).requires_grad_()
    where = 1.2 * torch.rand(3, count, generator=rng(1)) - 0.1
    mix = torch.randn(count, 4, generator=rng(2))
    values = [interpolate(table, where), in_pytorch(table, where, side)]
    one_pass, in_steps = (torch.autograd.grad((value * mix).sum(), table)[0] for value in values)
    eps = EPS[torch.float32]
    assert torch.allclose(*values, atol=32 * side * eps)
    assert torch.allclose(one_pass, in_steps, atol=32 * side * 8 * count / side**3 * eps)


def test_a_point_outside_of_the_cube_is_answered_for_its_nearest_one():
    field = small_grid()
    outside = torch.tensor([[2.0, -3.0], [0.1, 0.2], [-0.3, 9.0]])
    assert torch.equal(field.raw(outside), field.raw(outside.clamp(-0.8, 0.8)))


def hashed_by_hand(field, point):
    """Instant-NGP's encoding of one point, in Python's integers and float64."""
    features = []
    unit = (point.double() + field.bound) / (2 * field.bound)
    for table, cells in zip(field.tables, field.cells, strict=True):
        low = [min(int(axis * cells), cells - 1) for axis in unit.tolist()]
        inside = [axis * cells - first for axis, first in zip(unit.tolist(), low, strict=True)]
        if field.smoothstep:
            inside = [3 * u**2 - 2 * u**3 for u in inside]
        total = torch.zeros(table.shape[1], dtype=torch.float64)
        for corner in np.ndindex(2, 2, 2):
            x, y, z = (first + step for first, step in zip(low, corner, strict=True))
            if (cells + 1) ** 3 <= len(table):
                row = (x * (cells + 1) + y) * (cells + 1) + z
            else:
                row = (x * HASH_PRIMES[0] ^ y * HASH_PRIMES[1] ^ z * HASH_PRIMES[2]) % len(table)
            weight = np.prod([u if step else 1 - u for u, step in zip(inside, corner, strict=True)])
            total += weight * table[row].double()
        features.append(total)
    return torch.cat(features)


@pytest.mark.parametrize("smoothstep", [True, False])
def test_the_hash_grid_is_instant_ngps(smoothstep):
    field = small_hash(smoothstep=smoothstep)
    assert {
        len(table) == (cells + 1) ** 3 for table, cells in zip(field.tables, field.cells, strict=True)
    } == {
        True,
        False,
    }
    asked = points(20)
    raw = field.raw(asked)
    for index in range(20):
        features = hashed_by_hand(field, asked[:, index])
        expected = field.network.double()(features)
        field.network.float()
        expected[0] += field.start(asked)[index]
        # places are rounded to float32 before they are multiplied by 30 cells, whose features are about 1
        assert torch.allclose(raw[index].double(), expected, atol=30 * SUM[torch.float32])


def test_levels_grow_by_one_factor_and_small_ones_are_dense():
    cells = hash_cells(16, 16, 2048)
    assert (cells[0], cells[-1], len(cells)) == (16, 2048, 16)
    ratios = [after / before for before, after in pairwise(cells)]
    assert max(ratios) - min(ratios) < 2 / 16
    assert hash_rows(16, 19) == 17**3 and hash_rows(2048, 19) == 2**19
    low = torch.tensor([[2047], [2047], [2047]], dtype=torch.int32)
    rows = hashed_corners(low, 2**19)
    assert rows.shape == (8, 1) and int(rows.min()) >= 0 and int(rows.max()) < 2**19


def test_levels_that_are_not_in_use_change_nothing_and_learn_nothing():
    field, asked = small_hash(), points(50)
    field.active = 2
    before = field.raw(asked)
    field.tables[3].data += 1.0
    assert torch.equal(field.raw(asked), before)
    before.sum().backward()
    assert field.tables[3].grad is None and field.tables[1].grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [0, 2])
def test_a_hash_grid_starts_as_its_blob(layers):
    start = Blob(10.0, 0.5)
    field = new_hash_grid(
        start, 1.0, 1.0, cells=hash_cells(4, 3, 30), power=9, features=2, width=8, layers=layers, smoothstep=True,
        rng=rng(),
    )  # fmt: skip
    asked = points(200, 1.0)
    off = field.raw(asked)[:, 0] - start(asked)
    # the tables are below 1e-4, and biases of hidden layers below 8^-1/2 pass two matrices of such entries
    assert off.abs().max() < 1.0
    assert off.std() < 0.01


def test_a_grid_starts_as_magic3ds_blob_at_its_vertices():
    field = new_voxel_grid(Blob(10.0, 0.5), 1.0, 3.0, 5)
    where = vertices(5, 1.0)
    expected = 3.0 * F.softplus(10 * (1 - where.norm(dim=0) / 0.5))
    density, colors = field(where)
    assert torch.allclose(density, expected, rtol=FORMULA[torch.float32], atol=1e-6)
    assert (colors == 0.5).all()


def test_a_grid_that_grows_stays_the_same_function():
    field = small_grid(5)
    grown = VoxelGrid(resized(field.table.detach(), 9), 0.8, 2.0)
    assert grown.resolution == 9
    asked = points(300)
    assert torch.allclose(field.raw(asked), grown.raw(asked), atol=256 * EPS[torch.float32])
    other = VoxelGrid(
        resized(field.table.detach(), 8), 0.8, 2.0
    )  # vertices elsewhere: the same at these alone
    at = vertices(8, 0.8)
    assert torch.allclose(other.raw(at), field.raw(at), atol=256 * EPS[torch.float32])


def test_roughness_is_the_mean_squared_difference_of_neighbours():
    flat = VoxelGrid(torch.ones(27, 4), 1.0)
    assert flat.roughness() == 0
    ramp = VoxelGrid(vertices(3, 1.0)[0][:, None].repeat(1, 4), 1.0)
    assert ramp.roughness().item() == pytest.approx(1.0)  # 1 from each vertex to the next along x, none else
    hashed = small_hash()
    hashed.roughness().backward()
    assert hashed.tables[0].grad.abs().sum() > 0 and hashed.tables[3].grad is None


def test_occupancy_holds_all_that_is_dense_and_its_neighbours():
    field = new_voxel_grid(Blob(8.0, 0.3), 0.8, 1.0, 17)
    occupancy = Occupancy(0.8, 16, 0.5, CPU)
    assert occupancy.occupied.all() and torch.equal(occupancy.box, torch.tensor([[-0.8] * 3, [0.8] * 3]))
    occupancy.update(field, rng())
    asked = points(20_000)
    dense = field.density(asked) > 0.5
    assert dense.any() and occupancy.holds(asked)[dense].all()
    assert occupancy.occupied.float().mean() < 0.35
    low, high = occupancy.box
    held = asked[:, occupancy.holds(asked)]
    assert (held >= low[:, None]).all() and (held <= high[:, None]).all()
    middles = occupancy.middles()
    assert middles.shape[1] == occupancy.occupied.sum() and occupancy.holds(middles).all()


def test_space_that_becomes_empty_is_forgotten_slowly_and_what_is_empty_everywhere_is_all_looked_at():
    field = new_voxel_grid(Blob(8.0, 0.3), 0.8, 1.0, 9)
    occupancy = Occupancy(0.8, 8, 0.5, CPU)
    occupancy.update(field, rng())
    field.table.data[:, 0] = -100
    occupancy.update(field, rng())
    assert not occupancy.occupied.all()  # what was dense still counts
    for _ in range(100):
        occupancy.update(field, rng())
    assert occupancy.occupied.all()


def test_occupancy_is_kept_to_the_bit_and_one_of_another_size_is_refused():
    field, occupancy = small_grid(), Occupancy(0.8, 8, 0.5, CPU)
    occupancy.update(field, rng())
    again = Occupancy(0.8, 8, 0.5, CPU)
    again.load_state_dict(occupancy.state_dict())
    assert torch.equal(again.occupied, occupancy.occupied) and torch.equal(again.box, occupancy.box)
    with pytest.raises(ValueError, match="expected 64 cells, got 512"):
        Occupancy(0.8, 4, 0.5, CPU).load_state_dict(occupancy.state_dict())


def sphere_points(count=60_000, radius=0.5):
    return radius * F.normalize(torch.randn(count, 3, generator=rng()), dim=1)


def test_a_shape_becomes_the_solid_within_it_and_keeps_its_colours():
    surface_points = sphere_points()
    colors = torch.where(surface_points[:, 2:] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
    start = solid(surface_points, colors, 5.0, 0.8, "ball")
    asked = points(5000)
    distance, found = asked.norm(dim=0), start(asked)
    cell = 1.6 / 64
    assert torch.allclose(found[distance < 0.5 - 0.125 - 2 * cell], torch.tensor(5.0), atol=1e-4)
    assert (found[distance < 0.5 - 2 * cell] > 0).all() and (found[distance > 0.5 + 2 * cell] < 0).all()
    assert start.reach == pytest.approx(0.5, rel=1e-3)
    red, blue = start.colors(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.45, -0.45]]))
    assert red[0] > 0.9 and blue[2] > 0.9
    grid = new_voxel_grid(start, 0.8, 1.0, 33, start.colors)
    assert grid(torch.tensor([[0.0], [0.0], [0.4]]))[1][0, 0] > 0.9


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            lambda: sphere_points() * torch.tensor([1.0, 1.0, 0.0]),
            r"flat: expected a shape that encloses an inside",
        ),
        (
            lambda: sphere_points()[:60],
            r"flat: expected a shape that encloses an inside of 0\.025 world units",
        ),
        (
            lambda: 2 * sphere_points(),
            r"flat: expected a shape within FieldParams.bound=0\.8, got one that reaches 1",
        ),
    ],
)
def test_a_start_shape_without_inside_or_beyond_the_cube_is_one_clear_line(shape, message):
    shape = shape()
    with pytest.raises(UserError, match=message):
        solid(shape, torch.zeros_like(shape), 5.0, 0.8, "flat")


def test_start_shapes_by_their_word(tmp_path):
    params = FieldParams(blob_std=0.4)
    ball = field_start(params, GenerateCamParams(init_scale=0.5), rng())
    assert isinstance(ball, Blob) and ball.reach == pytest.approx(0.2)
    box = field_start(params, GenerateCamParams(init_shape="rectangle_z"), rng())
    assert isinstance(box, Cuboid)
    at = torch.tensor([[0.39, 0.41], [0.0, 0.0], [0.0, 0.0]])
    inside, outside = box(at)
    assert inside > 0 > outside
    with pytest.raises(UserError, match=r"expected an object for a field.*got scene; set init_shape=sphere"):
        field_start(params, GenerateCamParams(init_shape="scene"), rng())

    import trimesh

    path = tmp_path / "ball.ply"
    trimesh.creation.icosphere(subdivisions=3).export(path)
    cameras = GenerateCamParams(init_shape="file", init_path=str(path))
    made = field_start(params, cameras, rng())
    assert isinstance(made, Solid) and made(torch.zeros(3, 1)) > 0
    flat = tmp_path / "flat.ply"
    trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], [[0, 1, 2], [1, 3, 2]]).export(flat)
    with pytest.raises(UserError, match=r"flat\.ply: expected a shape that encloses an inside.*close it"):
        field_start(params, dataclasses.replace(cameras, init_path=str(flat)), rng())


def all_fields():
    ball = solid(sphere_points(), torch.zeros(60_000, 3), 5.0, 0.8, "ball")
    return {
        "grid": small_grid(),
        "blob": small_hash(),
        "box": small_hash(Cuboid(3.0, (0.2, 0.3, 0.4)), layers=0),
        "solid": small_hash(ball, smoothstep=False, layers=2),
    }


@pytest.mark.parametrize("kind", ["grid", "blob", "box", "solid"])
def test_a_fields_file_gives_back_the_same_field_and_the_same_bytes(kind, tmp_path):
    field = all_fields()[kind]
    if isinstance(field, HashGrid):
        field.active = 3
    path = tmp_path / "field.safetensors"
    write_field(path, field, 12, "a red car")
    again = read_field(path)
    asked = points(100)
    for mine, theirs in zip(field(asked), again(asked), strict=True):
        assert torch.equal(mine, theirs)
    assert iteration_of(path) == 12
    write_field(tmp_path / "again.safetensors", again, 12, "a red car")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def rewritten(path, change):
    """The same tensors with another description."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[FORMAT])
    change(about)
    save_file(load_file(path), path, metadata={FORMAT: json.dumps(about)})


def test_a_field_file_of_another_layout_or_cut_short_is_one_clear_line(tmp_path):
    path = tmp_path / "field.safetensors"

    def fails(message):
        with pytest.raises(UserError, match=message) as caught:
            read_field(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    fails("cannot be read")
    write_field(path, small_grid(), 1, "")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails("broken or cut short")
    path.write_bytes(b"PK\x03\x04 something else")
    fails("broken or cut short")
    save_file({"weight": torch.zeros(3)}, path)
    fails("expected a field as a run leaves it, got another file")
    path.write_bytes(whole)
    rewritten(path, lambda about: about.update(version=7))
    fails("expected a field of version 1, got 7")
    for change in (
        lambda about: about.update(kind="tensorf"),
        lambda about: about.pop("bound"),
        lambda about: about.update(kind="hash"),
    ):
        path.write_bytes(whole)
        rewritten(path, change)
        fails("expected the tensors that its own description names")
    save_file({"table": torch.zeros(30, 4)}, path, metadata={FORMAT: json.dumps(
        {"version": 1, "kind": "grid", "bound": 1.0, "density_scale": 1.0})})  # fmt: skip
    fails(r"table of shape \[30, 4\]")
    save_file({"table": torch.full((27, 4), torch.nan)}, path, metadata={FORMAT: json.dumps(
        {"version": 1, "kind": "grid", "bound": 1.0, "density_scale": 1.0})})  # fmt: skip
    fails("expected a finite field")


def test_a_field_that_is_not_finite_is_not_written(tmp_path):
    field = small_grid()
    field.table.data[3, 1] = torch.inf
    with pytest.raises(
        UserError, match="expected a finite field, got NaN or infinity in table; nothing was written"
    ):
        write_field(tmp_path / "field.safetensors", field, 1, "")
    assert not list(tmp_path.iterdir())


def test_the_surface_of_a_ball_is_a_closed_mesh_of_its_volume_that_faces_outwards(tmp_path):
    import trimesh

    field = new_voxel_grid(Blob(10.0, 0.5), 0.8, 1.0, 33)
    field.table.data[:, 1] = 3.0
    mesh = surface(field, float(F.softplus(torch.tensor(0.0))), 33)  # softplus(0) is at the radius 0.5
    radii = mesh.positions.norm(dim=1)
    assert (radii - 0.5).abs().max() < 0.02  # of the cells, 0.05 wide
    write_mesh(tmp_path / "mesh.ply", mesh)
    made = trimesh.load_mesh(tmp_path / "mesh.ply")
    assert made.is_watertight and made.volume == pytest.approx(4 / 3 * np.pi * 0.125, rel=0.03)
    assert (made.visual.vertex_colors[:, :3] == [243, 128, 128]).all()
    assert surface(field, 1e6, 33) is None


def test_a_surface_that_reaches_the_sides_of_the_cube_is_closed_there():
    import trimesh

    full = VoxelGrid(torch.full((27, 4), 5.0), 1.0)
    mesh = surface(full, 1.0, 9)
    made = trimesh.Trimesh(mesh.positions.numpy(), mesh.faces.numpy())
    assert made.is_watertight and made.volume > 8.0


def test_weights_ramp_between_their_steps():
    assert [ramped((1.0, 3.0), (10.0, 20.0), step) for step in (0, 10, 15, 20, 99)] == [1, 1, 2, 3, 3]
    assert [ramped((1.0, 3.0), (10.0, 10.0), step) for step in (9, 10)] == [1, 3]
    assert ramped((1.0, 3.0), (0.0, 0.0), 0) == 3


def test_regularisers_are_threestudios_and_sjcs():
    alphas = torch.tensor([0.0, 0.25, 1.0, 0.75]).view(1, 1, 2, 2)
    expected = (0.1 + (0.0625 + 0.01) ** 0.5 + 1.01**0.5 + (0.5625 + 0.01) ** 0.5) / 4
    assert sparsity(alphas).item() == pytest.approx(expected, rel=1e-6)
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    clear = -(0.001 * np.log(0.001) + 0.999 * np.log(0.999))
    assert entropy(alphas).item() == pytest.approx((2 * quarter + 2 * clear) / 4, rel=1e-5)
    seen = torch.tensor([0.0, 0.3, 0.6, 0.0]).view(1, 1, 2, 2)
    assert facing_away(seen, alphas).item() == pytest.approx(0.3, rel=1e-6)
    assert z_variance(seen, alphas).item() == pytest.approx(0.3, rel=1e-6)  # of the two opaque ones
    assert emptiness(seen).item() == pytest.approx(0.225, rel=1e-6)
    empty = torch.zeros(1, 1, 2, 2)
    assert facing_away(empty, empty) == 0 and z_variance(empty, empty) == 0
