"""Sequences read right from every source, cut right, and split as the protocol says."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.recommend import Sequences

LISTS = st.lists(st.lists(st.integers(0, 6), max_size=7), min_size=1, max_size=6)


def _lists(sequences):
    return [sequences[user].tolist() for user in range(len(sequences))]


def _ids(sequences):
    return [sequences.item_ids[sequences[user]].tolist() for user in range(len(sequences))]


def test_text_lines(tmp_path):
    path = tmp_path / "sequences.txt"
    path.write_text("7 10 20 10\n\n3 30\n9\n")
    sequences = Sequences.read(path)
    assert sequences.item_ids.tolist() == [10, 20, 30]
    assert sequences.user_ids.tolist() == [7, 3, 9]
    assert _lists(sequences) == [[0, 1, 0], [2], []]
    assert sequences.counts.tolist() == [2, 1, 1]
    assert sequences.lengths.tolist() == [3, 1, 0]


def test_words_that_are_not_numbers_stay_words(tmp_path):
    path = tmp_path / "sequences.txt"
    path.write_text("u 007 7\n")
    assert Sequences.read(path).item_ids.tolist() == ["007", "7"]


def test_catalogue_given_sets_the_rows(tmp_path):
    path = tmp_path / "sequences.txt"
    path.write_text("1 10 20\n")
    sequences = Sequences.read(path, item_ids=[20, 99, 10])
    assert _lists(sequences) == [[2, 0]]
    assert sequences.counts.tolist() == [1, 0, 1]


def test_parquet_sorts_by_time_and_keeps_ties_in_order(tmp_path):
    frame = pd.DataFrame(
        {"user": [2, 1, 2, 2], "item": ["c", "a", "b", "a"], "timestamp": [5, 1, 3, 5]}
    )
    path = tmp_path / "interactions.parquet"
    frame.to_parquet(path)
    assert _ids(Sequences.read(path)) == [["a"], ["b", "c", "a"]]
    assert _ids(Sequences.read(path, time_column=None)) == [["a"], ["c", "b", "a"]]
    made = Sequences.from_interactions(frame.user, frame.item, frame.timestamp)
    assert _ids(made) == [["a"], ["b", "c", "a"]]


def test_interactions_may_come_as_dates():
    when = pd.to_datetime(["2014-07-02", "2014-07-01"])
    assert _ids(Sequences.from_interactions(["u", "u"], [1, 2], when)) == [[2, 1]]


@given(LISTS)
def test_lists_come_back(lists):
    sequences = Sequences.from_lists(lists, item_ids=range(7))
    assert _lists(sequences) == lists
    assert sequences.counts.tolist() == [sum(x.count(i) for x in lists) for i in range(7)]


@given(LISTS, st.integers(1, 4))
def test_cuts_equal_slices_of_lists(lists, count):
    sequences = Sequences.from_lists(lists, item_ids=range(7))
    assert _lists(sequences.keep_last(count)) == [x[-count:] for x in lists]
    assert _lists(sequences.drop_last(count)) == [x[:-count] for x in lists]
    assert _lists(sequences.take(slice(None, None, 2))) == lists[::2]
    mask = np.array([len(x) > 2 for x in lists])
    assert _lists(sequences.take(mask)) == [x for x in lists if len(x) > 2]
    padded = [(x[-count:] + [-1] * count)[:count] for x in lists]
    assert sequences.padded(count).tolist() == padded


@given(LISTS)
def test_matrix_counts_pairs(lists):
    matrix = Sequences.from_lists(lists, item_ids=range(7)).matrix()
    assert matrix.toarray().tolist() == [[x.count(i) for i in range(7)] for x in lists]


def test_leave_one_out_by_hand():
    sequences = Sequences.from_lists([[0, 1, 2, 3], [4, 5], [5, 6, 7]], item_ids=range(8))
    train, validation, test = sequences.leave_one_out()
    assert _lists(train) == [[0, 1], [4, 5], [5]]
    assert _lists(validation.histories) == [[0, 1], [5]]
    assert validation.targets.tolist() == [2, 6]
    assert _lists(test.histories) == [[0, 1, 2], [5, 6]]
    assert test.targets.tolist() == [3, 7]
    assert test.histories.user_ids.tolist() == [0, 2]


def test_one_user_from_the_end():
    sequences = Sequences.from_lists([[0], [1, 2]])
    assert sequences[-1].tolist() == [1, 2]
    with pytest.raises(IndexError):
        sequences[2]


def test_the_beauty_file_is_what_papers_describe(shared_data):
    sequences = Sequences.read(shared_data("data/recsys/beauty/sequences.txt"))
    assert (len(sequences), len(sequences.item_ids)) == (22_363, 12_101)
    assert len(sequences.items) == 198_502
    split = sequences.leave_one_out()
    assert (split.train.counts[split.test.targets] == 0).sum() == 138


@pytest.mark.parametrize(
    ("text", "words"),
    [("1 10\n1 20\n", "user on two lines"), ("", "no"), ("1 10 30\n", "got 30 and 0 others")],
)
def test_unusable_text_is_refused(tmp_path, text, words):
    path = tmp_path / "sequences.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        Sequences.read(path, item_ids=[10, 20] if text else None)


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not a file"):
        Sequences.read(tmp_path / "missing.txt")
    (tmp_path / "latin.txt").write_bytes(b"1 \xe4\n")
    with pytest.raises(ArtifactError, match="UTF-8"):
        Sequences.read(tmp_path / "latin.txt")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="Parquet"):
        Sequences.read(tmp_path / "broken.parquet")
    path = tmp_path / "columns.parquet"
    pd.DataFrame({"user": [1.0, None], "item": [1, 2]}).to_parquet(path)
    with pytest.raises(ConfigError, match="time_column"):
        Sequences.read(path)
    with pytest.raises(DataError, match="1 nulls"):
        Sequences.read(path, time_column=None)


def test_unusable_interactions_are_refused():
    with pytest.raises(ShapeError, match="one length"):
        Sequences.from_interactions([1, 2], [3])
    with pytest.raises(DataError, match="all integers or all strings"):
        Sequences.from_interactions([1], [0.5])
    with pytest.raises(DataError, match="strings"):
        Sequences.from_lists([["a"]], item_ids=[1])
    with pytest.raises(DataError, match="distinct"):
        Sequences.from_lists([[1]], item_ids=[1, 1])
