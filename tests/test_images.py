"""Pictures and videos on disk, contact sheets, depth in colour, and the smoothness term."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scene.regularizers import total_variation
from utils.colormap import colored_depth
from utils.contact_sheet import GAP, LINE, contact_sheet
from utils.errors import UserError
from utils.images import grid, read_picture, to_uint8, write_picture
from utils.video import frame_count, try_encoder, video


def test_total_variation_is_upstreams_formula():
    images = torch.rand(3, 2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b, c, h, w = images.shape
    vertical = sum(
        (images[i, :, y + 1] - images[i, :, y]).square().sum() for i in range(b) for y in range(h - 1)
    )
    horizontal = sum(
        (images[i, :, :, x + 1] - images[i, :, :, x]).square().sum() for i in range(b) for x in range(w - 1)
    )
    expected = 2 / b * (vertical / (c * (h - 1) * w) + horizontal / (c * h * (w - 1)))
    torch.testing.assert_close(total_variation(images), expected)


def test_a_picture_comes_back_to_the_bit(tmp_path):
    image = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    write_picture(tmp_path / "a.png", image)
    assert np.array_equal(read_picture(tmp_path / "a.png"), to_uint8(image)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_is_read_as_viewers_show_it(tmp_path):
    """Before white where it is transparent, whatever colour is hidden there; of 16 bits the higher eight; upright."""
    hidden = np.zeros((2, 3, 4), np.uint8)
    hidden[0] = 255, 0, 0, 255
    Image.fromarray(hidden).save(tmp_path / "a.png")
    expected = np.full((2, 3, 3), 255, np.uint8)
    expected[0] = 255, 0, 0
    assert np.array_equal(read_picture(tmp_path / "a.png"), expected)
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_picture(tmp_path / "p.png").tolist() == [[[255, 255, 255], [0, 0, 255]]]
    grey = np.array([[0, 128 * 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png")[..., 1].tolist() == [[0, 128, 255]]
    turned = Image.Exif()
    turned[0x0112] = 3  # half a turn
    Image.fromarray(expected).save(tmp_path / "turned.png", exif=turned)
    assert np.array_equal(read_picture(tmp_path / "turned.png"), expected[::-1, ::-1])


def test_a_picture_that_is_broken_or_too_large_is_an_error_of_its_file(tmp_path, monkeypatch):
    write_picture(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8))
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[:30] + b"\0\0\0" + content[33:])
    with pytest.raises((OSError, ValueError)):
        read_picture(tmp_path / "broken.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)  # it warns from there on, and stops at twice as many
    with pytest.raises(OSError, match="exceeds limit"):
        read_picture(tmp_path / "a.png")


def test_a_grid_has_a_row_for_each_batch_and_white_gaps():
    picture = grid([torch.zeros(3, 3, 4, 5), torch.full((1, 1, 4, 5), 0.5)])
    assert picture.shape == (1, 3, 8, 15)
    assert (
        picture[0, :, :4].eq(0).all()
        and picture[0, :, 4:, :5].eq(0.5).all()
        and picture[0, :, 4:, 5:].eq(1).all()
    )


def test_bytes_are_written_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(6, 9, 3), dtype=np.uint8)
    write_picture(tmp_path / "a.png", pixels)
    assert np.array_equal(read_picture(tmp_path / "a.png"), pixels)


def lightness(colours: np.ndarray) -> np.ndarray:
    """Luma of ITU-R BT.709."""
    return colours @ np.array([0.2126, 0.7152, 0.0722])


def test_the_nearer_the_brighter():
    disparity = torch.linspace(0.0, 1.0, 256).expand(2, 1, 3, 256)
    colours = colored_depth(disparity)
    assert colours.shape == (2, 3, 256, 3) and colours.dtype == np.uint8
    assert (colours == colours[:1, :1]).all()
    steps = np.diff(lightness(colours[0, 0]))
    assert steps.min() >= -1.0 and steps.sum() > 200  # a byte of each channel is rounded
    red, _, blue = colours[0, 0, 128]
    assert red > 2 * blue, "Inferno is red in its middle, not blue"


def test_disparity_outside_its_range_is_clamped():
    wild, tame = torch.tensor([-3.0, 7.0]), torch.tensor([0.0, 1.0])
    assert np.array_equal(*(colored_depth(values.view(1, 1, 1, 2)) for values in (wild, tame)))


def test_pictures_stand_on_a_sheet_pixel_by_pixel():
    rows = [torch.rand(2, 3, 8, 12), torch.rand(1, 1, 8, 12)]
    sheet = contact_sheet([("", rows[0]), ("", rows[1])])
    assert sheet.shape == (2 * 8 + GAP, 2 * 12 + GAP, 3)
    first, second = (to_uint8(row) for row in rows)
    assert np.array_equal(sheet[:8, :12], first[0]) and np.array_equal(sheet[:8, 12 + GAP :], first[1])
    assert np.array_equal(sheet[8 + GAP :, :12], second[0])
    assert (sheet[8 : 8 + GAP] == 255).all() and (sheet[8 + GAP :, 12:] == 255).all()


def test_labels_and_captions_take_a_line_each_and_leave_the_pictures_alone():
    images = torch.rand(2, 3, 40, 40)
    sheet = contact_sheet([("render", images)], ["front", "back"])
    assert sheet.shape == (2 * (LINE + GAP) + 40, 2 * 40 + GAP, 3)
    for strip in (sheet[:LINE, :40], sheet[:LINE, 40 + GAP :], sheet[LINE + GAP : 2 * LINE + GAP]):
        assert (strip < 128).any(), "there is ink"
    bare = contact_sheet([("", images)])
    assert np.array_equal(sheet[-40:], bare)
    assert np.array_equal(contact_sheet([("render", images)])[-40:], bare)


@pytest.mark.parametrize(
    "text", ["a", "a purple dinosaur (held out)", "as long as a line of prose, or longer"]
)
def test_a_caption_stays_over_its_own_picture(text):
    sheet = contact_sheet([("", torch.ones(2, 3, 8, 64))], [text, ""])
    assert (sheet[:LINE, :64] < 200).any()
    assert (sheet[:, 64:] == 255).all()


def test_a_caption_that_is_too_long_is_written_smaller():
    text = "a purple dinosaur (held out)"
    sheet = contact_sheet([("", torch.ones(1, 3, 8, 150))], [text])
    ink = np.flatnonzero((sheet[:LINE] < 200).any(axis=(0, 2)))
    assert 75 < ink.max() < 149, "all of it, over most of the width"


@pytest.mark.parametrize("tile", [6, 24])
def test_pictures_take_the_width_that_is_asked_for(tile):
    image = torch.zeros(1, 3, 8, 12)
    image[..., 6:] = 1.0
    sheet = contact_sheet([("", image)], tile=tile)
    assert sheet.shape == (tile * 8 // 12, tile, 3)
    assert (sheet[:, : tile // 2 - 2] < 10).all() and (sheet[:, tile // 2 + 2 :] > 245).all()


def test_a_video_is_h264_with_every_frame(tmp_path):
    import imageio.v2 as imageio

    with video(tmp_path / "a.mp4", fps=10) as write:
        for value in (0, 100, 200):
            write(np.full((33, 49, 3), value, dtype=np.uint8))
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        meta = reader.get_meta_data()
        read = [frame.mean() for frame in reader]
    assert meta["codec"] == "h264" and meta["size"] == (48, 32) and meta["fps"] == 10
    np.testing.assert_allclose(read, [0, 100, 200], atol=3)
    assert frame_count(tmp_path / "a.mp4") == 3


def test_a_colon_in_a_path_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("red: car", "a.mp4")
    with video(path) as write:
        write(np.zeros((16, 16, 3), np.uint8))
    assert frame_count(path.absolute()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file systems that take letters alone")
def test_a_video_may_have_any_name(tmp_path):
    """As a path has in a locale without its letters. OpenCV ends the process over such text."""
    path = tmp_path / "v\udce4" / "a.mp4"
    with video(path) as write:
        write(np.zeros((16, 16, 3), np.uint8))
    assert frame_count(path) == 1


def test_without_a_place_for_temporary_files_there_is_no_video(tmp_path, monkeypatch):
    """A container whose own disk is read only, with a folder of the host's for the results."""

    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"no temporary file: No usable .*; set TMPDIR to a folder"):
        try_encoder(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_has_no_frames(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    assert frame_count(tmp_path / "a.mp4") == frame_count(tmp_path / "none.mp4") == 0
