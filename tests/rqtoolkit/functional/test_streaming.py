import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.rate_distortion import (
    distortion,
    entropy_per_depth,
    perplexity,
    relative_error,
    usage,
)
from rqtoolkit.functional.streaming import RateDistortionSums, covariance


def example(rows: int, seed: int):
    generator = np.random.default_rng(seed)
    x = generator.normal(50.0, 1.0, (rows, 3)).astype(np.float32)
    codes = generator.integers(0, [4, 2], (rows, 2))
    sums = (x[:, None] + generator.normal(size=(rows, 2, 3))).astype(np.float32)
    return x, codes, sums


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1000))
def test_chunks_equal_the_whole(lengths, seed):
    x, codes, sums = example(sum(lengths), seed)
    ends = np.cumsum(lengths)
    parts = [
        RateDistortionSums.of(x[a:b], codes[a:b], sums[a:b], [4, 2])
        for a, b in zip([0, *ends[:-1]], ends, strict=True)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert total.rows == len(x)
    assert total.usage == usage(codes, [4, 2])
    assert total.entropy == entropy_per_depth(codes, [4, 2])
    assert total.perplexity == perplexity(codes, [4, 2])
    for level in range(2):
        assert total.mse[level] == pytest.approx(distortion(x, sums[:, level]))
        if len(x) > 1:
            expected = relative_error(x, sums[:, level])
            assert total.relative_error[level] == pytest.approx(expected, rel=1e-6)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 1000))
def test_covariance_against_numpy(lengths, seed):
    x = np.random.default_rng(seed).normal(1e3, 1.0, (sum(lengths), 4)).astype(np.float32)
    found = covariance(np.split(x, np.cumsum(lengths)[:-1]))
    expected = np.cov(x.astype(np.float64), rowvar=False, bias=True)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_bad_input():
    x, codes, sums = example(4, 0)
    with pytest.raises(ShapeError, match="partial_sums"):
        RateDistortionSums.of(x, codes, sums[:2], [4, 2])
    with pytest.raises(DataError, match="no vector"):
        covariance([])
