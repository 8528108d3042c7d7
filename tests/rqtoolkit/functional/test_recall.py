"""Exact neighbours against brute force in float64, and recall against counting by hand."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.recall import (
    NeighbourSearch,
    RecallMeter,
    exact_neighbours,
    recall_at,
)


def brute_force(queries, base, k, metric):
    """All scores in float64, sorted by (score, row)."""
    q, y = queries.astype(np.float64), base.astype(np.float64)
    scores = -(q @ y.T) if metric == "ip" else np.square(q[:, None] - y).sum(axis=2)
    return np.argsort(scores, axis=1, kind="stable")[:, :k], np.sort(scores, axis=1)[:, :k]


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_equals_brute_force(metric, scale, shift):
    rng = np.random.default_rng(0)
    queries = ((rng.normal(size=(17, 9)) + shift) * scale).astype(np.float32)
    base = ((rng.normal(size=(300, 9)) + shift) * scale).astype(np.float32)
    search = NeighbourSearch(queries, 12, metric=metric)
    search.add(base)
    rows, scores = brute_force(queries, base, 12, metric)
    assert (search.indices == rows).all()
    scores = -scores if metric == "ip" else scores
    np.testing.assert_allclose(search.scores, scores, rtol=1e-12)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 60),
    dim=st.integers(1, 8),
    spread=st.integers(1, 6),
    metric=st.sampled_from(["l2", "ip"]),
    data=st.data(),
)
def test_ties_go_to_the_earlier_row(seed, rows, dim, spread, metric, data):
    # Small integers make exact ties, which float64 brute force sees as such too.
    rng = np.random.default_rng(seed)
    queries = rng.integers(0, spread, (5, dim)).astype(np.float32)
    base = rng.integers(0, spread, (rows, dim)).astype(np.float32)
    k = data.draw(st.integers(1, rows))
    found = exact_neighbours(queries, base, k, metric=metric)
    assert (found == brute_force(queries, base, k, metric)[0]).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_neither_chunks_nor_bytes_nor_threads_change_the_result(metric):
    rng = np.random.default_rng(1)
    queries, base = rng.normal(size=(1030, 5)), rng.normal(size=(70, 5))
    base[40:] = base[:30]  # duplicates on both sides of every seam
    whole = exact_neighbours(queries, base, 20, metric=metric)
    pieces = (base[start : start + 7] for start in range(0, 70, 7))
    small = exact_neighbours(queries, pieces, 20, metric=metric, max_bytes=5000, threads=2)
    assert (whole == small).all()


@pytest.mark.parametrize(("count", "dim"), [(1, 64), (1500, 3)])
def test_memory_at_work_stays_within_the_budget(count, dim):
    base = np.ones((30_000, dim))
    exact_neighbours(np.ones((count, dim)), base[:9], 2)  # compiled before it is measured
    tracemalloc.start()
    try:
        exact_neighbours(np.ones((count, dim)), base, 2, max_bytes=500_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Beside it queries in float64, float32 and centred, and the results.
    assert peak < 500_000 + count * (24 * dim + 50) + 100_000


def test_threads_are_restored():
    torch.set_num_threads(2)
    try:
        exact_neighbours(np.ones((3, 2)), np.ones((3, 2)), 1, threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_recall_by_hand():
    exact = np.array([[4, 7, 1], [2, 0, 5]])
    found = np.array([[7, 4, 9], [2, 5, -1]])
    recall = recall_at(exact, found, [1, 2, 3])
    # First query: its nearest, 4, comes second. Second query: first.
    assert recall.one_recall_at == {1: 0.5, 2: 1.0, 3: 1.0}
    # Overlaps: of one 0 and 1; of two 2 and 1; of three 2 and 2.
    assert recall.k_recall_at == pytest.approx({1: 0.5, 2: 0.75, 3: 4 / 6})


def test_meter_is_the_recall_of_both_searches():
    rng = np.random.default_rng(2)
    queries, base = rng.normal(size=(20, 6)), rng.normal(size=(200, 6))
    coarse = np.round(base)
    meter = RecallMeter(queries, ks=(1, 5))
    for rows in (slice(0, 150), slice(150, 200)):
        meter.add(base[rows], coarse[rows])
    for metric, recall in meter.result().items():
        exact = exact_neighbours(queries, base, 5, metric=metric)
        found = exact_neighbours(queries, coarse, 5, metric=metric)
        assert recall == recall_at(exact, found, (1, 5))
        assert 0 < recall.one_recall_at[1] <= recall.one_recall_at[5] <= 1


def test_exact_search_recalls_everything():
    rng = np.random.default_rng(3)
    queries, base = rng.normal(size=(20, 6)), rng.normal(size=(200, 6))
    meter = RecallMeter(queries, ks=(1, 10), metrics=["l2"])
    meter.add(base, base)
    assert meter.result()["l2"].k_recall_at == {1: 1.0, 10: 1.0}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: exact_neighbours(x, x, 5), DataError, "k=5 needs"),
        (lambda x: exact_neighbours(x, x, 0), ConfigError, "k=0"),
        (lambda x: exact_neighbours(x, x, 1, metric="cosine"), ConfigError, "'l2' or 'ip'"),
        (lambda x: exact_neighbours(x, x[:, :1], 1), ShapeError, "as the queries"),
        (lambda x: exact_neighbours(x * np.nan, x, 1), DataError, "queries has NaN"),
        (lambda x: exact_neighbours(x, x * 1e30, 1), DataError, "base has NaN"),
        (lambda _: recall_at(np.ones((2, 3)), np.ones((2, 2)), [3]), ShapeError, "k=3"),
        (lambda _: recall_at(np.ones((2, 3)), np.ones((1, 3)), [3]), ShapeError, "exact and found"),
        (lambda x: RecallMeter(x, ks=()), ConfigError, "ks"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call(np.ones((4, 2)))
