"""What meshes are made from: cameras all around, and depths at which a share of the light is stopped."""

import math

import pytest
import torch

from dreammapping.mesh.gaussian_views import CHUNK, GaussianViews, memory, views_at_once
from dreammapping.mesh.make import UNSEEN, UNSEEN_START
from dreammapping.mesh.views import around, project, sample, unproject
from field_renderer.surface_depth import depths_at as field_depths_at
from gaussian_renderer.surface_depth import depths_at
from scene.cameras import orbit
from scene.field_start import Blob
from scene.gaussian_model import GaussianModel
from scene.occupancy import Occupancy
from scene.radiance_field import VoxelGrid, new_voxel_grid, vertices
from tests.balls import PARAMS, RED
from tests.gaussians import seeded
from utils.spherical_harmonics import rgb_to_sh_dc

pytestmark = pytest.mark.whole_runs


def test_cameras_stand_all_around_and_see_the_whole_object():
    cameras = around(40, PARAMS, 32, 0.9)
    assert (cameras.width, cameras.height) == (32, 32)
    heights = cameras.centers[:, 2] / cameras.centers.norm(dim=1)
    assert heights.max() > 0.95 and -0.5 - 1e-5 <= heights.min() < -0.45
    edge = 0.9 * torch.nn.functional.normalize(torch.randn(200, 3, generator=seeded()), dim=1)
    for index in range(40):
        at, distances = project(cameras[index : index + 1], edge)
        assert at.abs().max() < 1 and distances.min() > 0


def test_a_mesh_is_compared_in_views_that_did_not_make_it():
    made = around(64, PARAMS, 32, 0.5).centers
    unseen = around(UNSEEN, PARAMS, 32, 0.5, start=UNSEEN_START).centers
    cosines = torch.nn.functional.cosine_similarity(made[:, None], unseen[None], dim=2)
    assert cosines.max() < math.cos(math.radians(1))


def test_unproject_is_the_inverse_of_project():
    camera = orbit(3, PARAMS)[1:2]
    depths = 2 + torch.rand(1, 1, 48, 48, generator=seeded())
    depths[0, 0, 3, 5] = torch.inf
    points = unproject(camera, depths)
    assert len(points) == 48 * 48 - 1
    at, distances = project(camera, points)
    torch.testing.assert_close(distances, depths[depths.isfinite()], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sample(depths.nan_to_num(posinf=0), at)[:, 0], distances, rtol=1e-3, atol=1e-3)


def layer(y: float, opacity: float, color: torch.Tensor = RED) -> dict[str, torch.Tensor]:
    """A wall of flat Gaussians across the front camera's view."""
    x, z = torch.meshgrid(torch.linspace(-0.5, 0.5, 30), torch.linspace(-0.5, 0.5, 30), indexing="ij")
    means = torch.stack([x.flatten(), torch.full((900,), y), z.flatten()], dim=1)
    return {
        "means": means,
        "log_scales": torch.tensor([0.03, 1e-4, 0.03]).log().repeat(900, 1),
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(900, 1),
        "opacity_logits": torch.full((900, 1), opacity).logit(),
        "sh_dc": rgb_to_sh_dc(color).repeat(900, 1, 1),
        "sh_rest": torch.zeros(900, 0, 3),
    }


def model_of(*layers: dict[str, torch.Tensor]) -> GaussianModel:
    return GaussianModel(**{name: torch.cat([each[name] for each in layers]) for name in layers[0]})


def test_a_wall_is_met_where_it_stands():
    camera = orbit(1, PARAMS)
    depths = depths_at(model_of(layer(0.2, 0.99)), camera)
    middle = depths[0, 0, 16:32, 16:32]
    torch.testing.assert_close(
        middle, torch.full_like(middle, PARAMS.default_radius - 0.2), rtol=0, atol=1e-4
    )
    assert depths[0, 0, 0, 0].isinf(), "nothing is there"


def test_the_share_decides_which_of_two_walls_counts():
    """Of a translucent wall before an opaque one: the share is stopped by the first, or by the second alone."""
    walls = model_of(layer(0.3, 0.15), layer(-0.3, 0.99))
    camera = orbit(1, PARAMS)
    alpha = float(GaussianViews(model_of(layer(0.3, 0.15))).look(camera).alphas[0, 0, 24, 24])
    for share, y in ((0.8 * alpha, 0.3), (1.2 * alpha, -0.3)):
        depths = depths_at(walls, camera, share)[0, 0, 20:28, 20:28]
        torch.testing.assert_close(
            depths, torch.full_like(depths, PARAMS.default_radius - y), rtol=0, atol=1e-3
        )


def test_a_field_is_met_where_it_stops_the_share():
    """A slab of constant density across the view, in closed form: 1 - exp(-density * way) = share."""
    density, front = 3.0, 0.2
    inside = vertices(81, 0.8)[1] < front + 1e-4
    table = torch.zeros(81**3, 4)
    table[:, 0] = torch.where(inside, math.log(math.expm1(density)), -20.0)
    field = VoxelGrid(table, 0.8)
    occupancy = Occupancy(0.8, 16, 0.5, torch.device("cpu"))
    occupancy.update(field, seeded())
    camera = orbit(1, PARAMS)
    for share in (0.25, 0.5):
        found = field_depths_at(field, camera, share, samples=128, occupancy=occupancy, chunk=500)
        middle = found[0, 0, 22:26, 22:26]
        expected = PARAMS.default_radius - front - math.log1p(-share) / density
        # the grid's own ramp between two vertices, and a sample
        torch.testing.assert_close(middle, torch.full_like(middle, expected), rtol=0, atol=0.03)
    thin = new_voxel_grid(Blob(0.1, 0.3), 0.8, 1.0, 9)
    found = field_depths_at(thin, camera, 0.9, samples=32, occupancy=occupancy, chunk=500)
    assert found.isinf().all(), "it stops too little of the light"


def test_many_gaussians_are_rendered_fewer_views_at_a_time():
    assert views_at_once(1500) == CHUNK and memory(1500) < 1e7
    assert 1 <= views_at_once(2_000_000) < CHUNK and memory(2_000_000) < 3e9
