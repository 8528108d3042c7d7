from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import DataError
from rqtoolkit.functional.rate_distortion import distortion, relative_error
from rqtoolkit.semantic_ids.embedding_figures import VectorHashes, embedding_figures
from rqtoolkit.semantic_ids.figures import prefix_groups


def figures_of(x, table, *, chunk=7, order=None, **options):
    rows = np.arange(len(x)) if order is None else order
    parts = ((x[rows[s : s + chunk]], rows[s : s + chunk]) for s in range(0, len(x), chunk))
    return embedding_figures(parts, prefix_groups(table), x.shape[1], **options)


def cosine(a, b):
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / scale if scale else 0.0


@given(st.integers(0, 10_000), st.integers(2, 30))
def test_cohesion_agrees_with_every_pair(seed, items):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, 4)).astype(np.float32)
    x[rng.random(items) < 0.1] = 0
    codes = rng.integers(0, 3, (items, 2))
    found = figures_of(x, codes, order=rng.permutation(items))
    wide = x.astype(np.float64)
    for length in (1, 2):
        means = []
        for i in range(items):
            others = [
                cosine(wide[i], wide[j])
                for j in range(items)
                if j != i and (codes[i, :length] == codes[j, :length]).all()
            ]
            if others:
                means.append(np.mean(others))
        expected = np.mean(means) if means else None
        assert found.cohesion[length - 1] == pytest.approx(expected, abs=1e-9)
    pairs = [cosine(a, b) for a, b in combinations(wide, 2)]
    assert found.random_cosine == pytest.approx(np.mean(pairs), abs=1e-9)


def test_items_alone_have_no_cohesion():
    x = np.eye(3, dtype=np.float32)
    found = figures_of(x, np.arange(3)[:, None])
    assert found.cohesion == (None,)
    assert found.random_cosine == 0
    assert figures_of(x[:1], np.zeros((1, 1), np.int64)).random_cosine is None


def test_distortion_agrees_with_that_of_whole_arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 6)).astype(np.float32) + 3
    codes = rng.integers(0, 4, (50, 3))
    tables = rng.normal(size=(3, 4, 6)).astype(np.float32)
    added = np.arange(50) >= 40

    def decode(prefix):
        return sum(tables[level][prefix[:, level]] for level in range(prefix.shape[1]))

    found = figures_of(x, codes, codes=codes, added=added, decode=decode)
    for depth in (1, 2, 3):
        part = decode(codes[:, :depth])
        assert found.mse[depth - 1] == pytest.approx(distortion(x, part))
        assert found.relative_error[depth - 1] == pytest.approx(relative_error(x, part))
    assert found.mse_fitted == pytest.approx(distortion(x[:40], decode(codes[:40])))
    assert found.mse_added == pytest.approx(distortion(x[40:], decode(codes[40:])))
    without = figures_of(x, codes)
    assert (without.mse, without.mse_fitted, without.mse_added) == ((), None, None)


@given(st.integers(0, 10_000))
def test_duplicates_are_those_of_numpy(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (30, 3)).astype(np.float32)
    x[::2] *= -1  # negative zeros
    hashes = VectorHashes(30, 3)
    for rows in np.array_split(rng.permutation(30), 4):
        hashes.add(x[rows], rows)
    assert hashes.duplicates() == 30 - len(np.unique(x, axis=0))


def test_near_and_permuted_vectors_are_no_duplicates():
    x = np.array([[1, 2], [2, 1], [1, np.nextafter(np.float32(2), np.float32(3))], [0, 3]])
    hashes = VectorHashes(4, 2)
    hashes.add(x.astype(np.float32), np.arange(4))
    assert hashes.duplicates() == 0


def test_embeddings_with_gaps_are_refused():
    groups = prefix_groups(np.zeros((3, 1), np.int64))
    x = np.ones((2, 2), np.float32)
    with pytest.raises(DataError, match="none for 1 of 3"):
        embedding_figures([(x, np.arange(2))], groups, 2)
    with pytest.raises(DataError, match="NaN"):
        embedding_figures([(x * np.nan, np.arange(2))], groups, 2)
