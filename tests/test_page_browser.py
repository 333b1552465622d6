"""Pages in a real browser: what Chromium draws is what our renderer draws, and it asks nobody for anything.

A browser draws without a card here, so a page is opened once, and put back between the tests.
"""

import re

import cv2
import numpy as np
import pytest
import torch

from dreammapping.finished import FinishedRun
from dreammapping.page.gallery import write_gallery
from dreammapping.page.page import write_page
from gaussian_renderer import render
from scene.cameras import build_cameras
from scene.gaussian_model import GaussianModel
from tests.browser import chromium, visit
from tests.finished_run import finished_run
from tests.gaussians import random_gaussians

HOSTILE = '</script><img src=x onerror="document.title=1">'
SIZE = 96
"""Pixels of the runs' images; on the screen they are several times as wide."""
WINDOW = {"width": 420, "height": 560}


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of large Gaussians of all shapes, with harmonics, and a prompt that would like to be a script."""
    model = random_gaussians(60, sh_degree=3)
    with torch.no_grad():
        model.log_scales += 0.5
    words = (f"text={HOSTILE}", f"image_w={SIZE}", f"image_h={SIZE}", "sh_degree=3")
    folder = finished_run(tmp_path_factory.mktemp("runs") / "all", *words, gaussians=model)
    write_page(FinishedRun.open(folder))
    return folder


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    """A run of four balls: red above, green in front, blue at the back, yellow on +x."""
    places = torch.tensor([[0, 0, 0.5], [0, 0.5, 0], [0, -0.5, 0], [0.5, 0, 0]])
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    model = GaussianModel.from_points(places, colors, 0)
    with torch.no_grad():
        model.log_scales.fill_(-2.3)
        model.opacity_logits.fill_(6.0)
    folder = finished_run(tmp_path_factory.mktemp("runs") / "balls", gaussians=model)
    write_page(FinishedRun.open(folder))
    return folder


def address(folder):
    return (folder / "index.html").as_uri()


def ours(folder, azimuth=0.0, polar=None, background=1.0):
    """Our own picture of a run's asset, (H, W, 3) in [0, 1]."""
    run = FinishedRun.open(folder)
    params = run.config.GenerateCamParams
    angles = (torch.tensor([float(x)]) for x in (params.default_polar if polar is None else polar, azimuth))
    cameras = build_cameras(params, params.default_fovy, *angles, torch.tensor([params.default_radius]))
    with torch.no_grad():
        images = render(run.gaussians(), cameras, torch.full((3,), background)).images
    return images[0].clamp(0, 1).permute(1, 2, 0).numpy().astype(np.float64)


def compare(seen, expected):
    """The same mean colour within 2 %, and the same picture to 30 dB at the size of the run's images."""
    side = min(seen.shape[:2])
    left, top = (seen.shape[1] - side) // 2, (seen.shape[0] - side) // 2
    seen = seen[top : top + side, left : left + side]
    seen = cv2.resize(seen, expected.shape[1::-1], interpolation=cv2.INTER_AREA)[
        2:-2, 2:-2
    ]  # without the frame
    expected = expected[2:-2, 2:-2]
    np.testing.assert_allclose(seen.mean((0, 1)), expected.mean((0, 1)), atol=0.02)
    assert -10 * np.log10(np.square(seen - expected).mean()) > 30


@pytest.fixture(scope="module")
def shown(browser, folder):
    """The page of the run, opened once."""
    with visit(browser, address(folder), viewport=WINDOW, accept_downloads=True, has_touch=True) as seen:
        yield seen


@pytest.fixture
def seen(shown):
    """The page as it was when it was opened; whatever is done with it, it is silent and asks nobody."""
    page = shown.page
    page.set_viewport_size(WINDOW)
    page.get_by_role("button", name="Front", exact=True).click()
    page.get_by_label("Background").select_option("white")
    yield shown
    assert (shown.said, shown.hosts) == ([], {""})


def test_the_browser_draws_what_our_renderer_draws_from_every_side(seen, folder):
    compare(seen.picture("canvas"), ours(folder))
    for name, azimuth, polar in (("Side", 90, None), ("Back", 180, None), ("Above", 0, 20)):
        seen.page.get_by_role("button", name=name, exact=True).click()
        compare(seen.picture("canvas"), ours(folder, azimuth, polar))


