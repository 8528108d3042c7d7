"""Ranks and metrics equal plain loops; the rules on ties, seen and cold items hold."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.recommend import Sequences, evaluate_next_item
from rqtoolkit.semantic_ids.recommend.ranks import Ranks, ranks_in_lists, ranks_in_scores

ITEMS = 6
HISTORY = st.lists(st.integers(0, ITEMS - 1), min_size=3, max_size=6)
# Few values, so that there are ties, and −inf for "never".
SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])


class Given:
    """Recommends by a table of scores a user, which it finds by the user's id."""

    def __init__(self, table):
        self.table = table

    def scores(self, histories):
        return self.table[histories.user_ids]


class GivenLists:
    """Recommends the first k of the given lists."""

    def __init__(self, lists):
        self.lists = lists

    def recommend(self, histories, k, *, mask_seen):
        del mask_seen
        return self.lists[histories.user_ids, :k]


def _metrics_by_loop(scores, target, seen, k):
    """Recall and NDCG averaged over every order of the tied items."""
    allowed = [i for i in range(len(scores)) if i not in seen and scores[i] > -math.inf]
    if target not in allowed:
        return 0.0, 0.0
    better = sum(scores[i] > scores[target] for i in allowed)
    tied = [i for i in allowed if scores[i] == scores[target]]
    recalls, gains = [], []
    for order in itertools.permutations(tied):
        rank = better + order.index(target) + 1
        recalls.append(float(rank <= k))
        gains.append(1 / math.log2(1 + rank) if rank <= k else 0.0)
    return np.mean(recalls), np.mean(gains)


@settings(max_examples=50)
@given(st.data(), st.booleans())
def test_metrics_equal_a_loop_over_all_orders_of_ties(data, mask_seen):
    lists = data.draw(st.lists(HISTORY, min_size=1, max_size=4))
    table = data.draw(arrays(np.float32, (len(lists), ITEMS), elements=SCORES))
    sequences = Sequences.from_lists(lists, item_ids=range(ITEMS))
    found = evaluate_next_item(Given(table), sequences, ks=(1, 3), mask_seen=mask_seen)
    for k in (1, 3):
        expected = [
            _metrics_by_loop(row, history[-1], set(history[:-1]) if mask_seen else set(), k)
            for row, history in zip(table, lists, strict=True)
        ]
        recall, ndcg = np.mean(expected, axis=0)
        assert found.all.recall[k] == pytest.approx(recall)
        assert found.all.ndcg[k] == pytest.approx(ndcg)


@settings(max_examples=50)
@given(st.data(), st.booleans())
def test_lists_and_scores_in_the_same_order_agree(data, mask_seen):
    lists = data.draw(st.lists(HISTORY, min_size=1, max_size=4))
    order = np.array([data.draw(st.permutations(range(ITEMS))) for _ in lists])
    table = np.empty(order.shape)
    np.put_along_axis(table, order, -np.arange(ITEMS, dtype=float)[None], axis=1)
    sequences = Sequences.from_lists(lists, item_ids=range(ITEMS))
    by_scores, by_lists = (
        evaluate_next_item(recommender, sequences, ks=(2, ITEMS), mask_seen=mask_seen)
        for recommender in (Given(table), GivenLists(order))
    )
    for users in ("all", "warm", "cold"):
        assert getattr(by_scores, users) == getattr(by_lists, users)


def test_ranks_by_hand():
    #                   item 0 and 2 tie at the top, 1 below, 3 never
    scores = np.array([[1.0, 0.0, 1.0, -np.inf]] * 4)
    ranks = ranks_in_scores(scores, np.array([0, 1, 2, 3]))
    assert ranks.better.tolist() == [0, 2, 0, -1]
    assert ranks.tied.tolist() == [2, 1, 2, 1]
    assert ranks.hits(1).tolist() == [0.5, 0, 0.5, 0]
    assert ranks.gains(3) == pytest.approx(
        [(1 + 1 / math.log2(3)) / 2, 0.5] * 2 * np.array([1, 1, 1, 0])
    )


def test_k_beyond_the_catalogue_finds_all():
    ranks = ranks_in_scores(np.zeros((1, 3)), np.array([1]))
    assert ranks.hits(10).tolist() == [1.0]


def test_a_constant_score_gets_its_share_and_no_more():
    sequences = Sequences.from_lists([[0, 1, 2]], item_ids=range(100))
    found = evaluate_next_item(Given(np.zeros((1, 100))), sequences, mask_seen=False)
    assert found.all.recall == {5: pytest.approx(0.05), 10: pytest.approx(0.1)}


