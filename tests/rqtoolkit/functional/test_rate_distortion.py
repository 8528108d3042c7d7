import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.stats import entropy as scipy_entropy

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.rate_distortion import (
    bits_per_vector,
    code_counts,
    distortion,
    entropy_per_depth,
    gaussian_distortion,
    perplexity,
    prefix_entropy,
    relative_error,
    usage,
)

variances = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)
code_tables = st.integers(1, 4).flatmap(
    lambda depth: arrays(
        np.int64, st.tuples(st.integers(1, 60), st.just(depth)), elements=st.integers(0, 6)
    )
)


def test_by_hand():
    x = [[0.0, 0.0], [2.0, 0.0]]  # mean (1, 0), squared distances to it 1 + 1
    x_hat = [[0.0, 1.0], [2.0, 0.5]]  # squared errors 1 and 0.25
    assert distortion(x, x_hat) == 0.625
    assert relative_error(x, x_hat) == 0.625
    assert bits_per_vector([256, 256, 16]) == 20.0

    codes = [[0, 3], [0, 1], [1, 3], [1, 1]]
    assert entropy_per_depth(codes, [2, 4]) == [1.0, 1.0]
    assert perplexity(codes, [2, 4]) == [2.0, 2.0]
    assert usage(codes, [2, 4]) == [1.0, 0.5]
    assert prefix_entropy(codes) == [1.0, 2.0]


def test_torch_and_numpy_agree_in_any_shape_and_dtype():
    x = torch.randn(2, 3, 4)
    x_hat = x + 0.1 * torch.randn(2, 3, 4)
    expected = (x - x_hat).double().square().sum(-1).mean().item()
    assert distortion(x, x_hat) == pytest.approx(expected, rel=1e-6)
    assert distortion(x.numpy(), x_hat.numpy()) == distortion(x, x_hat)
    assert distortion(x.bfloat16(), x_hat.bfloat16()) == pytest.approx(expected, rel=0.1)
    codes = torch.randint(0, 5, (2, 3, 4))
    assert entropy_per_depth(codes, [5] * 4) == entropy_per_depth(
        codes.reshape(-1, 4).numpy(), [5] * 4
    )


def test_relative_error_of_the_mean_is_one_far_from_the_origin():
    x = np.random.default_rng(0).normal(1e4, 1e-1, (3000, 5)).astype(np.float32)
    x_hat = np.broadcast_to(x.mean(axis=0, dtype=np.float64), x.shape)
    assert relative_error(x, x_hat) == pytest.approx(1.0, rel=1e-9)


def test_constant_data():
    x = np.ones((3, 2))
    assert relative_error(x, x) == 0.0
    assert relative_error(x, x + 1) == math.inf


def test_chunks_do_not_change_the_sum(monkeypatch):
    x, x_hat = np.random.default_rng(0).normal(size=(2, 100, 3))
    whole = distortion(x, x_hat)
    monkeypatch.setattr("rqtoolkit.functional.rate_distortion._CHUNK_ELEMENTS", 10)
    assert distortion(x, x_hat) == pytest.approx(whole, rel=1e-12)


@given(code_tables)
def test_entropies_keep_their_bounds(codes):
    depth = codes.shape[1]
    own = entropy_per_depth(codes, [7] * depth)
    joint = prefix_entropy(codes)
    assert all(0 <= bits <= math.log2(7) + 1e-9 for bits in own)
    assert joint[0] == pytest.approx(own[0], abs=1e-9)
    for d in range(depth):
        assert joint[d] <= sum(own[: d + 1]) + 1e-9
        assert joint[d] <= math.log2(len(codes)) + 1e-9
        assert d == 0 or joint[d] >= joint[d - 1] - 1e-9
    for share, level, bits in zip(usage(codes, [7] * depth), codes.T, own, strict=True):
        assert share == len(set(level.tolist())) / 7
        assert 2**bits <= len(set(level.tolist())) + 1e-9


@given(code_tables)
def test_entropies_against_scipy(codes):
    depth = codes.shape[1]
    for level, bits in enumerate(entropy_per_depth(codes, [7] * depth)):
        counts = np.unique(codes[:, level], return_counts=True)[1]
        assert bits == pytest.approx(scipy_entropy(counts, base=2), abs=1e-9)
    for level, bits in enumerate(prefix_entropy(codes)):
        counts = np.unique(codes[:, : level + 1], axis=0, return_counts=True)[1]
        assert bits == pytest.approx(scipy_entropy(counts, base=2), abs=1e-9)


