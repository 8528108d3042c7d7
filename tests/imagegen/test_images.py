"""Image sets, and the way to floats and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imagegen.images import ImageSet, to_float, to_uint8
from rqtoolkit.errors import DataError, ShapeError

IMAGES = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
)


def test_all_256_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float(levels)
    assert floats.dtype == torch.float32
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), levels)


@given(IMAGES)
def test_round_trip_keeps_every_image(images):
    floats = to_float(images)
    assert floats.shape == (len(images), images.shape[3], *images.shape[1:3])
    np.testing.assert_array_equal(to_uint8(floats), images)


def test_to_uint8_clips_and_rounds():
    # (0.003 + 1) * 127.5 = 127.88, and what lies outside [-1, 1] ends at black and white
    values = torch.tensor([-3.0, -1.0, 0.003, 1.0, 3.0]).view(1, 1, 1, 5)
    assert to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255]


def test_conversions_refuse_what_they_cannot_read():
    with pytest.raises(ShapeError, match=r"to_float: images must be \(N, H, W, C\)"):
        to_float(np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="must be uint8"):
        to_float(np.zeros((1, 4, 4, 1), np.float32))
    with pytest.raises(ShapeError, match="to_uint8"):
        to_uint8(torch.zeros(4, 4))


def test_set_knows_its_sizes():
    images = ImageSet(
        np.zeros((3, 4, 5, 3), np.uint8), np.array([0, 1, 1], np.int64), ("cat", "dog")
    )
    assert (len(images), images.resolution, images.channels) == (3, (4, 5), 3)
    assert images.num_classes == 2
    part = images.subset(np.array([2, 0]))
    assert part.labels.tolist() == [1, 0]
    assert ImageSet(images.images).num_classes is None


@pytest.mark.parametrize(
    ("images", "labels", "names", "error", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), None, None, ShapeError, "C 1 or 3"),
        (np.zeros((2, 4, 4, 2), np.uint8), None, None, ShapeError, "C 1 or 3"),
        (np.zeros((2, 4, 4, 1)), None, None, DataError, "must be uint8; got float64"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(3, np.int64), ("a",), ShapeError, "one for"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2), ("a",), DataError, "must be int64"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1]), ("a",), DataError, "every label"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, -1]), ("a",), DataError, "every label"),
        (np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 0]), None, DataError, "every label"),
    ],
)
def test_set_refuses_parts_that_do_not_fit(images, labels, names, error, message):
    with pytest.raises(error, match=message):
        ImageSet(images, labels, names)
