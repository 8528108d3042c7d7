"""Baselines equal plain loops, and reach the figures known for Beauty."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.recommend import (
    Blend,
    ContentNeighbours,
    CoOccurrence,
    Markov,
    Popularity,
    Sequences,
    evaluate_next_item,
)

ITEMS = 5
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=6), min_size=1, max_size=5)


def _sequences(lists):
    return Sequences.from_lists(lists, item_ids=range(ITEMS))


def _counts_by_loop(lists, window, decay):
    counts = np.zeros((ITEMS, ITEMS))
    for history in lists:
        for i, earlier in enumerate(history):
            for step, later in enumerate(history[i + 1 : i + 1 + window]):
                counts[earlier, later] += decay**step
    return counts


@settings(max_examples=40)
@given(LISTS, LISTS, st.integers(1, 3), st.sampled_from([0.5, 1.0]))
def test_co_occurrence_equals_loops(train, histories, window, decay):
    counts = _counts_by_loop(train, window, decay)
    shares = counts / np.sqrt(np.maximum(counts.sum(1, keepdims=True), 1))
    expected = np.zeros((len(histories), ITEMS))
    for row, history in zip(expected, histories, strict=True):
        for step, item in enumerate(history[::-1][:window]):
            row += decay**step * shares[item]
    made = CoOccurrence(_sequences(train), window=window, decay=decay)
    np.testing.assert_allclose(made.scores(_sequences(histories)), expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=40)
@given(LISTS, LISTS)
def test_markov_and_popularity_equal_loops(train, histories):
    counts = _counts_by_loop(train, 1, 1)
    expected = [counts[history[-1]] if history else np.zeros(ITEMS) for history in histories]
    np.testing.assert_array_equal(Markov(_sequences(train)).scores(_sequences(histories)), expected)
    expected = [[sum(x.count(i) for x in train) for i in range(ITEMS)]] * len(histories)
    found = Popularity(_sequences(train)).scores(_sequences(histories))
    np.testing.assert_array_equal(found, expected)


def test_content_by_hand():
    # Lengths do not count; a zero vector is like nothing.
    content = ContentNeighbours([[2, 0], [0, 3], [1, 1], [0, 0], [-1, 0]], window=2, decay=0.5)
    found = content.scores(_sequences([[4, 1, 0], [3], []]))
    half = np.sqrt(0.5)
    expected = [[1, 0.5, 1.5 * half, 0, -1], [0] * 5, [0] * 5]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_blend_by_hand():
    content = ContentNeighbours(np.eye(ITEMS))
    popularity = Popularity(_sequences([[0, 0, 1]]))
    blend = Blend([popularity, content], [1, 0.5])
    np.testing.assert_allclose(
        blend.scores(_sequences([[2], []])), [[1, 0.5, 0.5, 0, 0], [1, 0.5, 0, 0, 0]]
    )


def test_bad_arguments_are_refused():
    train = _sequences([[0, 1]])
    with pytest.raises(ConfigError, match="window=0"):
        CoOccurrence(train, window=0)
    with pytest.raises(ConfigError, match="decay=0"):
        CoOccurrence(train, decay=0)
    with pytest.raises(ShapeError, match=r"\(3,\)"):
        ContentNeighbours([1, 2, 3])
    with pytest.raises(DataError, match="finite"):
        ContentNeighbours([[np.nan]])
    with pytest.raises(ShapeError, match="each of the 5 items; got 2"):
        ContentNeighbours(np.eye(2)).scores(train)
    with pytest.raises(ConfigError, match="weights"):
        Blend([Popularity(train)], [])


# Measured independently of this library, with ties in random order and seen items masked.
BEAUTY = {
    "popularity": (0.0076, 0.0042, 0.0115, 0.0055),
    "markov": (0.0507, 0.0388, 0.0617, 0.0424),
    "co-occurrence": (0.0609, 0.0439, 0.0825, 0.0509),
    "content": (0.0364, 0.0252, 0.0517, 0.0301),
    "blend": (0.0668, 0.0473, 0.0901, 0.0547),
}


@pytest.mark.slow
def test_figures_on_beauty(shared_data):
    sequences = Sequences.read(shared_data("data/recsys/beauty/sequences.txt"))
    content = ContentNeighbours(np.load(shared_data("data/recsys/beauty/item_embeddings.npy")))
    train = sequences.leave_one_out().train
    nearby = CoOccurrence(train)
    made = {
        "popularity": Popularity(train),
        "markov": Markov(train),
        "co-occurrence": nearby,
        "content": content,
        "blend": Blend([nearby, content], [1, 0.3]),
    }
    for name, (recall5, ndcg5, recall10, ndcg10) in BEAUTY.items():
        found = evaluate_next_item(made[name], sequences).all
        assert found.recall == pytest.approx({5: recall5, 10: recall10}, rel=0.03), name
        assert found.ndcg == pytest.approx({5: ndcg5, 10: ndcg10}, rel=0.03), name