def test_another_background_is_drawn_and_a_picture_is_saved_as_it_is_seen(seen, folder, tmp_path):
    seen.page.get_by_label("Background").select_option("black")
    seen.settled()
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "view.png"
    download.value.save_as(tmp_path / "view.png")
    for picture in (seen.picture("canvas"), cv2.imread(str(tmp_path / "view.png"))[..., ::-1] / 255):
        compare(picture, ours(folder, background=0.0))


def test_the_asset_is_upright_with_its_front_first(browser, corner):
    with visit(browser, address(corner), viewport=WINDOW) as seen:
        front = seen.picture("canvas")
    height, width = front.shape[:2]

    def middle(is_it):
        rows, columns = np.nonzero(is_it)
        return rows.mean() / height, columns.mean() / width

    red, green, blue = (front[..., k] for k in range(3))
    above = middle((red > 0.8) & (green < 0.3) & (blue < 0.3))
    before = middle((green > 0.8) & (red < 0.3) & (blue < 0.3))
    beside = middle((red > 0.7) & (green > 0.7) & (blue < 0.3))
    assert above[0] < 0.35 and abs(above[1] - 0.5) < 0.02, "red is above"
    assert abs(before[0] - 0.5) < 0.02 and abs(before[1] - 0.5) < 0.02, "green is in front"
    assert beside[1] < 0.35, "+x is on the left of who looks at the front"
    assert not ((blue > 0.8) & (red < 0.3) & (green < 0.3)).any(), "blue is hidden behind it"


def test_the_asset_turns_with_the_mouse_and_the_keys(seen, folder):
    canvas, page = seen.page.locator("canvas"), seen.page
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + min(box["width"], box["height"]) / 2, middle[1], steps=3)
    page.mouse.up()
    compare(seen.picture("canvas"), ours(folder, azimuth=90))  # half the side of the view is a quarter turn
    canvas.focus()
    page.keyboard.press("Home")
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    compare(seen.picture("canvas"), ours(folder, azimuth=-90))
    page.keyboard.press("Home")
    home, scrolled = seen.picture("canvas"), page.evaluate("scrollY")
    compare(home, ours(folder))
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)  # a wheel's event comes when it comes
    assert np.abs(seen.picture("canvas") - home).mean() > 0.01
    assert page.evaluate("scrollY") == scrolled


def test_a_hostile_prompt_is_read_as_it_is_written(seen):
    assert seen.page.locator("h1").inner_text() == HOSTILE
    assert seen.page.title() == HOSTILE and seen.page.locator("img[src=x]").count() == 0
    assert seen.page.evaluate("document.scripts.length") == 3


def test_the_video_plays(seen):
    ready = "v.readyState >= 1 && v.duration > 0 || !!v.error"
    seen.page.wait_for_function(f"() => {{ const v = document.querySelector('video'); return {ready} }}")
    if seen.page.evaluate("document.querySelector('video').error?.code") is not None:
        pytest.skip("this Chromium plays no H.264")
    assert seen.page.evaluate("document.querySelector('video').videoWidth") == SIZE


