"""Kernel distance, Inception score, PSNR and SSIM against formulae written out or peers."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from imagegen.evaluate import inception_score, kernel_distance, psnr, ssim
from rqtoolkit.errors import DataError, ShapeError


def loop_discrepancy(x, y):
    """The unbiased estimate, pair by pair."""

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(a, b) for a, b in itertools.permutations(x, 2)) / (n * (n - 1))
    within_y = sum(kernel(a, b) for a, b in itertools.permutations(y, 2)) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


@given(st.integers(2, 3), st.integers(1, 5), st.integers(0, 99))
def test_kernel_distance_of_sets_without_subsets_equals_the_loop(rows, dim, seed):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(2, rows, dim))
    mean, spread = kernel_distance(x, y)
    assert mean == pytest.approx(loop_discrepancy(x, y))
    assert spread is None


def test_kernel_distance_of_small_sets_is_the_mean_over_halves():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 2))
    halves = list(itertools.combinations(range(6), 3))
    pairs = [loop_discrepancy(x[list(a)], y[list(b)]) for a in halves for b in halves]
    mean, spread = kernel_distance(x, y, subsets=4000)
    assert np.mean(pairs) == pytest.approx(loop_discrepancy(x, y))  # what unbiased means
    assert mean == pytest.approx(np.mean(pairs), abs=4 * np.std(pairs) / math.sqrt(4000))
    assert spread == pytest.approx(np.std(pairs), rel=0.1)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 400, 8))
    mean, spread = kernel_distance(x, y, subset_size=50)
    assert abs(mean) < 2 * spread / math.sqrt(8)  # 400 rows make 8 subsets apart
    moved, _ = kernel_distance(x, y + 0.5, subset_size=50)
    assert moved > 3 * spread
    assert kernel_distance(x, y, subset_size=50) == (mean, spread)
    assert kernel_distance(x, y, subset_size=50, seed=1) != (mean, spread)


def test_kernel_distance_refuses_what_it_cannot_compare():
    with pytest.raises(ShapeError, match="equal width"):
        kernel_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(DataError, match="finite"):
        kernel_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))


def test_inception_score_of_certain_and_even_classes_is_their_number():
    assert inception_score(np.eye(4).repeat(10, 0), splits=1) == (pytest.approx(4), 0)
    assert inception_score(np.full((40, 4), 0.25))[0] == pytest.approx(1)
    # all images of one class are certain, but not even
    assert inception_score(np.eye(4)[[2] * 40])[0] == pytest.approx(1)


def test_inception_score_by_hand():
    p = np.array([[0.9, 0.1], [0.3, 0.7]])
    mean = p.mean(0)
    divergence = sum(p[i, k] * math.log(p[i, k] / mean[k]) for i in range(2) for k in range(2)) / 2
    assert inception_score(p, splits=1)[0] == pytest.approx(math.exp(divergence))


def test_inception_score_does_not_mind_sorted_samples():
    sorted_rows = np.eye(10).repeat(200, 0) * 0.9 + 0.01
    assert inception_score(sorted_rows)[0] > 0.95 * inception_score(sorted_rows, splits=1)[0]


@pytest.mark.parametrize("p", [np.ones((20, 3)), np.full((20, 2), np.nan), -np.eye(20) + 2 / 20])
def test_inception_score_refuses_what_is_no_probability(p):
    with pytest.raises(DataError, match="sum to 1"):
        inception_score(p)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(11, 11), (16, 23)])
def test_psnr_and_ssim_equal_skimage(channels, size):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (5, *size, channels), np.uint8)
    images = (images // 4 + np.linspace(0, 190, size[1]).astype(np.uint8)[:, None]).astype(np.uint8)
    others = (images + generator.integers(0, 9, images.shape)).clip(0, 255).astype(np.uint8)
    for n, (a, b) in enumerate(zip(images, others, strict=True)):
        expected = structural_similarity(
            a,
            b,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        assert ssim(images, others)[n] == pytest.approx(expected, abs=1e-9)
        assert psnr(images, others)[n] == pytest.approx(peak_signal_noise_ratio(a, b))


def test_equal_images_are_at_the_top():
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    assert psnr(images, images).tolist() == [100, 100]
    np.testing.assert_allclose(ssim(images, images), 1)


def test_batches_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    images, others = generator.integers(0, 256, (2, 7, 12, 12, 1), np.uint8)
    whole = psnr(images, others), ssim(images, others)
    monkeypatch.setattr("imagegen.evaluate.pixels.BATCH", 3)
    np.testing.assert_array_equal(psnr(images, others), whole[0])
    np.testing.assert_allclose(ssim(images, others), whole[1], rtol=1e-12)


def test_small_or_unequal_images_are_refused():
    with pytest.raises(ShapeError, match="at least 11x11"):
        ssim(*np.zeros((2, 1, 8, 8, 1), np.uint8))
    with pytest.raises(ShapeError, match="of one shape"):
        psnr(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 1), np.uint8))
