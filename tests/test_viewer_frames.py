"""What the viewer shows is what our renderer shows; and what it and a run leave for each other."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from arguments import load
from dreammapping.viewer.exchange import Exchange
from dreammapping.viewer.frames import Pose, covariances, frame, side_by_side
from gaussian_renderer import render
from scene.cameras import Cameras, orbit
from tests.gaussians import random_gaussians
from tests.settings import config_of
from utils.images import to_uint8
from utils.rotations import quaternions_to_matrices

pytestmark = pytest.mark.whole_runs


def pose_of(cameras: Cameras) -> Pose:
    """The pose of the first camera, as a browser would say it."""
    turn = cameras.world_to_camera[0, :3, :3].T.double()
    # the quaternion of a rotation that is not half a turn
    w = (1 + turn.trace()).sqrt() / 2
    axis = torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / (4 * w)
    return Pose(
        tuple(cameras.centers[0].tolist()),
        (float(w), *axis.tolist()),
        float(cameras.fov_y[0]),
        cameras.width / cameras.height,
    )


@pytest.fixture(scope="module")
def params():
    words = ["text=a", "model_key=toybox", "guidance=vdm", "image_w=60", "image_h=40"]
    return load(words)[0].GenerateCamParams


def test_a_frame_is_what_the_renderer_draws_for_the_same_camera(params):
    model, cameras = random_gaussians(40, sh_degree=2), orbit(8, params, elevated_ring=True)[9:10]
    with torch.no_grad():
        expected = render(model, cameras, torch.full((3,), 0.5))
    seen = frame(model, pose_of(cameras), 40, background=0.5)
    # what the quaternion and back loses may move a colour over a rounding border
    assert abs(seen.astype(int) - to_uint8(expected.images)[0]).max() <= 1
    opacity = frame(model, pose_of(cameras), 40, channel="opacity")
    assert abs(opacity.astype(int) - to_uint8(expected.alphas)[0]).max() <= 1
    depth = frame(model, pose_of(cameras), 40, channel="depth")
    assert depth.shape == (40, 60, 3) and depth.max() > 100


def test_a_run_of_a_card_is_shown_where_there_is_none(params):
    from dreammapping.viewer.stage import BACKGROUNDS, Stage

    model = random_gaussians(40)
    chosen = {"background": next(iter(BACKGROUNDS)), "channel": "colour", "degree": 0}
    stage = SimpleNamespace(
        gaussians=model,
        config=config_of(backend="cuda"),
        **{name: SimpleNamespace(value=value) for name, value in chosen.items()},
    )
    assert Stage.picture(stage, pose_of(orbit(8, params)[1:2]), 40).shape == (40, 60, 3)


def test_harmonics_are_used_up_to_the_degree_that_is_asked_for(params):
    model, pose = random_gaussians(40, sh_degree=2), pose_of(orbit(8, params)[1:2])
    flat, all_bands = (frame(model, pose, 40, sh_degree=degree) for degree in (0, 3))
    model.active_sh_degree = 0
    assert (frame(model, pose, 40) == flat).all() and (flat != all_bands).any()


@pytest.mark.parametrize("aspect", [1e-6, 0.5, 3.0, 1e6])
def test_windows_of_every_form_are_drawn(aspect):
    picture = frame(random_gaussians(5), Pose((0, 3.5, 0), (0, 0, 0.7071, -0.7071), 0.5, aspect), 32)
    assert picture.shape == (32, round(32 * min(max(aspect, 0.25), 4)), 3)


def test_the_start_stands_on_the_left_of_the_result(params):
    both = side_by_side(random_gaussians(5), random_gaussians(7, sh_degree=1), 1.2)
    assert len(both) == 12 and both.active_sh_degree == 1
    camera = orbit(1, params)
    across = both.means.detach() @ camera.world_to_camera[0, 0, :3]
    assert across[:5].mean() < across[5:].mean()
    torch.testing.assert_close(both.means[:5, 1:], random_gaussians(5).means[:, 1:])


def test_covariances_are_those_of_the_rotated_scales():
    model = random_gaussians(6)
    turns = quaternions_to_matrices(model.rotations.detach())
    expected = turns @ torch.diag_embed(model.scales.detach() ** 2) @ turns.transpose(1, 2)
    torch.testing.assert_close(torch.from_numpy(covariances(model)), expected)


# What the run and the viewer leave for each other


def test_a_snapshot_is_read_as_it_was_left_and_once(tmp_path):
    exchange, model = Exchange(tmp_path), random_gaussians(9, sh_degree=1)
    picture = (torch.rand(4, 6, 3) * 255).byte().numpy()
    assert exchange.newest(0.0) is None
    exchange.leave(3, model, picture)
    left, snapshot = exchange.newest(0.0)
    assert (
        snapshot.step == 3
        and (snapshot.picture == picture).all()
        and snapshot.gaussians.active_sh_degree == 1
    )
    for name in model.parameter_names:
        assert torch.equal(getattr(snapshot.gaussians, name), getattr(model, name))
    assert exchange.newest(left) is None
    exchange.leave(4, None, picture)
    os.utime(tmp_path / "snapshot.npz", (left + 1, left + 1))
    assert exchange.newest(left)[1].gaussians is None


def test_a_snapshot_that_is_broken_is_none(tmp_path):
    for content in (b"", b"PK\x03\x04 cut off", b"x" * 1000):
        (tmp_path / "snapshot.npz").write_bytes(content)
        assert Exchange(tmp_path).newest(0.0) is None


def test_wishes_are_heard_once_and_a_pause_ends_with_its_viewer(tmp_path):
    exchange = Exchange(tmp_path)
    assert not exchange.takes_save() and not exchange.paused
    exchange.ask_to_save()
    assert exchange.takes_save() and not exchange.takes_save()
    exchange.renew_pause(True)
    assert exchange.paused
    os.utime(tmp_path / "pause", (time.time() - 60, time.time() - 60))
    assert not exchange.paused
    exchange.renew_pause(True)
    assert exchange.paused
    exchange.renew_pause(False)
    exchange.renew_pause(False)
    assert not exchange.paused


def test_an_exchange_is_removed_and_nothing_else_with_it(tmp_path):
    for name in ("empty", "shared"):
        (tmp_path / name).mkdir()
        exchange = Exchange(tmp_path / name)
        exchange.leave(1, None, (torch.rand(2, 2, 3) * 255).byte().numpy())
        exchange.ask_to_save()
        exchange.renew_pause(True)
        (tmp_path / name / ".snapshot.0123abcd.partial.npz").write_bytes(b"cut off by a kill")
    (tmp_path / "shared" / "thesis.txt").write_text("x")
    for name in ("empty", "shared", "gone"):
        Exchange(tmp_path / name).remove()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["shared", "thesis.txt"]


def test_an_exchange_that_is_gone_disturbs_nobody(tmp_path):
    exchange = Exchange(tmp_path / "gone")
    exchange.ask_to_save()
    exchange.renew_pause(True)
    assert not exchange.paused and not exchange.takes_save() and exchange.newest(0.0) is None
