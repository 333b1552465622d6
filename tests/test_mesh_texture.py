"""Triangles on a raster, and textures that views were projected onto."""

import sys

import pytest
import torch

from dreammapping.mesh.compare import compare, draw
from dreammapping.mesh.fusion import fuse
from dreammapping.mesh.make import UNSEEN_START
from dreammapping.mesh.rasterise import rasterise, rasterise_view
from dreammapping.mesh.surface import Surface, tidy
from dreammapping.mesh.texture import paint
from dreammapping.mesh.views import sample, unproject
from scene.cameras import orbit
from tests.balls import PARAMS, Balls, painted, sides, views
from tests.gaussians import seeded
from utils.errors import UserError

pytestmark = pytest.mark.whole_runs

for library in ("skimage", "fast_simplification", "xatlas"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install .")


@pytest.fixture(scope="module")
def ball():
    return painted()


def test_triangles_are_drawn_where_rays_meet_them():
    """Against the closed form of a ray and a plane, for triangles that overlap and intersect."""
    camera = orbit(8, PARAMS)[3:4]
    vertices = 0.8 * torch.rand(60, 3, generator=seeded()) - 0.4
    faces = torch.arange(60).view(20, 3)
    raster = rasterise_view(vertices, faces, camera)
    rays = (unproject(camera, torch.ones(1, 1, 48, 48)) - camera.centers).double()
    first, second, third = vertices[faces].double().unbind(1)
    normal = torch.linalg.cross(second - first, third - first)
    origin = camera.centers.double()
    along = ((first - origin) * normal).sum(dim=1) / (rays @ normal.T)  # (rays, triangles)
    points = origin + along[..., None] * rays[:, None]
    inside = torch.ones_like(along, dtype=torch.bool)
    margin = torch.full_like(along, torch.inf)
    for a, b in ((first, second), (second, third), (third, first)):
        side = (torch.linalg.cross((b - a).expand_as(points), points - a) * normal).sum(dim=2) / normal.norm(
            dim=1
        )
        inside &= side > 0
        margin = torch.minimum(margin, side.abs())
    depths = torch.where(inside, along, torch.inf)
    nearest, which = depths.min(dim=1)
    clear = (margin > 1e-4).all(dim=1)  # of the edges, where rounding decides
    hit = nearest.isfinite() & clear
    assert hit.sum() > 200
    assert torch.equal(raster.faces.flatten()[hit], which[hit])
    assert (raster.faces.flatten()[~nearest.isfinite() & clear] == -1).all()
    torch.testing.assert_close(raster.depths.flatten()[hit].double(), nearest[hit], rtol=1e-4, atol=1e-4)
    places = torch.einsum("pv,pvc->pc", raster.weights.view(-1, 3)[hit], vertices[faces[which[hit]]])
    expected = origin + nearest[hit][:, None] * rays[hit]
    torch.testing.assert_close(places.double(), expected, rtol=0, atol=1e-3)


def test_flat_and_far_triangles_are_not_drawn():
    corners = torch.tensor(
        [[[1.0, 1], [5, 5], [9, 9]], [[-50.0, 2], [-40, 9], [-45, 3]], [[1.0, 1], [8, 1], [1, 8]]]
    )
    depths = torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, -1]])
    assert (rasterise(corners, depths, 10, 10).faces == -1).all()


def test_a_painted_ball_has_its_colours(ball):
    assert ball.surface.watertight and ball.picture.shape == (256, 256, 3)
    places = torch.from_numpy(ball.vertices).float()
    picture = torch.from_numpy(ball.picture).permute(2, 0, 1)[None].float() / 255
    found = sample(picture, torch.from_numpy(2 * ball.uv - 1).float())
    clear = (places[:, 1].abs() > 0.08) & ((places[:, 2] - 0.2).abs() > 0.08)
    assert clear.sum() > 200
    assert (found - sides(places))[clear].abs().mean() < 0.02


def test_a_painted_ball_looks_like_the_ball_from_new_sides(ball):
    source = Balls(((0.0, 0.0, 0.0), 0.4))
    unseen = views(source, count=9, start=UNSEEN_START)
    likeness = compare(unseen, ball, torch.ones(3))
    assert likeness.psnr > 22 and likeness.coverage > 0.93
    turned = Balls(((0.0, 0.0, 0.0), 0.4), colors=lambda points: sides(points * torch.tensor([1.0, -1, 1])))
    assert compare(views(turned, count=9, start=UNSEEN_START), ball, torch.ones(3)).psnr < 18
    moved = Balls(((0.0, 0.0, 0.2), 0.4))
    other = compare(moved.look(unseen.cameras), ball, torch.ones(3))
    assert other.coverage < 0.8


def test_alpha_ends_where_the_mesh_does(ball):
    camera = orbit(1, PARAMS)
    image, alpha = draw(ball, camera, torch.full((1, 3, 1, 1), 0.25))
    assert alpha[0, 0, 24, 24] == 1 and alpha[0, 0, 0, 0] == 0
    assert (image[0, :, 0, 0] == 0.25).all()


@pytest.mark.parametrize(
    ("module", "name"),
    [("skimage", "scikit-image"), ("fast_simplification", "fast-simplification"), ("xatlas", "xatlas")],
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    seen = views(Balls(((0.0, 0.0, 0.0), 0.4)), count=8, size=24)
    with pytest.raises(UserError, match=rf"{name}.*pip install"):
        paint(seen, tidy(Surface(*fuse(seen, 16)), 100), 64)
