import numpy as np
import pytest
from scipy import sparse

from rqtoolkit.semantic_ids.recommend.collaborative import (
    _company,
    _left_singular,
    code_means,
    company_vectors,
    start_vectors,
)
from rqtoolkit.semantic_ids.recommend.sequences import Sequences


@pytest.fixture
def sequences():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 12, rng.integers(1, 9)) for _ in range(30)]
    return Sequences.from_lists(lists, item_ids=np.arange(15))


def test_company_counts_neighbours_both_ways_by_distance(sequences):
    counts = np.zeros((15, 15))
    for user in range(len(sequences)):
        items = sequences[user]
        for i, first in enumerate(items):
            for j in range(i + 1, min(i + 4, len(items))):
                counts[first, items[j]] += 0.5 ** (j - i - 1)
                counts[items[j], first] += 0.5 ** (j - i - 1)
    np.testing.assert_allclose(_company(sequences, 3, 0.5).toarray(), counts)


def test_items_of_one_group_have_like_vectors():
    rng = np.random.default_rng(0)
    lists = [rng.permutation(10)[:6] + 10 * rng.integers(0, 2) for _ in range(200)]
    vectors = company_vectors(Sequences.from_lists(lists, item_ids=np.arange(21)), 4)
    np.testing.assert_array_equal(vectors[20], 0)  # never met
    unit = vectors[:20] / np.linalg.norm(vectors[:20], axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[:10, :10].min() > cosines[:10, 10:].max()


def test_company_vectors_are_the_same_every_time(sequences):
    first, second = (company_vectors(sequences, 4) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (15, 4)


def test_alike_items_have_the_same_vectors_every_time():
    walks = [(7 * user + np.arange(5)) % 200 for user in range(100)]
    sequences = Sequences.from_lists(walks, item_ids=np.arange(200))
    first, second = (company_vectors(sequences, 16) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_left_singular_vectors_are_those_of_the_whole_decomposition():
    rng = np.random.default_rng(0)
    matrix = sparse.random_array((30, 30), density=0.3, rng=rng).tocsr()
    matrix = sparse.csr_array(matrix + matrix.T)
    left, values = _left_singular(matrix, 5)
    u, s, _ = np.linalg.svd(matrix.toarray())
    np.testing.assert_allclose(values[::-1], s[:5])
    np.testing.assert_allclose(np.abs((left[:, ::-1] * u[:, :5]).sum(0)), 1)


def test_more_dimensions_than_items_are_zero():
    sequences = Sequences.from_lists([[0, 1, 2], [2, 1]], item_ids=np.arange(3))
    vectors = company_vectors(sequences, 8)
    assert vectors.shape == (3, 8)
    np.testing.assert_array_equal(vectors[:, 2:], 0)


def test_means_over_codes_approach_ridge_regression():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, (3, 4), (50, 2))
    vectors = rng.standard_normal((50, 2)).astype(np.float32)
    design = np.concatenate([np.eye(3)[codes[:, 0]], np.eye(4)[codes[:, 1]]], 1)
    exact = np.linalg.solve(design.T @ design + 2 * np.eye(7), design.T @ vectors)
    np.testing.assert_allclose(np.concatenate(code_means(vectors, codes, (3, 4))), exact, atol=2e-2)


def test_start_vectors_add_up_to_the_company_vectors(sequences):
    codes = np.stack([np.arange(12) // 4, np.arange(12) % 4], 1)
    known = np.append(np.arange(12), [-1, -1, -1])
    tables, rest = start_vectors(sequences, known, codes, (3, 4), 5)
    company = company_vectors(sequences, 5)[:12]
    together = tables[0][codes[:, 0]] + tables[1][codes[:, 1]] + rest
    np.testing.assert_allclose(together, 0.05 * company, atol=1e-6)
