"""Surfaces of spheres: closed, of the right shape, without floaters, and simplified without a hole."""

import math

import numpy as np
import pytest
import torch
import trimesh

from dreammapping.mesh.fusion import fuse
from dreammapping.mesh.surface import Surface, tidy
from dreammapping.mesh.views import Seen
from scene.cameras import orbit
from tests.balls import PARAMS, Balls, views
from utils.errors import UserError

pytestmark = pytest.mark.whole_runs

for library in ("skimage", "fast_simplification", "xatlas"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install .")


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
