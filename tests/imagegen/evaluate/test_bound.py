"""The Gaussian bound of images against water-filling worked by hand."""

import numpy as np
import pytest

from imagegen.evaluate import image_bound
from rqtoolkit.errors import ShapeError


def test_worked_by_hand():
    # Two pixels of standard deviation 40 and 10, uncorrelated: variances 1600 and 100.
    # 1 bit: all to the first (1600 / 4 = 400 > 100): 500 / 1700. 2 bits: 1600 / 16 = 100: 200.
    # 4 bits: one more bit for each: 25 + 25.
    levels = np.array([[60, 110], [60, 90], [140, 110], [140, 90]], np.uint8)
    bound = image_bound(levels.reshape(4, 1, 2, 1), [0, 1, 2, 4])
    assert bound == pytest.approx([1, 500 / 1700, 200 / 1700, 50 / 1700], rel=1e-6)


def test_fewer_images_than_pixels_give_the_same_as_more():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), np.uint8)
    rates = [0, 3, 17.5, 64]
    twice = np.concatenate([images, images])  # 18 > 16 rows: the other way to the eigenvalues
    assert image_bound(images, rates) == pytest.approx(image_bound(twice, rates), rel=1e-6)


def test_equal_images_leave_nothing_to_code():
    assert image_bound(np.full((3, 2, 2, 1), 9, np.uint8), [0, 8]) == [0, 0]


def test_one_image_has_no_covariance():
    with pytest.raises(ShapeError, match="at least two images"):
        image_bound(np.zeros((1, 2, 2, 1), np.uint8), [1])
