"""Cameras: frames, rings, random views, relaxation."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments import GenerateCamParams, OptimizationParams
from scene.camera_sampling import CameraSampler, camera_ranges, random_cameras
from scene.cameras import cameras_json, look_at, orbit, spherical_to_cartesian, wrap_degrees
from tests.gaussians import seeded

STILL = GenerateCamParams(jitter_pose=False)


def test_azimuth_zero_is_in_front_and_turns_towards_x():
    ring = orbit(4, STILL)
    expected = torch.tensor([[0.0, 3.5, 0], [3.5, 0, 0], [0, -3.5, 0], [-3.5, 0, 0]])
    torch.testing.assert_close(ring.centers, expected, atol=1e-6, rtol=0)
    assert ring.azimuth_deg.tolist() == [0, 90, 180, -90]


def test_the_front_camera_sees_world_minus_x_on_its_right_and_z_up():
    rotation = orbit(1, STILL).world_to_camera[0, :3, :3]
    right, down, forward = rotation
    torch.testing.assert_close(right, torch.tensor([-1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(down, torch.tensor([0.0, 0, -1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(forward, torch.tensor([0.0, -1, 0]), atol=1e-6, rtol=0)


@given(
    polar=st.floats(0, 180),
    azimuth=st.floats(-180, 180),
    radius=st.floats(0.5, 50),
    target=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
)
@settings(deadline=None, max_examples=60)
def test_a_camera_looks_at_its_target_with_a_proper_basis(polar, azimuth, radius, target):
    center = spherical_to_cartesian(
        *(torch.tensor([value], dtype=torch.float64) for value in (polar, azimuth, radius))
    )
    target = torch.tensor([target], dtype=torch.float64)
    up = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    if torch.linalg.cross(target - center, up).norm() < 1e-3 * radius:
        return
    matrix = look_at(center, target, up)[0]
    rotation = matrix[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert torch.linalg.det(rotation) == pytest.approx(1)
    seen = rotation @ target[0] + matrix[:3, 3]
    torch.testing.assert_close(seen[:2], torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert seen[2] == pytest.approx(float((target - center).norm()))
    assert (rotation @ up[0])[1] < 0  # up is up: towards negative y


@pytest.mark.parametrize("polar", [0.0, 180.0])
def test_poles_have_an_up_direction_that_continues_their_surroundings(polar):
    near = abs(polar - 0.5)
    at_pole = orbit(6, STILL, polar_deg=polar).world_to_camera
    beside = orbit(6, STILL, polar_deg=near).world_to_camera
    torch.testing.assert_close(at_pole[:, :3, :3], beside[:, :3, :3], atol=0.01, rtol=0)


def test_rings_for_tests_and_videos():
    views = orbit(8, GenerateCamParams(), elevated_ring=True)
    assert len(views) == 16
    assert views.polar_deg.tolist() == [90.0] * 8 + [60.0] * 8
    torch.testing.assert_close(views.centers.norm(dim=1), torch.full((16,), 3.5))
    torch.testing.assert_close(views.fov_x, torch.full((16,), 0.55))
    assert torch.equal(views.azimuth_deg[:8], views.azimuth_deg[8:])


def test_azimuth_is_relative_to_the_default_and_wrapped():
    ring = orbit(4, dataclasses.replace(STILL, default_azimuth=-90.0))
    assert ring.azimuth_deg.tolist() == [90, 180, -90, 0]
    angles = torch.tensor([-180.0, 180, 181, 540, -359, 0])
    assert wrap_degrees(angles).tolist() == [180, 180, -179, 180, 1, 0]


def test_wide_images_keep_square_pixels():
    views = orbit(1, dataclasses.replace(STILL, image_w=640, image_h=320))
    assert (views.width, views.height) == (640, 320)
    focal_x = 640 / (2 * math.tan(float(views.fov_x) / 2))
    focal_y = 320 / (2 * math.tan(float(views.fov_y) / 2))
    assert focal_x == pytest.approx(focal_y, rel=1e-6)
    assert float(views.fov_x) == pytest.approx(0.55)


def test_batches_are_indexed_and_joined():
    views = orbit(6, STILL)
    part = views[[4, 1]]
    assert len(part) == 2
    assert torch.equal(part.centers, views.centers[[4, 1]])
    whole = type(views).concatenate([views[:2], views[2:]])
    assert torch.equal(whole.world_to_camera, views.world_to_camera)
    assert (whole.width, whole.height) == (views.width, views.height)


# The published ranges of each group, from the schedule that the shipped LucidDreamer settings produce.
RELAXATION = {
    1: ((0.32, 0.60), (5.2, 5.5), 80),
    499: ((0.32, 0.60), (5.2, 5.5), 80),
    500: ((0.24, 0.60), (4.94, 5.225), 120),
    999: ((0.24, 0.60), (4.94, 5.225), 120),
    1000: ((0.18, 0.60), (4.693, 5.0), 180),
    1500: ((0.16, 0.60), (4.458, 5.0), 180),
    2000: ((0.16, 0.60), (4.235, 5.0), 180),
    2500: ((0.16, 0.60), (4.024, 5.0), 180),
    3000: ((0.16, 0.60), (3.823, 5.0), 180),
    3500: ((0.16, 0.60), (3.631, 5.0), 180),
    4000: ((0.16, 0.60), (3.5, 5.0), 180),
    5000: ((0.16, 0.60), (3.5, 5.0), 180),
}


@pytest.mark.parametrize("step", RELAXATION)
def test_relaxation_follows_lucid_dreamers_table(step):
    params = GenerateCamParams(phi_range=(-80.0, 80.0))
    ranges = camera_ranges(params, OptimizationParams(), step)
    fov, radius, azimuth = RELAXATION[step]
    assert ranges.fov == pytest.approx(fov)
    assert ranges.radius == pytest.approx(radius, abs=6e-4)
    assert ranges.azimuth_deg == pytest.approx((-azimuth, azimuth))
    assert ranges.polar_deg == (45, 105)


def test_polar_range_widens_up_to_its_bounds():
    params = GenerateCamParams(theta_range=(60.0, 90.0), max_theta_range=(30.0, 120.0))
    ranges = [camera_ranges(params, OptimizationParams(), step).polar_deg for step in (0, 500, 1000)]
    assert ranges == [(60, 90), (40, 120), (30, 120)]


def test_use_progressive_turns_relaxation_off_as_upstream():
    ranges = camera_ranges(GenerateCamParams(), OptimizationParams(use_progressive=True), 4000)
    assert ranges.fov == (0.32, 0.60)


@pytest.mark.parametrize(
    ("first", "period", "step", "count"),
    [(700, 500, 999, 0), (700, 500, 1000, 1), (0, 100, 99, 0), (0, 100, 200, 2)],
)
def test_relaxations_start_at_the_first_multiple_after_the_start(first, period, step, count):
    settings = OptimizationParams(progressive_view_iter=first, scale_up_cameras_iter=period)
    radius = camera_ranges(GenerateCamParams(max_radius_range=(0.5, 0.5)), settings, step).radius
    assert radius[0] == pytest.approx(5.2 * 0.95**count)


def test_random_cameras_stay_in_their_ranges():
    ranges = camera_ranges(STILL, OptimizationParams(), 0)
    views = random_cameras(2000, STILL, ranges, seeded())
    distances = views.centers.norm(dim=1)
    assert (distances.min(), distances.max()) == pytest.approx((5.2, 5.5), abs=2e-3)
    assert (views.polar_deg.min(), views.polar_deg.max()) == pytest.approx((45, 105), abs=0.2)
    assert (views.azimuth_deg.min(), views.azimuth_deg.max()) == pytest.approx((-180, 180), abs=0.5)
    assert len(views.fov_x.unique()) == 1
    assert views.azimuth_deg.std() == pytest.approx(360 / math.sqrt(12), rel=0.05)


def test_gamma_gathers_angles_in_the_middle():
    def spread(gamma):
        params = dataclasses.replace(STILL, rand_cam_gamma=gamma)
        return random_cameras(
            4000, params, camera_ranges(params, OptimizationParams(), 0), seeded()
        ).azimuth_deg.abs()

    # |angle| is 180 u^gamma, whose mean is 180 / (1 + gamma).
    assert spread(1.0).mean() == pytest.approx(90, rel=0.04)
    assert spread(1.5).mean() == pytest.approx(72, rel=0.04)


def test_the_whole_sphere_can_be_sampled():
    params = dataclasses.replace(STILL, uniform_sphere_rate=1.0)
    views = random_cameras(4000, params, camera_ranges(params, OptimizationParams(), 0), seeded())
    directions = views.centers / views.centers.norm(dim=1, keepdim=True)
    torch.testing.assert_close(directions.mean(dim=0), torch.zeros(3), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.cov(directions.T), torch.eye(3) / 3, atol=0.03, rtol=0)


def test_jitter_moves_the_camera_and_not_the_prompt():
    params = GenerateCamParams()
    views = random_cameras(500, params, camera_ranges(params, OptimizationParams(), 0), seeded())
    asked = spherical_to_cartesian(views.polar_deg, views.azimuth_deg, views.radius)
    offsets = views.centers - asked
    assert 0.02 < offsets.abs().max() <= 0.0251
    targets = views.world_to_camera[:, :3, 3]  # the origin as the camera sees it
    assert targets[:, :2].std() == pytest.approx(0.05, rel=0.2)
    still = random_cameras(500, STILL, camera_ranges(STILL, OptimizationParams(), 0), seeded())
    assert torch.equal(views.azimuth_deg, still.azimuth_deg)
    torch.testing.assert_close(still.world_to_camera[:, :2, 3], torch.zeros(500, 2), atol=1e-6, rtol=0)


def test_a_stack_is_drawn_without_replacement_and_shares_one_field_of_view():
    sampler = CameraSampler(STILL, OptimizationParams(), stack_size=10)
    rng = seeded()
    views = [sampler.sample(4, 1, rng) for _ in range(5)]
    fovs = torch.cat([part.fov_x for part in views])
    assert len(fovs[:10].unique()) == len(fovs[10:].unique()) == 1
    assert len(fovs.unique()) == 2
    assert len(torch.cat([part.azimuth_deg for part in views]).unique()) == 20


def test_ranges_change_when_the_stack_is_refilled():
    sampler = CameraSampler(STILL, OptimizationParams(), stack_size=4)
    rng = seeded()
    sampler.sample(2, 499, rng)
    old, new = sampler.sample(4, 4000, rng).radius.split(2)
    assert (old >= 5.2).all()
    assert (new <= 5.0).all()


def test_a_resumed_sampler_gives_the_same_stream():
    settings = GenerateCamParams(), OptimizationParams(), 10
    sampler, rng = CameraSampler(*settings), seeded()
    sampler.sample(7, 1, rng)
    resumed, twin_rng = CameraSampler(*settings), torch.Generator()
    resumed.load_state_dict({name: value.clone() for name, value in sampler.state_dict().items()})
    twin_rng.set_state(rng.get_state())
    for step in (2, 3, 500):
        ours, theirs = sampler.sample(4, step, rng), resumed.sample(4, step, twin_rng)
        assert torch.equal(ours.world_to_camera, theirs.world_to_camera)
        assert torch.equal(ours.fov_x, theirs.fov_x)
        assert torch.equal(ours.azimuth_deg, theirs.azimuth_deg)


def test_supersampling_enlarges_training_images_alone():
    params = dataclasses.replace(STILL, SSAA=2, image_w=64, image_h=32)
    training = CameraSampler(params, OptimizationParams(), 2).sample(1, 1, seeded())
    assert (training.width, training.height) == (128, 64)
    assert orbit(1, params).width == 64


def test_json_for_sibr_viewers():
    entry = cameras_json(orbit(2, STILL))[0]
    assert list(entry)[:8] == ["id", "img_name", "width", "height", "position", "rotation", "fy", "fx"]
    assert (entry["id"], entry["img_name"], entry["frame"]) == (0, "0", "rdf")
    assert entry["position"] == pytest.approx([0, 0, -3.5], abs=1e-6)
    columns = torch.tensor(entry["rotation"]).T  # camera axes in the frame of the .ply
    torch.testing.assert_close(columns[2], torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    assert entry["fx"] == pytest.approx(512 / (2 * math.tan(0.275)), rel=1e-5)