def luminance(colour):
    """Relative luminance of `rgb(...)`, of the rules on contrast (WCAG 2.1)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_text_can_be_read_by_day_and_by_night(seen, scheme):
    """4.5 times the luminance, or the other way round, as the rules ask for."""
    colours = """() => [...document.querySelectorAll('h1,h2,dt,dd,td,th,a,p,figcaption,li,button,text')].map(e => {
      const style = getComputedStyle(e);
      let under = e;
      while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
      return [e instanceof SVGElement ? style.fill : style.color, getComputedStyle(under).backgroundColor]; })"""
    seen.page.emulate_media(color_scheme=scheme)
    pairs = {tuple(pair) for pair in seen.page.evaluate(colours)}
    paper = luminance(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light") and len(pairs) > 3
    for pair in pairs:
        low, high = sorted(map(luminance, pair))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


@pytest.mark.parametrize("width", [340, 768])
def test_a_phone_scrolls_down_alone_and_a_finger_hits_what_it_aims_at(seen, folder, width):
    seen.page.set_viewport_size({"width": width, "height": 600})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [button.bounding_box() for button in seen.page.locator("button").all()]
    assert all(box["height"] >= 32 for box in boxes)
    compare(seen.picture("canvas"), ours(folder))


def test_everything_is_reached_by_the_keyboard(seen):
    count = "document.querySelectorAll('button:not([disabled]),a[href],select,canvas,video').length"
    wanted, reached = seen.page.evaluate(count), set()
    for _ in range(8 * wanted):
        seen.page.keyboard.press("Tab")
        reached.add(
            seen.page.evaluate(
                "(() => { const all = [...document.querySelectorAll('button,a[href],select,canvas,video')];"
                " return all.indexOf(document.activeElement) })()"
            )
        )
        if len(reached - {-1}) == wanted:
            return
    raise AssertionError(f"{len(reached - {-1})} of {wanted}")


def test_where_nothing_can_be_drawn_the_page_says_so_and_shows_the_rest(browser, folder):
    page = browser.new_page()
    try:
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.goto(address(folder))
        assert page.get_by_text("This browser draws no WebGL2").is_visible()
        assert not page.locator("canvas").is_visible() and page.locator(".views img").first.is_visible()
    finally:
        page.close()


# A gallery


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, folder):
    above = tmp_path_factory.mktemp("gallery")
    runs = []
    for seed, count in ((3, 40), (10, 9), (2, 100)):
        words = (f"text=thing {seed}", f"seed={seed}", f"image_w={SIZE}", f"image_h={SIZE}")
        made = finished_run(above / f"run {seed}", *words, gaussians=random_gaussians(count, seed=seed))
        runs.append(FinishedRun.open(made))
    runs.append(FinishedRun.open(folder))
    return write_gallery([(run, write_page(run)) for run in runs], above / "index.html")


def test_a_gallery_is_sorted_by_numbers_as_numbers(browser, gallery):
    with visit(browser, gallery.as_uri()) as seen:
        for column, expected in (("seed", ["0", "2", "3", "10"]), ("Gaussians", ["9", "40", "60", "100"])):
            index = [cell.inner_text().strip() for cell in seen.page.locator("thead th").all()].index(column)
            for order in (expected, expected[::-1]):
                seen.page.locator("thead button", has_text=column).click()
                cells = seen.page.locator(f"tbody td:nth-child({index + 1})").all_inner_texts()
                assert cells == order
        assert seen.page.locator("th[aria-sort=descending]").count() == 1
        assert HOSTILE in seen.page.locator("tbody").inner_text()
        assert (seen.said, seen.hosts) == ([], {""})


def test_runs_stand_side_by_side_and_turn_together(browser, gallery):
    with visit(browser, gallery.as_uri()) as seen:
        boxes = seen.page.locator("input[type=checkbox]")
        for index in (0, 2):
            boxes.nth(index).check()
        frames = seen.page.locator("iframe")
        folders = [gallery.parent / f"run {seed}" for seed in (3, 2)]
        for frame in seen.page.frames[1:]:
            frame.wait_for_function("document.documentElement.classList.contains('alone')")
        for index, folder in enumerate(folders):
            compare(shot(seen, index), ours(folder))
        box = frames.nth(0).bounding_box()
        seen.page.mouse.move(box["x"] + 50, box["y"] + 50)
        seen.page.mouse.down()
        seen.page.mouse.move(box["x"] + 50 + min(box["width"], box["height"]) / 2, box["y"] + 50, steps=3)
        seen.page.mouse.up()
        seen.page.wait_for_timeout(300)  # a message from frame to frame
        for index, folder in enumerate(folders):
            compare(shot(seen, index), ours(folder, azimuth=90))
        boxes.nth(0).uncheck()
        assert frames.count() == 1 and (seen.said, seen.hosts) == ([], {""})


def shot(seen, index):
    """A frame's picture on the screen."""
    for frame in seen.page.frames:
        frame.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    png = seen.page.locator("iframe").nth(index).screenshot()
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] / 255
