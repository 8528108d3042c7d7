"""Fréchet distance against closed forms and scipy's matrix root."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from imagegen.evaluate import frechet_distance
from rqtoolkit.errors import DataError, ShapeError

SEEDS = st.integers(0, 2**32 - 1)


def features(seed, rows, dim):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, dim)) @ generator.normal(size=(dim, dim))


def test_worked_by_hand():
    # means 0 and 3, variances 2 and 8: 9 + 2 + 8 - 2 sqrt(16) = 11
    a = np.array([[-1.0], [1.0]])
    b = np.array([[1.0], [5.0]])
    assert frechet_distance(a, b) == pytest.approx(11, rel=1e-12)


def test_diagonal_gaussians_have_a_closed_form():
    # every sign of every axis once: means 0, covariances diagonal
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T
    a, b = signs * [1, 2, 3] + [0, 1, 0], signs * [2, 2, 0.5]
    scale = 8 / 7  # unbiased covariance of eight points
    expected = 1 + scale * ((1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0.5) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


@given(SEEDS, st.integers(1, 6))
def test_equals_scipys_matrix_root(seed, dim):
    a, b = features(seed, 40, dim), features(seed + 1, 30, dim) + 1
    roots = scipy.linalg.sqrtm(np.atleast_2d(np.cov(a.T)) @ np.atleast_2d(np.cov(b.T)))
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum()
        + a.var(0, ddof=1).sum()
        + b.var(0, ddof=1).sum()
        - 2 * np.trace(roots).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(SEEDS, st.integers(2, 5))
def test_symmetric_zero_for_copies_and_blind_to_order(seed, dim):
    a, b = features(seed, 20, dim), features(seed + 1, 20, dim)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) < 1e-9 * a.var(0).sum()
    assert frechet_distance(a[::-1], b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@given(SEEDS, st.floats(0.1, 10))
def test_scales_with_the_square(seed, factor):
    a, b = features(seed, 20, 3), features(seed + 1, 20, 3)
    expected = factor**2 * frechet_distance(a, b)
    assert frechet_distance(factor * a, factor * b) == pytest.approx(expected, rel=1e-9)


def test_fewer_rows_than_dimensions_and_constant_sets_are_stable():
    a, b = features(0, 5, 20), features(1, 5, 20)
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, a.copy()) < 1e-9 * a.var(0).sum()
    point = np.ones((7, 20))
    expected = a.var(0, ddof=1).sum() + np.square(a.mean(0) - 1).sum()
    assert frechet_distance(a, point) == pytest.approx(expected, rel=1e-12)


def test_float32_features_are_summed_in_float64():
    a = (features(0, 50, 4) + 1e3).astype(np.float32)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_refusals():
    with pytest.raises(ShapeError, match=r"got shapes \(4, 2\) and \(4, 3\)"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ShapeError, match="at least two rows"):
        frechet_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(DataError, match="finite"):
        frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))
