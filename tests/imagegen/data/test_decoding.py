"""From image files to squares: modes, damage, and where the square lies."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagegen.data.decoding import (
    choose_square,
    decode_image,
    fit_pixels,
    is_grey,
    set_channels,
)
from imagegen.data.folders import open_folder
from imagegen.data.stored import StoredImages, count_channels
from imagegen.images import UnreadableImageError
from rqtoolkit.errors import DataError


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(height=20, width=30, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_modes_become_grey_or_rgb():
    rgb = picture()
    expected = np.asarray(rgb)
    half = rgb.copy()
    half.putalpha(128)
    palette = rgb.quantize(16)
    clear = palette.copy()
    clear.info["transparency"] = bytes(range(0, 256, 16))
    frames = [picture(seed=seed) for seed in range(3)]
    for image, pixels in (
        (rgb, expected),
        (half, expected),  # transparency is dropped, not blended
        (palette, np.asarray(palette.convert("RGB"))),
        (rgb.convert("L"), np.asarray(rgb.convert("L"))[..., None]),
        (rgb.convert("1"), np.asarray(rgb.convert("1").convert("L"))[..., None]),
        (rgb.convert("LA"), np.asarray(rgb.convert("LA").convert("RGB"))),
    ):
        np.testing.assert_array_equal(decode_image(encoded(image), "it"), pixels)
    file = encoded(clear, transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(decode_image(file, "it"), np.asarray(palette.convert("RGB")))
    cmyk = decode_image(encoded(rgb.convert("CMYK"), "TIFF"), "it").astype(int)
    assert np.abs(cmyk - expected).max() <= 1
    animated = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_image(animated, "it"), np.asarray(frames[0]))


def test_sixteen_bits_become_eight():
    levels = np.array([[0, 255, 257], [32896, 65000, 65535]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(levels)), "it")
    assert decoded[..., 0].tolist() == [[0, 1, 1], [128, 253, 255]]  # round(level / 257)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "no image that Pillow knows"),
        (b"<html>not found</html>", "no image that Pillow knows"),
        (encoded(picture(), "JPEG")[:-200], "OSError: .*truncated"),
        (encoded(picture())[:400], "OSError|SyntaxError|ValueError"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point pixels"),
    ],
)
def test_damaged_files_are_named(file, reason):
    with pytest.raises(UnreadableImageError, match=rf"^that one \(.*({reason})"):
        decode_image(file, "that one")


@given(st.data())
def test_no_bytes_bring_the_decoder_down(data):
    whole = bytearray(encoded(picture(8, 8), data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))))
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=20)):
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnreadableImageError):
        assert decode_image(bytes(whole), "it").ndim == 3


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["center", "random", "zoom", "dalle"]),
    st.integers(1, 40),
    st.integers(0, 2**32),
)
def test_squares_lie_inside(height, width, crop, resolution, seed):
    generator = np.random.default_rng(seed)
    options = {"crop": crop, "resolution": resolution}
    top, left, side = choose_square(height, width, generator=generator, **options)
    assert 1 <= side <= min(height, width)
    assert 0 <= top <= height - side
    assert 0 <= left <= width - side
    shorter = min(height, width)
    if crop in ("center", "random"):
        assert side == shorter
    if crop == "zoom":
        assert side >= np.sqrt(0.75) * shorter - 0.5
    if crop == "dalle":
        assert side >= 8 / 9 * shorter - 1
        middle = (height - side) / 2 if height > width else (width - side) / 2
        place = top if height > width else left
        free = abs(height - width)
        assert abs(place - middle) <= free / 8 + (shorter - side) / 2 + 1.5
    central = choose_square(height, width, generator=None, **options)
    assert central == ((height - shorter) // 2, (width - shorter) // 2, shorter)


def test_squares_are_drawn_evenly():
    generator = np.random.default_rng(0)
    drawn = np.array(
        [
            choose_square(40, 44, crop="random", resolution=8, generator=generator)
            for _ in range(2000)
        ]
    )
    assert (drawn[:, 0] == 0).all()
    counts = np.bincount(drawn[:, 1], minlength=5)
    assert len(counts) == 5  # offsets 0 … 4
    assert np.abs(counts - 400).max() < 4 * np.sqrt(400)
    sides = [
        choose_square(100, 100, crop="zoom", resolution=8, generator=generator)[2]
        for _ in range(2000)
    ]
    assert (min(sides), max(sides)) == (87, 100)  # sqrt(.75) of 100 and all
    areas = np.square(sides) / 100**2
    assert abs(areas.mean() - 0.875) < 0.01  # uniform between .75 and 1


def test_resizing_agrees_with_pillow_and_padding_moves_pixels():
    image = picture(24, 24)
    pixels = np.asarray(image)
    ours = fit_pixels(pixels, 9, fit="resize", square=(0, 0, 24), name="it")
    pillow = np.asarray(image.resize((9, 9), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - pillow).max() <= 1  # Pillow rounds between its passes
    cut = fit_pixels(pixels, 9, fit="resize", square=(3, 4, 9), name="it")
    np.testing.assert_array_equal(cut, pixels[3:12, 4:13])
    padded = fit_pixels(pixels, 28, fit="pad", square=(0, 0, 24), name="it")
    np.testing.assert_array_equal(padded[2:26, 2:26], pixels)
    assert padded.sum() == pixels.sum()
    with pytest.raises(DataError, match="cannot make an image smaller; it is 24x24"):
        fit_pixels(pixels, 8, fit="pad", square=(0, 0, 24), name="it")


def test_channels():
    colour, grey = np.asarray(picture()), np.asarray(picture().convert("L"))[..., None]
    assert set_channels(colour, 3) is colour
    np.testing.assert_array_equal(set_channels(colour, 1), grey)
    np.testing.assert_array_equal(set_channels(grey, 3), np.repeat(grey, 3, -1))
    assert is_grey(encoded(picture().convert("L"))) is True
    assert is_grey(encoded(picture())) is False
    assert is_grey(b"no image") is None


def test_a_set_is_grey_if_all_of_it_is(tmp_path):
    for number in range(3):
        picture(8, 8, number).convert("L").save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"")
    records = open_folder(tmp_path).records
    assert count_channels(records, every=True) == 1
    picture(8, 8).save(tmp_path / "colour.png")
    records = open_folder(tmp_path).records
    assert count_channels(records, every=True) == 3
    grey = StoredImages(records, np.arange(5), 8, 1)
    assert grey.read(4).shape == (8, 8, 1)  # one that was not probed is made to fit
