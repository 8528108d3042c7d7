"""Grids and charts: what is in them, and that equal input gives equal bytes."""

import io

import numpy as np
import pytest
from PIL import Image

from imagegen.pictures import (
    DARK,
    LIGHT,
    draw_grid,
    draw_losses,
    draw_rate_distortion,
    draw_usage,
    save_grid,
)
from rqtoolkit.errors import ArtifactError, ShapeError

CHARTS = {
    "rate_distortion": lambda theme: draw_rate_distortion(
        [96, 192], [0.06, 0.02], bound=([1, 100, 192], [0.9, 0.02, 0.002]), theme=theme
    ),
    "rate_distortion_alone": lambda theme: draw_rate_distortion([96], [0.06], theme=theme),
    "usage": lambda theme: draw_usage([np.arange(8), np.arange(16) % 3, np.zeros(4)], theme=theme),
    "losses": lambda theme: draw_losses(
        {
            "nats": {"training": (range(99), np.geomspace(9, 0.1, 99))},
            "bits": {"held out": ([1, 50], [9, np.nan])},
        },
        theme=theme,
    ),
    "losses_below_zero": lambda theme: draw_losses(
        {"nats": {"training": ([0, 1], [1, -20])}}, theme=theme
    ),
    "losses_without_values": lambda theme: draw_losses(
        {"nats": {"training": ([], [])}}, theme=theme
    ),
}


def opened(png):
    return Image.open(io.BytesIO(png))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_becomes_a_square(channels):
    rows = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, channels), np.uint8)
    sheet = np.asarray(opened(draw_grid(rows, scale=6)))
    gap = 2
    assert sheet.shape == (2 * 24 + gap, 3 * 30 + 2 * gap, 4)
    for r, c, y, x in np.ndindex(2, 3, 4, 5):
        top, left = r * (24 + gap) + 6 * y, c * (30 + gap) + 6 * x
        square = sheet[top : top + 6, left : left + 6]
        assert (square[..., :3] == rows[r, c, y, x]).all()
        assert (square[..., 3] == 255).all()
    assert (sheet[24:26, :, 3] == 0).all()  # transparent between the rows


def test_titles_take_room_of_their_own():
    rows = np.zeros((2, 3, 8, 8, 1), np.uint8)
    bare = opened(draw_grid(rows)).size
    titled = np.asarray(
        opened(draw_grid(rows, row_titles=["cat", "ankle boot"], column_titles=["a", "b", "c"]))
    )
    left, top = titled.shape[1] - bare[0], titled.shape[0] - bare[1]
    assert left > 60
    assert top > 10
    assert titled[top:, :left, 3].any()
    assert titled[:top, left:, 3].any()
    assert (titled[top:, left:][..., 3] == np.asarray(opened(draw_grid(rows)))[..., 3]).all()


def test_rows_of_different_length():
    image = np.full((1, 8, 8, 1), 255, np.uint8)
    sheet = np.asarray(opened(draw_grid([image[[0, 0, 0]], image], scale=4)))
    assert sheet[-1, 0, 3] == 255
    assert sheet[-1, -1, 3] == 0


def test_large_images_are_not_made_smaller():
    assert opened(draw_grid(np.zeros((1, 1, 300, 200, 3), np.uint8))).size == (200, 300)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_equal_bytes_on_the_themes_ground(name, theme):
    png = CHARTS[name](theme)
    assert png == CHARTS[name](theme)
    image = opened(png)
    assert not image.info.keys() & {"Software", "Creation Time", "date:create"}
    assert "#{:02x}{:02x}{:02x}".format(*image.getpixel((0, 0))[:3]) == theme.ground
    assert len(image.convert("RGB").getcolors(1 << 20)) > 10  # something is drawn on it


def test_charts_leave_pyplot_alone():
    import matplotlib.pyplot as plt

    CHARTS["losses"](LIGHT)
    assert plt.get_fignums() == []


def test_grid_file_is_written_whole_and_equal(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 1), np.uint8)
    for name in ("a.png", "b.png"):
        save_grid(tmp_path / name, rows, row_titles=["x", "y"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    with pytest.raises(ArtifactError, match="no folder"):
        save_grid(tmp_path / "none" / "a.png", rows)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [np.zeros((0, 8, 8, 1), np.uint8)],
        np.zeros((2, 8, 8, 1), np.uint8),
        [np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 9, 8, 1), np.uint8)],
    ],
)
def test_grids_of_nothing_or_of_mixed_sizes_are_refused(rows):
    with pytest.raises(ShapeError, match="draw_grid: rows must be"):
        draw_grid(rows)
