"""Precision, recall, density and coverage against plain loops; copies and duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.evaluate import neighbour_scores, neighbours
from imagegen.evaluate.neighbours import duplicate_share, nearest_distances, neighbour_radii
from rqtoolkit.errors import DataError, ShapeError

SEEDS = st.integers(0, 2**32 - 1)


def gaussian(seed, rows=60, dim=3):
    return np.random.default_rng(seed).normal(size=(rows, dim))


def plain_scores(real, samples, k):
    """The four definitions, one pair of points at a time."""

    def distance(a, b):
        return float(np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))))

    def radius(points, i):
        return sorted(distance(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    sample_radii = [radius(samples, j) for j in range(len(samples))]
    inside = [[distance(r, s) < real_radii[i] for s in samples] for i, r in enumerate(real)]
    reached = [
        any(distance(r, s) < radius for s, radius in zip(samples, sample_radii, strict=True))
        for r in real
    ]
    return {
        "precision": np.mean([any(row[j] for row in inside) for j in range(len(samples))]),
        "recall": np.mean(reached),
        "density": np.sum(inside) / (k * len(samples)),
        "coverage": np.mean([any(row) for row in inside]),
    }


def test_worked_by_hand():
    # On a line, k = 1. Real 0, 1, 5: radii 1, 1, 4. Samples 0.5, 2, 20: radii 1.5, 1.5, 18.
    # 0.5 lies in the balls of 0 and 1 (and of 5? 4.5 > 4, no); 2 in that of 5 (3 < 4) and not of 1
    # (open ball: 1 = 1); 20 in none. So precision 2/3, density 3/3, coverage 3/3.
    # Real 0 and 1 lie in the ball of 0.5; 5 only in that of 20 (15 < 18). So recall 3/3.
    scores = neighbour_scores(
        np.array([[0.0], [1.0], [5.0]]), np.array([[0.5], [2.0], [20.0]]), k=1
    )
    assert (scores.precision, scores.density) == pytest.approx((2 / 3, 1))
    assert (scores.recall, scores.coverage) == (1, 1)


@given(SEEDS, st.integers(1, 4), st.integers(5, 15), st.integers(5, 15))
def test_equals_the_plain_loop(seed, k, reals, samples):
    real, drawn = gaussian(seed, reals, 2), gaussian(seed + 1, samples, 2) * 1.5
    scores = neighbour_scores(real, drawn, k=k)
    for name, value in plain_scores(real, drawn, k).items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-12), name


def test_chunks_change_nothing(monkeypatch):
    real, samples = gaussian(0), gaussian(1, 45)
    whole = neighbour_scores(real, samples, k=5)
    monkeypatch.setattr(neighbours, "_CHUNK_BYTES", 8 * 45 * 7)
    assert neighbour_scores(real, samples, k=5) == whole
    assert neighbour_scores(real, samples, k=5, real_radii=neighbour_radii(real, k=5)) == whole


def test_copies_of_the_real_images_are_perfect():
    real = gaussian(0)
    scores = neighbour_scores(real, real[::-1].copy(), k=5)
    # an image lies in its own ball and in k - 1 others on average: the k-th lies on the border
    assert (scores.precision, scores.recall, scores.coverage) == (1, 1, 1)
    assert scores.density == pytest.approx(1, abs=1e-12)


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    real = gaussian(0, 300)
    few = np.repeat(real[:6], 50, axis=0)
    scores = neighbour_scores(real, few, k=5)
    assert scores.precision == 1
    assert scores.recall == 0  # balls around copies of one point have no extent
    assert scores.coverage < 0.15


def test_a_missing_class_is_missing_from_coverage():
    centres = 50 * np.arange(10)[:, None]
    real = np.concatenate([gaussian(c, 30, 1) + centres[c] for c in range(10)])
    samples = np.concatenate([gaussian(c + 100, 43, 1) + centres[c] for c in range(7)])
    scores = neighbour_scores(real, samples, k=5)
    assert scores.precision > 0.95
    assert 0.6 < scores.coverage <= 0.7


def test_samples_from_elsewhere_score_nothing():
    scores = neighbour_scores(gaussian(0), gaussian(1) + 1000, k=5)
    assert (scores.precision, scores.recall, scores.density, scores.coverage) == (0, 0, 0, 0)


@given(SEEDS, st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_shift_and_order_do_not_matter(seed, factor, shift):
    generator = np.random.default_rng(seed)
    # on a grid of powers of two scaling and shifting are exact
    real, samples = generator.integers(0, 64, (2, 40, 2)).astype(float)
    before = neighbour_scores(real, samples, k=3)
    factor, shift = 2.0 ** np.round(np.log2(factor)), np.round(shift)
    order = generator.permutation(40)
    assert neighbour_scores(factor * real, factor * samples, k=3) == before
    assert neighbour_scores(real + shift, samples + shift, k=3) == before
    assert neighbour_scores(real[order], samples[order[::-1]], k=3) == before


def test_refusals():
    with pytest.raises(DataError, match=r"k=5 must be .* got 5 rows"):
        neighbour_radii(gaussian(0, 5), k=5)
    with pytest.raises(DataError, match="k=0"):
        neighbour_radii(gaussian(0), k=0)
    with pytest.raises(DataError, match="finite"):
        neighbour_radii(np.full((9, 2), np.inf), k=2)
    with pytest.raises(ShapeError, match="features must be"):
        neighbour_radii(np.zeros(9), k=2)
    with pytest.raises(ShapeError, match="equal width"):
        neighbour_scores(np.zeros((9, 2)), np.zeros((9, 3)), k=2)
    with pytest.raises(ShapeError, match="one size"):
        nearest_distances(np.zeros((1, 2, 2, 1), np.uint8), np.zeros((1, 3, 3, 1), np.uint8))


@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_nearest_distances_equal_the_plain_loop(seed, count, others):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 2, 3), np.uint8)
    among = generator.integers(0, 256, (others, 3, 2, 3), np.uint8)
    expected = [
        min(np.sqrt(np.square(a.astype(int) - b.astype(int)).mean()) for b in among) for a in images
    ]
    np.testing.assert_allclose(nearest_distances(images, among), expected, rtol=1e-12)


def test_nearest_distances_are_exactly_zero_for_copies_only(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 1), np.uint8)
    changed = images.copy()
    changed[:, 3, 4, 0] ^= 1
    monkeypatch.setattr(neighbours, "_CHUNK_BYTES", 8 * 256 * 7)
    assert (nearest_distances(images[::3], images) == 0).all()
    np.testing.assert_allclose(nearest_distances(changed, images), 1 / 16, rtol=1e-12)


def test_duplicate_share():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    assert duplicate_share(images) == 0
    assert duplicate_share(images[[0, 0, 1, 1]]) == 0.5
    assert duplicate_share(images[[2] * 4]) == 0.75
