import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.ngrams import ngram_sizes, ngrams, prefix_ngrams


class TestPrefixes:
    def test_by_hand(self):
        # (2), (2, 1) = 2 * 4 + 1, (2, 1, 4) = 9 * 5 + 4
        assert prefix_ngrams([[2, 1, 4]], (3, 4, 5)).tolist() == [[2, 9, 49]]
        assert prefix_ngrams([[2, 1, 4]], (3, 4, 5), 2).tolist() == [[2, 9]]
        assert ngram_sizes((3, 4, 5)) == (3, 12, 60)

    def test_sizes_of_numpy_do_not_overflow(self):
        sizes = np.array([2**30] * 3, np.int32)
        with pytest.raises(ConfigError, match=r"3 codes of sizes .* more than 63 bits"):
            ngram_sizes(sizes)
        with pytest.raises(ConfigError, match="more than 63 bits"):
            prefix_ngrams([[1, 2, 3]], sizes)

    @settings(max_examples=30)
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    def test_exact_numbers_are_a_bijection(self, sizes):
        codes = np.array(list(itertools.product(*map(range, sizes))))
        numbers = prefix_ngrams(codes, sizes)
        for column, rows in enumerate(ngram_sizes(sizes)):
            assert np.unique(numbers[:, column]).tolist() == list(range(rows))
            prefixes = np.unique(codes[:, : column + 1], axis=0, return_inverse=True)[1]
            pairs = set(zip(numbers[:, column].tolist(), prefixes.ravel().tolist(), strict=True))
            assert len(pairs) == rows

    def test_only_what_does_not_fit_is_hashed(self):
        codes = np.random.default_rng(0).integers(256, size=(500, 3))
        exact = prefix_ngrams(codes, (256,) * 3)
        hashed = prefix_ngrams(codes, (256,) * 3, table_size=70_000)
        assert np.array_equal(hashed[:, :2], exact[:, :2])
        assert hashed[:, 2].max() < 70_000
        assert ngram_sizes((256,) * 3, table_size=70_000) == (256, 65_536, 70_000)
        assert len(np.unique(hashed[:, 2])) > 480

    def test_hash_is_even_and_stays(self):
        codes = np.array(list(itertools.product(range(64), range(64), range(8))))
        hashed = prefix_ngrams(codes, (64, 64, 8), table_size=101)[:, 2]
        assert chisquare(np.bincount(hashed, minlength=101)).pvalue > 0.01
        # Stored models depend on these numbers.
        assert prefix_ngrams([[1, 2, 3], [0, 0, 0]], (64, 64, 8), table_size=50)[:, 2].tolist() == [
            47,
            43,
        ]

    def test_seed_and_column_change_the_hash(self):
        codes = np.random.default_rng(0).integers(100, size=(200, 2))
        first, second = (
            prefix_ngrams(codes, (100, 100), table_size=90, seed=seed) for seed in (0, 1)
        )
        assert (first != second).mean() > 0.9
        assert (ngrams(codes[:, [0, 0]], (100, 100), 1, table_size=90) == 0).mean() < 0.1

    def test_what_does_not_fit_int64(self):
        with pytest.raises(ConfigError, match="table_size"):
            prefix_ngrams(np.zeros((1, 8), int), (2048,) * 8)
        assert prefix_ngrams(np.zeros((1, 8), int), (2048,) * 8, 5).shape == (1, 5)
        largest = prefix_ngrams(np.full((1, 7), 511), (512,) * 7)[0, -1]
        assert largest == 2**63 - 1
        assert prefix_ngrams(np.zeros((1, 8), int), (2048,) * 8, table_size=1000).max() < 1000


class TestRuns:
    def test_by_hand(self):
        codes = [[1, 2, 3, 0]]
        assert ngrams(codes, (4,) * 4, 2).tolist() == [[6, 12]]
        assert ngrams(codes, (4,) * 4, 2, overlapping=True).tolist() == [[6, 11, 12]]
        assert ngrams(codes, (4,) * 4, 1).tolist() == codes
        assert ngrams(codes, (4,) * 4, 3).tolist() == [[1 * 16 + 2 * 4 + 3, 0]]

    def test_sizes(self):
        assert ngram_sizes((4, 3, 2, 5), 2, runs=True) == (12, 10)
        assert ngram_sizes((4, 3, 2, 5), 2, runs=True, overlapping=True) == (12, 6, 10)
        assert ngram_sizes((4, 3, 2, 5), 3, runs=True, table_size=7) == (7, 5)


class TestRefusals:
    def test_arguments(self):
        codes = [[0, 1]]
        with pytest.raises(ConfigError, match="n=3"):
            prefix_ngrams(codes, (2, 2), 3)
        with pytest.raises(ConfigError, match="n=0"):
            ngrams(codes, (2, 2), 0)
        with pytest.raises(ConfigError, match="table_size=0"):
            prefix_ngrams(codes, (2, 2), table_size=0)
        with pytest.raises(DataError, match="codebook_size"):
            prefix_ngrams(codes, (2, 1))
        with pytest.raises(ShapeError, match="transposed"):
            prefix_ngrams(np.zeros((2, 9), int), (2, 2))

    def test_nothing(self):
        assert prefix_ngrams(np.zeros((0, 3), int), (4, 4, 4)).shape == (0, 3)
