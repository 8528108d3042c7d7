from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.semantic_ids.drift import measure_drift, relabelled_agreement

IDS = np.arange(10, 16)
CODES = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 0], [1, 1, 1], [2, 0, 0], [2, 2, 2]])


def test_the_same_version_keeps_all_in_any_order():
    order = np.array([3, 0, 5, 1, 4, 2])
    drift = measure_drift(IDS, CODES, IDS[order], CODES[order], against="first")
    assert (drift.common, drift.added, drift.removed) == (6, 0, 0)
    assert drift.kept == (1, 1, 1)
    assert drift.kept_relabelled == 1
    assert drift.against == "first"


def test_a_case_counted_by_hand():
    older = np.array([[0, 1, 2], [0, 1, 9], [1, 9, 0], [9, 1, 1]])
    drift = measure_drift(IDS, CODES, np.array([10, 11, 12, 13, 99]), np.vstack([older, older[:1]]))
    assert (drift.common, drift.added, drift.removed) == (4, 2, 1)
    assert drift.kept == (3 / 4, 2 / 4, 1 / 4)
    assert drift.kept_relabelled == 3 / 4


def test_renamed_codes_are_seen_through():
    renamed = CODES.copy()
    renamed[:, 0] = np.array([2, 0, 1])[CODES[:, 0]]
    drift = measure_drift(IDS, renamed, IDS, CODES)
    assert drift.kept == (0, 0, 0)
    assert drift.kept_relabelled == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_relabelling_is_the_best_of_all_renamings(pairs):
    old, new = np.array(pairs).T
    best = max((np.array(names)[old] == new).mean() for names in permutations(range(4)))
    assert relabelled_agreement(old, new) == pytest.approx(best)


def test_versions_of_different_length_compare_what_both_have():
    drift = measure_drift(IDS, CODES, IDS, CODES[:, :2])
    assert drift.kept == (1, 1)


@pytest.mark.parametrize("older", [np.array([1, 2]), np.array(["10", "11"])])
def test_nothing_in_common(older):
    drift = measure_drift(IDS, CODES, older, CODES[:2])
    assert (drift.common, drift.added, drift.removed) == (0, 6, 2)
    assert drift.kept == ()
    assert drift.kept_relabelled is None
