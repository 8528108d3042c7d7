import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.semantic_ids.decoding import PrefixTable
from rqtoolkit.semantic_ids.formats.item_codes import checked_codes
from rqtoolkit.semantic_ids.items import (
    RowIndex,
    as_item_ids,
    check_codes,
    check_distinct,
    check_kind,
    id_ranks,
)
from rqtoolkit.semantic_ids.ngrams import prefix_ngrams
from rqtoolkit.semantic_ids.stacks import stack_numbers
from rqtoolkit.semantic_ids.tokens import unflatten_codes


@pytest.mark.parametrize(
    "given_ids",
    [
        [3, 1, 2],
        np.array([3, 1, 2], np.uint8),
        np.array([3, 1, 2], object),
        pd.Series([3, 1, 2]),
        pd.Series([3, 1, 2], dtype="Int64"),
        pd.Index([3, 1, 2]),
        pa.chunked_array([[3], [1, 2]]),
        torch.tensor([3, 1, 2]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_integers_of_any_kind(given_ids):
    ids = as_item_ids("test", given_ids)
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "given_ids",
    [
        ["b", "äa"],
        np.array(["b", "äa"], "U20"),
        np.array(["b", "äa"], object),
        np.array([np.str_("b"), "äa"], object),
        pd.Series(["b", "äa"]),
        pd.Series(["b", "äa"], dtype="string"),
        pd.Index(["b", "äa"]),
        pa.array(["b", "äa"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_strings_of_any_kind(given_ids):
    ids = as_item_ids("test", given_ids)
    assert ids.dtype == np.dtype("U2")
    assert ids.tolist() == ["b", "äa"]


@pytest.mark.parametrize(
    ("given_ids", "said"),
    [
        ([1.0, 2.0], "float"),
        (np.array([1.0, 2.0]), "astype"),
        ([1, "a"], "int, str"),
        ([True, False], "bool"),
        (["a", None], "NoneType"),
        ([b"a"], "bytes"),
        ("abc", "alone"),
        (pa.array([1, None]), "nulls"),
        (pd.Series(["a", None]), "all strings"),
        ([2**63], "int64"),
        (np.array([2**63], np.uint64), "int64"),
        (["a\0"], "zero"),
        (["\ud800"], "surrogate"),
    ],
)
def test_other_ids_are_refused(given_ids, said):
    with pytest.raises(DataError, match=said):
        as_item_ids("test", given_ids)


def test_axes_duplicates_and_kinds_are_refused():
    with pytest.raises(ShapeError, match=r"\(N,\)"):
        as_item_ids("test", np.zeros((2, 2), int))
    with pytest.raises(DataError, match="got 7 3 times, 3 rows too many"):
        check_distinct("test", np.array([7, 1, 7, 1, 7]))
    with pytest.raises(DataError, match="integers as those"):
        check_kind("test", np.array(["a"]), np.array([1]))


@given(st.lists(st.integers(-9, 9), unique=True), st.randoms())
def test_ranks_follow_the_ids_and_not_the_rows(ids, random):
    shuffled = random.sample(ids, len(ids))
    ranks = dict(zip(shuffled, id_ranks(np.array(shuffled, np.int64)), strict=True))
    assert ranks == {value: place for place, value in enumerate(sorted(ids))}


@given(st.data(), st.sampled_from([(3, 5, 2), (2**31, 2**31, 2**31), (256,) * 9]))
def test_keys_are_equal_for_equal_codes_and_sort_like_them(data, sizes):
    row = st.tuples(*(st.integers(0, size - 1) for size in sizes))
    codes = data.draw(st.lists(row, min_size=1, max_size=20))
    keys = stack_numbers(np.array(codes), sizes)
    order = sorted(range(len(codes)), key=lambda i: codes[i])
    assert [codes[i] for i in np.argsort(keys, kind="stable")] == [codes[i] for i in order]
    assert len(np.unique(keys)) == len(set(codes))


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(-1, 7)))
def test_index_finds_as_a_list_does(keys, wanted):
    index = RowIndex(np.array(keys, np.int64))
    found = index.find(np.array(wanted, np.int64))
    assert found.tolist() == [keys.index(key) if key in keys else -1 for key in wanted]
    every = [rows.tolist() for rows in index.find_all(np.array(wanted, np.int64))]
    assert every == [[i for i, other in enumerate(keys) if other == key] for key in wanted]


def test_codes_are_checked():
    assert check_codes("test", np.array([[0, 1]], np.uint8), (2, 2)).dtype == np.int64
    with pytest.raises(ShapeError, match="transposed"):
        check_codes("test", np.zeros((2, 30), int), (4,) * 3)
    with pytest.raises(DataError, match=r"level 1 .* below 4; got 260 in row 0"):
        check_codes("test", [[3, 260]], (4, 4))
    with pytest.raises(DataError, match="from 0; got -1"):
        check_codes("test", [[0, -1]])
    with pytest.raises(DataError, match="float64"):
        check_codes("test", [[0.5]])
    with pytest.raises(ShapeError, match="neither 0"):
        check_codes("test", np.empty((0, 3), int))


@pytest.mark.parametrize(
    "call",
    [
        lambda sizes: check_codes("f", [[1]], sizes),
        lambda sizes: unflatten_codes([[9, 9]], sizes),
        lambda sizes: checked_codes("f", np.array([[1]]), sizes),
        lambda sizes: PrefixTable([[9, 9]], sizes),
        lambda sizes: prefix_ngrams([[9, 9]], sizes),
    ],
)
def test_messages_name_sizes_of_numpy_as_plain_numbers(call):
    for sizes in (np.array([4, 5]), [np.int64(4), np.int64(5)]):
        with pytest.raises((DataError, ShapeError), match=r"\(4, 5\)"):
            call(sizes)
