"""Meshes of runs: surfaces and textures of shapes that are known exactly, the files, and the verb."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from arguments import GenerateCamParams, load, to_yaml
from dreammapping.__main__ import main
from dreammapping.mesh import files
from dreammapping.mesh.compare import compare, draw
from dreammapping.mesh.fusion import fuse
from dreammapping.mesh.gaussian_views import GaussianViews
from dreammapping.mesh.make import UNSEEN, UNSEEN_START
from dreammapping.mesh.rasterise import rasterise, rasterise_view
from dreammapping.mesh.surface import Surface, tidy
from dreammapping.mesh.texture import Textured, paint
from dreammapping.mesh.views import Seen, around, project, sample, unproject
from gaussian_renderer.surface_depth import depths_at
from scene.cameras import Cameras, orbit
from scene.gaussian_model import GaussianModel
from scene.mesh import sample_file
from scene.ply import write_gaussians
from tests import foreign
from tests.gaussians import seeded
from utils.errors import UserError
from utils.own_files import RECORD
from utils.run import Run
from utils.spherical_harmonics import rgb_to_sh_dc

pytestmark = pytest.mark.whole_runs

for library in ("skimage", "fast_simplification", "xatlas"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install .")

PARAMS = GenerateCamParams(image_w=48, image_h=48, default_fovy=0.46)
RED, BLUE, GREEN = (torch.tensor(rgb) for rgb in ([0.8, 0.1, 0.1], [0.1, 0.2, 0.9], [0.1, 0.7, 0.2]))


def sides(points: torch.Tensor) -> torch.Tensor:
    """Red in front (+y), blue at the back, green on top of both; (P, 3)."""
    colors = torch.where(points[:, 1:2] > 0, RED, BLUE)
    return torch.where(points[:, 2:] > 0.2, GREEN, colors)


class Balls:
    """Exact views of spheres, each of a centre and a radius."""

    def __init__(
        self,
        *balls: tuple[tuple[float, float, float], float],
        colors: Callable[[torch.Tensor], torch.Tensor] = sides,
    ) -> None:
        self.balls, self.colors = balls, colors
        self.reach = max(math.hypot(*center) + radius for center, radius in balls)

    def look(
        self, cameras: Cameras, progress: Callable[[], None] = lambda: None, *, depths: bool = True
    ) -> Seen:
        found = []
        for index in range(len(cameras)):
            camera = cameras[index : index + 1]
            plane = torch.ones(1, 1, cameras.height, cameras.width)
            rays = unproject(camera, plane) - camera.centers
            nearest = torch.full((len(rays),), torch.inf)
            for center, radius in self.balls:
                to = torch.tensor(center) - camera.centers[0]
                along = (rays @ to) / rays.square().sum(dim=1)
                miss = (to - along[:, None] * rays).square().sum(dim=1)
                back = ((radius**2 - miss).clamp_min(0) / rays.square().sum(dim=1)).sqrt()
                nearest = torch.where(miss < radius**2, torch.minimum(nearest, along - back), nearest)
            hit = nearest.isfinite()
            points = camera.centers + nearest.nan_to_num(posinf=0)[:, None] * rays
            image = torch.where(hit[:, None], self.colors(points), 0.0)
            shape = (1, cameras.height, cameras.width)
            found.append((image.T.reshape(3, *shape[1:]), hit.float().reshape(shape), nearest.reshape(shape)))
            progress()
        images, alphas, distances = (torch.stack(each) for each in zip(*found, strict=True))
        return Seen(cameras, images, alphas, distances if depths else torch.full_like(distances, torch.inf))


def views(source, count: int = 24, size: int = 64, start: float = 0.0) -> Seen:
    return source.look(around(count, PARAMS, size, source.reach, start=start))


@pytest.fixture(scope="module")
def ball() -> Textured:
    """A painted ball of radius 0.4."""
    seen = views(Balls(((0.0, 0.0, 0.0), 0.4)))
    return paint(seen, tidy(Surface(*fuse(seen, 32)), 1500), 256)


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


def test_a_ball_is_fused_to_a_closed_ball():
    seen = views(Balls(((0.05, 0.0, -0.05), 0.4)))
    surface = Surface(*fuse(seen, 32))
    assert surface.watertight
    distances = np.linalg.norm(surface.vertices - [0.05, 0.0, -0.05], axis=1)
    voxel = 0.8 / 32
    assert np.abs(np.median(distances) - 0.4) < voxel and np.abs(distances - 0.4).max() < 3 * voxel
    mesh = trimesh.Trimesh(surface.vertices, surface.faces)
    assert mesh.is_watertight and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.1), "positive: normals point outwards"


def test_what_no_view_sees_is_closed():
    """Cameras on the horizon say nothing of what hides behind an outline; the surface closes there all the same."""
    source = Balls(((0.0, 0.0, 0.0), 0.4))
    surface = Surface(*fuse(source.look(orbit(12, PARAMS)), 24))
    assert surface.watertight


def test_floaters_are_left_out():
    small = views(Balls(((0.0, 0.0, 0.0), 0.4), ((0.0, 0.0, 0.6), 0.06)))
    surface = tidy(Surface(*fuse(small, 40)), 2000)
    assert np.linalg.norm(surface.vertices, axis=1).max() < 0.5
    both = views(Balls(((0.0, -0.3, 0.0), 0.25), ((0.0, 0.3, 0.0), 0.25)))
    surface = tidy(Surface(*fuse(both, 40)), 2000)
    assert surface.vertices[:, 1].min() < -0.5 and surface.vertices[:, 1].max() > 0.5, (
        "halves are no floaters"
    )


def test_nothing_in_sight_is_one_line():
    seen = views(Balls(((0.0, 0.0, 0.0), 0.4)), count=8, size=16)
    empty = Seen(seen.cameras, seen.images * 0, seen.alphas * 0, torch.full_like(seen.depths, torch.inf))
    with pytest.raises(UserError, match="nothing is opaque"):
        fuse(empty, 16)


def test_simplified_surfaces_stay_closed_and_keep_their_shape():
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    surface = Surface(np.array(sphere.vertices), np.array(sphere.faces))
    simple = tidy(surface, 1000)
    assert 900 <= len(simple.faces) <= 1000 and simple.watertight
    assert np.abs(np.linalg.norm(simple.vertices, axis=1) - 0.5).max() < 0.01
    assert tidy(surface, 10**6).faces.shape == surface.faces.shape


def test_a_surface_with_a_hole_is_not_watertight():
    box = trimesh.creation.box()
    vertices, faces = np.array(box.vertices), np.array(box.faces)
    assert Surface(vertices, faces).watertight
    assert not Surface(vertices, faces[1:]).watertight
    turned = faces.copy()
    turned[0] = turned[0, ::-1]
    assert not Surface(vertices, turned).watertight


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


def as_it_is(path: Path) -> trimesh.Trimesh:
    (mesh,) = trimesh.load_scene(path, process=False).geometry.values()
    return mesh


def loaded(path: Path) -> trimesh.Trimesh:
    """As trimesh loads a file, with the vertices put together that lie twice for the texture's sake."""
    mesh = as_it_is(path)
    whole = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    whole.merge_vertices(digits_vertex=6)
    return whole


