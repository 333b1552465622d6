"""The viewer in a real browser: the asset where our renderer has it, upright, front first, and nobody else is asked."""

import time

import cv2
import numpy as np
import pytest
import torch

from dreammapping.finished import FinishedRun
from gaussian_renderer import render
from scene.cameras import build_cameras
from tests.browser import SLOW, chromium, visit
from tests.finished_run import finished_run
from tests.gaussians import random_gaussians
from tests.viewer_process import address_said, started

WIDTH, HEIGHT = 1140, 300
"""Of the window; the panel lies on the right of the asset, a notice that no card draws on its left."""
KNOWN = (
    "THREE.Clock: This module has been deprecated",  # viser's own, of the library that it is built with
    "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN",
    "GPU stall due to ReadPixels",  # a screenshot
)


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("viser", reason="needs viser: pip install .")
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = random_gaussians(60)
    with torch.no_grad():
        model.log_scales += 0.5
    words = ("image_w=200", "image_h=200", "white_background=false")
    return finished_run(tmp_path_factory.mktemp("runs") / "run", *words, gaussians=model)


@pytest.fixture(scope="module")
def address(folder):
    process = started(folder, "--port", "8400")
    try:
        yield address_said(process.stdout)
    finally:
        process.kill()
        process.communicate()


def ours(folder, azimuth=0.0):
    """Our own picture of the run's asset before black, (H, W, 3) in [0, 1]."""
    run = FinishedRun.open(folder)
    params = run.config.GenerateCamParams
    angles = (torch.tensor([float(x)]) for x in (params.default_polar, azimuth))
    cameras = build_cameras(params, params.default_fovy, *angles, torch.tensor([params.default_radius]))
    with torch.no_grad():
        images = render(run.gaussians(), cameras, torch.zeros(3)).images
    return images[0].clamp(0, 1).permute(1, 2, 0).numpy().astype(np.float64)


def middle(seen):
    """The square in the middle of the window, as large as the run's images."""
    png = cv2.imdecode(np.frombuffer(seen.page.screenshot(timeout=SLOW), np.uint8), cv2.IMREAD_COLOR)
    left = (WIDTH - HEIGHT) // 2
    square = png[:, left : left + HEIGHT, ::-1] / 255
    return cv2.resize(square, (200, 200), interpolation=cv2.INTER_AREA)


def await_picture(seen, expected, decibels):
    """Wait until the window shows the expected picture: mean colour within 2 %, and so many decibels."""
    until, inner = time.monotonic() + SLOW / 1000, slice(20, 180)
    while True:
        found = middle(seen)[inner, inner]
        wanted = expected[inner, inner]
        apart = np.abs(found.mean((0, 1)) - wanted.mean((0, 1))).max()
        ratio = -10 * np.log10(np.square(found - wanted).mean())
        if apart < 0.02 and ratio > decibels:
            return
        assert time.monotonic() < until, f"the mean colour is {apart:.3f} apart, {ratio:.1f} dB"
        seen.page.wait_for_timeout(500)


def test_splats_and_frames_show_what_our_renderer_shows_and_no_other_host_is_asked(browser, folder, address):
    with visit(browser, address, viewport={"width": WIDTH, "height": HEIGHT}) as seen:
        seen.page.get_by_role("button", name="Save picture").wait_for()
        await_picture(seen, ours(folder), 22)  # the browser's splats have a blur and a cutoff of their own
        seen.page.get_by_label("Drawn as").click()
        seen.page.get_by_role("option", name="frames of our renderer").click()
        await_picture(seen, ours(folder), 28)  # JPEG, drawn larger than it is
        assert seen.hosts == {"127.0.0.1"}
        assert [said for said in seen.said if not said.startswith(KNOWN) and KNOWN[2] not in said] == []
