"""Pictures and videos on disk, and the smoothness term."""

import numpy as np
import torch

from utils.images import grid, read_picture, to_uint8, total_variation, write_picture, write_video


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


def test_a_grid_has_a_row_for_each_batch_and_white_gaps():
    picture = grid([torch.zeros(3, 3, 4, 5), torch.full((1, 1, 4, 5), 0.5)])
    assert picture.shape == (1, 3, 8, 15)
    assert (
        picture[0, :, :4].eq(0).all()
        and picture[0, :, 4:, :5].eq(0.5).all()
        and picture[0, :, 4:, 5:].eq(1).all()
    )


def test_a_video_is_h264_with_every_frame(tmp_path):
    import imageio.v2 as imageio

    frames = [np.full((33, 48, 3), value, dtype=np.uint8) for value in (0, 100, 200)]
    write_video(tmp_path / "a.mp4", frames, fps=10)
    with imageio.get_reader(tmp_path / "a.mp4") as reader:
        meta = reader.get_meta_data()
        read = [frame.mean() for frame in reader]
    assert meta["codec"] == "h264" and meta["size"] == (48, 32)
    np.testing.assert_allclose(read, [0, 100, 200], atol=3)