@pytest.fixture(scope="module")
def written(ball, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    for name, write in (("m.glb", files.write_glb), ("m.obj", files.write_obj), ("m.ply", files.write_ply)):
        write(folder / name, ball, 2.0)
    return folder


@pytest.mark.parametrize("name", ["m.glb", "m.obj", "m.ply"])
def test_others_load_a_closed_mesh_of_the_right_size(written, ball, name):
    mesh = loaded(written / name)
    assert len(mesh.faces) == len(ball.faces) and mesh.is_watertight and mesh.volume > 0
    assert mesh.extents == pytest.approx([1.6] * 3, abs=0.1), "at two metres a unit"


@pytest.mark.parametrize("name", ["m.glb", "m.obj", "m.ply"])
def test_a_mesh_of_ours_starts_a_run(written, name):
    """Red in front, blue at the back, green on top, in our frame again."""
    points, colors = sample_file(written / name, 4000, seeded())
    points, colors = points.float() / 2, colors.float()
    if name != "m.ply":  # as scene.initialization turns files whose convention is y up
        points = torch.stack([-points[:, 0], points[:, 2], points[:, 1]], dim=1)
    clear = (points[:, 1].abs() > 0.1) & ((points[:, 2] - 0.2).abs() > 0.1)
    assert (colors - sides(points))[clear].abs().mean() < 0.05


def test_the_picture_is_the_same_in_all_files(written, ball):
    mesh = as_it_is(written / "m.glb")
    assert np.array_equal(np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")), ball.picture)
    mesh = as_it_is(written / "m.obj")
    assert np.array_equal(np.asarray(mesh.visual.material.image.convert("RGB")), ball.picture)


def test_the_gltf_validator_finds_nothing_wrong(written):
    report = foreign.node("validate.mjs", written / "m.glb")
    assert report["numErrors"] == report["numWarnings"] == 0, report["messages"]


def test_three_loads_the_mesh(written, ball):
    found = foreign.node("read_mesh.mjs", written / "m.glb")
    assert found["faces"] == len(ball.faces)
    assert found["materials"] == ["MeshBasicMaterial"] and found["colorSpaces"] == ["srgb"]
    low, high = found["box"]
    assert np.subtract(high, low) == pytest.approx([1.6] * 3, abs=0.1)


def a_run(folder: Path, model: GaussianModel) -> Path:
    config, _ = load(["text=a red ball", "image_w=40", "image_h=40", "model_key=toybox", "device=cpu"])
    with Run(folder) as run:
        run.claim(to_yaml(config))
        write_gaussians(run.path("point_cloud", "iteration_7", "point_cloud.ply"), model)
        run.stands()
    return folder


def shell(opacity: float = 0.95) -> GaussianModel:
    """A ball of flat Gaussians, red in front and blue behind."""
    index = torch.arange(1500) + 0.5
    z = 1 - 2 * index / 1500
    azimuth = index * math.pi * (3 - math.sqrt(5))
    unit = torch.stack([(1 - z**2).sqrt() * azimuth.cos(), (1 - z**2).sqrt() * azimuth.sin(), z], dim=1)
    return GaussianModel(
        means=0.4 * unit,
        log_scales=torch.full((1500, 3), math.log(0.02)),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(1500, 1),
        opacity_logits=torch.full((1500, 1), opacity).logit(),
        sh_dc=rgb_to_sh_dc(sides(unit))[:, None],
        sh_rest=torch.zeros(1500, 0, 3),
    )


QUICK = ["--views", "16", "--resolution", "32", "--target-faces", "1000", "--texture", "128"]


def test_the_verb_makes_all_files_and_says_how_good_they_are(tmp_path, capsys):
    folder = a_run(tmp_path / "ball", shell())
    assert main(["mesh", str(folder), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "iteration 7: 1,500 Gaussians; 16 views" in out and "GB of memory" in out
    assert "watertight" in out and "not watertight" not in out and "PSNR" in out
    made = folder / "mesh"
    assert {path.name for path in made.iterdir()} == {
        "mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png", "mesh.ply", "mesh.json", RECORD,
    }  # fmt: skip
    numbers = json.loads((made / "mesh.json").read_text())
    assert numbers["watertight"] and numbers["psnr"] > 22 and numbers["coverage"] > 0.93
    mesh = loaded(made / "mesh.glb")
    assert mesh.extents == pytest.approx([0.85] * 3, abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--views", "2"], "--views: expected 8 to 1,000, got 2"),
        (["--target-faces", "5"], "--target-faces: expected"),
        (["--scale", "0"], "--scale: expected"),
        (["--iteration", "9"], "expected iteration 7, got 9"),
        (["--output", "{file}/inside"], "cannot be written"),
        (["--output", "{theirs}"], "mesh.ply: expected no file, or one that this program made"),
    ],
)
def test_what_cannot_be_made_is_one_line(tmp_path, capsys, words, message):
    folder = a_run(tmp_path / "ball", shell())
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mesh.ply").write_text("precious")
    words = [word.format(file=tmp_path / "file", theirs=tmp_path / "theirs") for word in words]
    assert main(["mesh", str(folder), *QUICK, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.strip().count("\n") == 0
    assert not (folder / "mesh").exists()
    assert [path.read_text() for path in (tmp_path / "theirs").iterdir()] == ["precious"]


def test_gaussians_that_nobody_sees_are_one_line(tmp_path, capsys):
    folder = a_run(tmp_path / "ball", shell(opacity=0.01))
    assert main(["mesh", str(folder), *QUICK]) == 2
    assert "nothing is opaque" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "name"),
    [("skimage", "scikit-image"), ("fast_simplification", "fast-simplification"), ("xatlas", "xatlas")],
)
def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    seen = views(Balls(((0.0, 0.0, 0.0), 0.4)), count=8, size=24)
    with pytest.raises(UserError, match=rf"{name}.*pip install"):
        paint(seen, tidy(Surface(*fuse(seen, 16)), 100), 64)


def test_many_gaussians_are_rendered_fewer_views_at_a_time():
    few, many = GaussianViews(shell()), GaussianViews(shell())
    many.gaussians = type("Many", (), {"__len__": lambda self: 2_000_000})()
    assert few.bytes < 1e7 and many.bytes < 3e9
