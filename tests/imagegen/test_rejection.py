"""Rejection sampling against a plain loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.rejection import acceptance, best_of_each_class, candidate_labels
from rqtoolkit.errors import ConfigError, ShapeError


def loop_best(candidates, scores, labels):
    """Class by class, the highest scores by sorting all of them."""
    kept = {}
    for label in set(labels.tolist()):
        rows = [i for i in range(len(candidates)) if candidates[i] == label]
        rows.sort(key=lambda i: (-scores[i], i))
        kept[label] = sorted(rows[: (labels == label).sum()])
    return [kept[label].pop(0) for label in labels.tolist()]


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.sampled_from([1.0, 0.5, 0.3, 0.05]),
    st.integers(0, 99),
)
def test_the_best_of_each_class_are_kept_as_the_loop_keeps_them(wanted, accept, seed):
    labels = np.array(wanted)
    candidates = candidate_labels(labels, accept)
    scores = np.random.default_rng(seed).integers(0, 5, len(candidates)) / 4  # many are equal
    chosen = best_of_each_class(candidates, scores, labels)
    assert chosen.tolist() == loop_best(candidates, scores, labels)
    assert candidates[chosen].tolist() == wanted


@pytest.mark.parametrize(("count", "accept", "drawn"), [(7, 0.05, 140), (10, 0.3, 34), (3, 1.0, 3)])
def test_candidates_are_the_number_over_the_share(count, accept, drawn):
    labels = np.array([2] * count + [5])
    found = candidate_labels(labels, accept)
    assert (found == 2).sum() == drawn
    assert (found == 5).sum() == np.ceil(1 / accept)


def test_acceptance_says_what_was_done():
    candidates, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.9, 0.4, 0.6])
    chosen = best_of_each_class(candidates, scores, np.array([0, 1]))
    found = acceptance(candidates, scores, chosen)
    assert found == {
        "drawn": 4,
        "kept": 2,
        "mean_probability_drawn": 0.5,
        "mean_probability_kept": 0.75,
        "thresholds": {"0": 0.9, "1": 0.6},
    }


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ConfigError, match="over 0 and at most 1"):
        candidate_labels(np.array([0]), 0.0)
    with pytest.raises(ShapeError, match="class 1 needs at least 2 candidates; got 1"):
        best_of_each_class(np.array([0, 1]), np.zeros(2), np.array([1, 1]))
