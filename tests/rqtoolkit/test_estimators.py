import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rqtoolkit import ResidualKMeans
from rqtoolkit.errors import DataError, ShapeError

# No check is declined. One passes by declaration: codes are integers whatever goes in, so the tag
# `preserves_dtype` is empty and check_transformer_preserve_dtypes has nothing to compare.


@parametrize_with_checks(
    [
        ResidualKMeans(depth=2, codebook_size=4),
        ResidualKMeans(depth=2, codebook_size=[4, 3], beam=3),
    ]
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return load_digits().data


def test_one_level_is_k_means(digits):
    ours = ResidualKMeans(1, 16, n_init=5, max_iter=50, rounds=0, random_state=0).fit(digits)
    theirs = KMeans(16, n_init=5, random_state=0).fit(digits)
    assert -ours.score(digits) * len(digits) <= 1.01 * theirs.inertia_


def test_seed_fixes_the_result_and_codes_decode(digits):
    first = ResidualKMeans(3, 32, random_state=3).fit(digits)
    second = ResidualKMeans(3, 32, random_state=3)
    codes = second.fit_transform(digits)
    np.testing.assert_array_equal(first.transform(digits), codes)
    np.testing.assert_array_equal(first.codebooks_, second.codebooks_)
    x_hat = second.inverse_transform(codes)
    error = ((digits - x_hat) ** 2).sum(axis=1).mean()
    assert -second.score(digits) == pytest.approx(error, rel=1e-5)
    coarse = ((digits - second.inverse_transform(codes[:, :1])) ** 2).sum(axis=1).mean()
    assert error < coarse


def test_works_in_a_pipeline_and_names_its_columns(digits):
    pipeline = make_pipeline(StandardScaler(), ResidualKMeans(2, 8, random_state=0))
    frame = pipeline.set_output(transform="pandas").fit_transform(digits)
    assert list(frame.columns) == ["residualkmeans0", "residualkmeans1"]
    assert frame.shape == (len(digits), 2)


def test_refuses_too_few_rows_and_wrong_codes(digits):
    with pytest.raises(DataError, match=r"codebook_size=64.*n_samples=10"):
        ResidualKMeans(2, 64).fit(digits[:10])
    fitted = ResidualKMeans(2, 8, random_state=0).fit(digits)
    with pytest.raises(DataError, match="integers"):
        fitted.inverse_transform(np.zeros((3, 2)))
    with pytest.raises(DataError, match="codes from 0 to 8"):
        fitted.inverse_transform(np.array([[0, 8]]))
    with pytest.raises(ShapeError, match="depth 3"):
        fitted.inverse_transform(np.zeros((3, 3), dtype=int))
