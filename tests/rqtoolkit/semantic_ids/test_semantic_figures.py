import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.semantic_ids.figures import (
    duplicate_rate,
    gini,
    level_figures,
    prefix_figures,
    prefix_groups,
    shared_rate,
)
from rqtoolkit.semantic_ids.purity import group_figures, purity

CODES = np.array([[0, 0], [0, 0], [0, 1], [3, 1], [3, 1], [3, 1], [1, 2]])
codes = st.integers(1, 4).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=40
    )
)


def test_a_case_counted_by_hand():
    first, second = prefix_figures(prefix_groups(CODES))
    assert (first.distinct, first.largest) == (3, 3)
    assert first.duplicate_rate == pytest.approx(4 / 7)
    assert first.shared_rate == pytest.approx(6 / 7)
    assert (second.distinct, second.largest) == (4, 3)
    assert second.duplicate_rate == pytest.approx(3 / 7)
    assert second.shared_rate == pytest.approx(5 / 7)
    assert [(b.smallest, b.largest, b.buckets, b.items) for b in second.buckets] == [
        (1, 1, 2, 2),
        (2, 2, 1, 2),
        (3, 4, 1, 3),
    ]
    level, _ = level_figures(CODES, [4, 5])
    assert (level.codebook_size, level.used, level.dead) == (4, 3, 1)
    assert level.counts.tolist() == [3, 1, 0, 3]
    assert level.perplexity == pytest.approx((3 / 7) ** (-6 / 7) * (1 / 7) ** (-1 / 7))


@given(codes)
def test_prefixes_agree_with_sets_of_tuples(rows):
    groups = prefix_groups(rows)
    for length, (group, figures) in enumerate(
        zip(groups, prefix_figures(groups), strict=True), start=1
    ):
        prefixes = [tuple(row[:length]) for row in rows]
        assert [[a == b for b in group] for a in group] == [
            [a == b for b in prefixes] for a in prefixes
        ]
        assert figures.distinct == len(set(prefixes)) == group.max() + 1
        assert figures.duplicate_rate == pytest.approx(1 - len(set(prefixes)) / len(rows))
        crowded = sum(prefixes.count(prefix) > 1 for prefix in prefixes)
        assert figures.shared_rate == pytest.approx(crowded / len(rows))
        assert figures.largest == max(map(prefixes.count, prefixes))
        assert sum(part.items for part in figures.buckets) == len(rows)
        assert sum(part.buckets for part in figures.buckets) == figures.distinct


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30))
def test_gini_is_half_the_relative_mean_difference(values):
    sizes = np.array(values)
    pairs = np.abs(sizes[:, None] - sizes).mean()
    assert gini(sizes) == pytest.approx(pairs / (2 * sizes.mean()), abs=1e-12)


def test_gini_of_one_that_has_all():
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)


def test_distinct_ids_have_no_collisions():
    sizes = np.ones(9, np.int64)
    assert duplicate_rate(sizes) == shared_rate(sizes) == gini(sizes) == 0


@pytest.mark.parametrize("shape", [(0, 3), (4, 0), (5,)])
def test_codes_of_no_use_are_refused(shape):
    with pytest.raises(ShapeError, match=r"\(N, length\)"):
        prefix_groups(np.zeros(shape, np.int64))


def test_codes_beyond_their_codebook_are_refused():
    with pytest.raises(DataError, match="level 1"):
        level_figures(CODES, [4, 2])


@given(codes, st.randoms(use_true_random=False))
def test_purity_is_the_share_of_the_majority(rows, random):
    labels = [random.randrange(3) for _ in rows]
    groups = prefix_groups(rows)
    for group in groups:
        majority = sum(
            max(
                sum(g == h and label == k for h, label in zip(group, labels, strict=True))
                for k in range(3)
            )
            for g in set(group.tolist())
        )
        assert purity(group, np.array(labels)) == pytest.approx(majority / len(rows))


def test_groups_that_follow_the_codes_are_far_purer_than_shuffled():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 8, (4000, 2))
    names = np.array([f"category {code}" for code in table[:, 0]], object)
    figures = group_figures(prefix_groups(table), names, seed=3)
    assert figures.purity == (1.0, 1.0)
    assert figures.groups == 8
    assert figures.shuffled[0] == pytest.approx(1 / 8, abs=0.05)
    assert figures.shuffled[0] < figures.shuffled[1] < 0.4  # small buckets are purer by chance
    assert figures == group_figures(prefix_groups(table), names, seed=3)


def test_random_groups_are_as_pure_as_their_control():
    rng = np.random.default_rng(1)
    figures = group_figures(prefix_groups(rng.integers(0, 8, (4000, 2))), rng.integers(0, 5, 4000))
    for found, control in zip(figures.purity, figures.shuffled, strict=True):
        assert found == pytest.approx(control, abs=0.03)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_items_without_a_group_are_left_out(missing):
    labels = np.array(["a", missing, "b", "c", "c", missing, "a"], object)
    figures = group_figures(prefix_groups(CODES), labels)
    assert (figures.items, figures.groups) == (5, 3)
    assert figures.purity == (4 / 5, 5 / 5)


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("kind", [list, tuple, lambda labels: pd.Series(labels, dtype=object)])
def test_items_without_a_group_are_left_out_of_lists_too(missing, kind):
    labels = kind(["a", missing, "b", "c", "c", missing, "a"])
    assert group_figures(prefix_groups(CODES), labels).groups == 3
    numbers = kind([1, missing, 2, 3, 3, missing, 1])
    assert group_figures(prefix_groups(CODES), numbers).groups == 3


def test_one_group_an_item_is_asked_for():
    with pytest.raises(ShapeError, match="one group an item"):
        group_figures(prefix_groups(CODES), ["a"])
    with pytest.raises(ShapeError, match="none"):
        group_figures(prefix_groups(CODES), [None] * 7)
