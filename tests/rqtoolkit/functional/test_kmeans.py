import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.datasets import load_digits

from rqtoolkit.errors import DataError, MissingDependencyError
from rqtoolkit.functional.kmeans import greedy_kmeans_plus_plus, kmeans


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().data).float()


def error(x, centroids):
    return float(torch.cdist(x.double(), centroids.double()).amin(1).square().sum())


def test_separated_clusters_are_found_exactly():
    corners = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    offsets = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    x = (corners[:, None] + offsets).reshape(-1, 2)
    found = kmeans(x, 4, seed=5)
    assert sorted(map(tuple, found.round().tolist())) == sorted(map(tuple, corners.tolist()))


def test_seeds_are_as_good_as_scikit_learns(digits):
    ours = [
        error(
            digits, greedy_kmeans_plus_plus(digits, 64, generator=torch.Generator().manual_seed(s))
        )
        for s in range(5)
    ]
    theirs = [
        error(digits, torch.from_numpy(kmeans_plusplus(digits.numpy(), 64, random_state=s)[0]))
        for s in range(5)
    ]
    uniform = [
        error(
            digits,
            digits[torch.randperm(len(digits), generator=torch.Generator().manual_seed(s))[:64]],
        )
        for s in range(5)
    ]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)
    assert np.mean(ours) < 0.97 * np.mean(uniform)


def test_seeds_are_rows_and_distinct_while_rows_are(digits):
    seeds = greedy_kmeans_plus_plus(digits, 1000, generator=torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in digits.tolist()}
    chosen = [tuple(row) for row in seeds.tolist()]
    assert set(chosen) <= rows
    assert len(set(chosen)) == 1000


def test_clusters_are_as_good_as_scikit_learns(digits):
    ours = error(digits, kmeans(digits, 32, iterations=50, starts=5, seed=0))
    theirs = KMeans(32, n_init=5, random_state=0).fit(digits.numpy()).inertia_
    assert ours == pytest.approx(theirs, rel=0.01)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_scaling_and_shifting_carry_over(seed, scale):
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed % 2**31))
    plain = kmeans(x, 5, seed=seed)
    moved = kmeans(x * scale + 3 * scale, 5, seed=seed)
    torch.testing.assert_close(
        error(x * scale + 3 * scale, moved), scale**2 * error(x, plain), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("make", [torch.zeros, torch.ones])
def test_constant_data_give_finite_centroids(make):
    centroids = kmeans(make(20, 4), 6)
    assert centroids.isfinite().all()
    torch.testing.assert_close(centroids, make(6, 4), atol=2e-3, rtol=0)


def test_seed_fixes_the_result(digits):
    assert torch.equal(kmeans(digits, 20, starts=2, seed=1), kmeans(digits, 20, starts=2, seed=1))
    assert not torch.equal(kmeans(digits, 20, seed=1), kmeans(digits, 20, seed=2))


def test_too_few_vectors_are_refused(digits):
    with pytest.raises(DataError, match=r"codebook_size=8.*got 7"):
        kmeans(digits[:7], 8)
    assert error(digits[:8], kmeans(digits[:8], 8)) == 0


def test_without_faiss_the_error_names_the_extras(monkeypatch, digits):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"rqtoolkit\[cpu\].*rqtoolkit\[gpu\]"):
        kmeans(digits, 4)