def test_prefix_entropy_of_large_codes_does_not_overflow():
    codes = np.random.default_rng(0).integers(0, 2**40, (50, 6))
    assert prefix_entropy(codes) == pytest.approx([math.log2(50)] * 6)


@given(variances.map(lambda v: v[:1] * len(v)), st.floats(0, 60))
def test_gaussian_bound_of_white_data(spectrum, bits):
    expected = sum(spectrum) * 2 ** (-2 * bits / len(spectrum))
    assert gaussian_distortion(spectrum, bits) == pytest.approx(expected, rel=1e-9)


def test_gaussian_bound_by_hand():
    # 1 bit for (16, 1): the level after it is 16 / 4 = 4, still above 1, so only the first gets it.
    assert gaussian_distortion([1.0, 16.0], 1.0) == pytest.approx(4 + 1)
    # 4 bits: 2 bring the first to 1, the other 2 are shared, a bit each: 1/4 + 1/4.
    assert gaussian_distortion([16.0, 1.0], 4.0) == pytest.approx(0.5)


@given(variances, st.floats(0, 40), st.floats(0, 40))
def test_gaussian_bound_falls_with_rate_and_scales(spectrum, bits, more):
    bound = gaussian_distortion(spectrum, bits)
    assert gaussian_distortion(spectrum, bits + more) <= bound * (1 + 1e-9)
    assert bound <= sum(spectrum) * (1 + 1e-9)
    assert gaussian_distortion([9 * v for v in spectrum], bits) == pytest.approx(9 * bound)
    assert gaussian_distortion([*spectrum, 0.0], bits) == pytest.approx(bound)
    assert gaussian_distortion(spectrum, 0.0) == pytest.approx(sum(spectrum))


@given(variances, st.floats(0.1, 30))
def test_gaussian_bound_against_bisection_of_the_water_level(spectrum, bits):
    v = np.array(spectrum)
    low, high = 0.0, v.max()
    for _ in range(200):
        level = (low + high) / 2
        rate = np.maximum(0, 0.5 * np.log2(v / level)).sum() if level > 0 else math.inf
        low, high = (level, high) if rate > bits else (low, level)
    assert gaussian_distortion(v, bits) == pytest.approx(np.minimum(high, v).sum(), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0.05, 20), min_size=2, max_size=5), st.floats(0.5, 8))
def test_gaussian_bound_against_numerical_optimum(spectrum, bits):
    """Share the rate among the components by a general optimizer that knows no water."""
    v = np.array(spectrum)
    best = minimize(
        lambda rates: (v * 2 ** (-2 * rates)).sum(),
        np.full(len(v), bits / len(v)),
        jac=lambda rates: -2 * math.log(2) * v * 2 ** (-2 * rates),
        bounds=[(0, None)] * len(v),
        constraints={"type": "eq", "fun": lambda rates: rates.sum() - bits},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert gaussian_distortion(v, bits) == pytest.approx(best.fun, rel=1e-4)


def test_gaussian_bound_takes_extreme_rates():
    assert gaussian_distortion([1.0, 2.0], 1e6) == 0.0
    assert gaussian_distortion([0.0, 0.0], 3.0) == 0.0
    assert gaussian_distortion(torch.tensor([4.0]), 1.0) == 1.0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: distortion(np.ones((2, 3)), np.ones((2, 4))), ShapeError, r"\(2, 4\)"),
        (lambda: distortion(np.ones((0, 3)), np.ones((0, 3))), ShapeError, "at least one"),
        (lambda: relative_error(np.ones((2, 3)), np.ones(3)), ShapeError, "one shape"),
        (lambda: code_counts([[0, 1]], [2]), ShapeError, "depth 2"),
        (lambda: usage([[0, 2]], [2, 2]), DataError, "level 1"),
        (lambda: usage([[0, -1]], [2, 2]), DataError, "from 0 on"),
        (lambda: usage([[0.0, 1.0]], [2, 2]), DataError, "float64"),
        (lambda: prefix_entropy(np.ones((0, 2), int)), ShapeError, "at least one"),
        (lambda: gaussian_distortion([], 1.0), ShapeError, "dim"),
        (lambda: gaussian_distortion([-1.0], 1.0), DataError, "not negative"),
        (lambda: gaussian_distortion([math.nan], 1.0), DataError, "finite"),
        (lambda: gaussian_distortion([1.0], -1.0), DataError, "bits=-1"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