def test_seen_items_are_struck_out_of_lists():
    seen = Sequences.from_lists([[0, 1, 1], []], item_ids=range(4))
    lists = np.array([[1, 2, 0, 3], [3, -1, -1, -1]])
    ranks = ranks_in_lists(lists, np.array([3, 0]), seen)
    assert ranks.better.tolist() == [1, -1]


def test_a_target_met_before_is_masked_too():
    sequences = Sequences.from_lists([[1, 0, 1]], item_ids=range(3))
    best = Given(np.array([[0.0, 1.0, 0.0]]))
    assert evaluate_next_item(best, sequences).all.recall[5] == 0
    assert evaluate_next_item(best, sequences, mask_seen=False).all.recall[5] == 1


def test_cold_targets_are_apart():
    # Item 3 is only ever a held-out item; item 1 is trained on.
    sequences = Sequences.from_lists([[0, 1, 2, 3], [1, 0, 2, 1]], item_ids=range(5))
    table = np.array([[0, 0, 0, 9, 0], [9, 8, 9, 9, 9.0]])
    found = evaluate_next_item(Given(table), sequences, ks=(1,), mask_seen=False)
    assert (found.cold.users, found.warm.users, found.all.users) == (1, 1, 2)
    assert (found.cold.recall[1], found.warm.recall[1], found.all.recall[1]) == (1, 0, 0.5)


def test_validation_looks_one_step_earlier():
    sequences = Sequences.from_lists([[0, 1, 2]], item_ids=range(3))
    table = Given(np.array([[0.0, 1.0, 0.0]]))
    found = evaluate_next_item(table, sequences, split="validation", ks=(1,))
    assert found.all.recall[1] == 1
    assert found.split == "validation"


def test_chunks_change_nothing_and_progress_ends():
    rng = np.random.default_rng(0)
    sequences = Sequences.from_lists(rng.integers(0, 50, (30, 5)), item_ids=range(50))
    recommender = Given(rng.normal(size=(30, 50)).astype(np.float32))
    calls = []
    small = evaluate_next_item(
        recommender, sequences, max_bytes=7 * 200, progress=lambda *call: calls.append(call)
    )
    assert small == evaluate_next_item(recommender, sequences)
    assert calls[-1] == ("evaluate", 30, 30)
    assert len(calls) == 5


def test_the_result_states_its_rules_and_is_json():
    sequences = Sequences.from_lists([[0, 1, 0]], item_ids=range(2))
    found = evaluate_next_item(Given(np.zeros((1, 2))), sequences, ks=(1,))
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert stored["mask_seen"] is True
    assert stored["ties"] == "average over random orders"
    assert stored["all"]["users"] == 1
    assert stored["cold"] == {"users": 0, "recall": {"1": None}, "ndcg": {"1": None}}
    assert math.isnan(found.cold.recall[1])


def test_both_methods_and_the_choice_between_them():
    class Both(Given, GivenLists):
        def __init__(self, table, lists):
            self.table, self.lists = table, lists

    sequences = Sequences.from_lists([[0, 1, 2]], item_ids=range(4))
    both = Both(np.array([[0, 0, 1.0, 0]]), np.array([[3, 2, 1, 0]]))
    recalls = [
        evaluate_next_item(both, sequences, ks=(1,), by=by).all.recall[1]
        for by in (None, "scores", "recommend")
    ]
    assert recalls == [0, 1, 0]


def test_bad_arguments_are_refused():
    sequences = Sequences.from_lists([[0, 1, 2]], item_ids=range(3))
    good = Given(np.zeros((1, 3)))
    for bad in ({"split": "train"}, {"ks": ()}, {"ks": (0,)}, {"by": "recommend"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            evaluate_next_item(good, sequences, **bad)
    with pytest.raises(ConfigError, match="must have scores"):
        evaluate_next_item(object(), sequences)
    pairs = Sequences.from_lists([[0, 1], [2]], item_ids=range(3))
    with pytest.raises(DataError, match="three interactions or more"):
        evaluate_next_item(good, pairs)
    with pytest.raises(ShapeError, match=r"\(1, 3\)"):
        evaluate_next_item(Given(np.zeros((1, 2))), sequences)
    with pytest.raises(DataError, match="1 NaN"):
        evaluate_next_item(Given(np.array([[0, np.nan, 0]])), sequences)
    with pytest.raises(ShapeError, match=r"\(1, k\)"):
        ranks_in_lists(np.zeros(3, int), np.array([0]))
    with pytest.raises(DataError, match="twice"):
        evaluate_next_item(GivenLists(np.array([[1, 1]])), sequences)


def test_ranks_can_be_taken_by_user():
    ranks = Ranks(np.array([0, 5]), np.array([1, 1]))
    assert ranks.take(np.array([False, True])).better.tolist() == [5]
