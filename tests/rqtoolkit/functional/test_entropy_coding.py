import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import DataError, ShapeError
from rqtoolkit.functional.entropy_coding import CodeDecoder, CodeEncoder, code_bits


def draw(generator, count, entries, concentration):
    tables = generator.dirichlet(np.full(entries, concentration), size=count)
    tables = np.nan_to_num(tables, nan=1 / entries)
    codes = np.array([generator.choice(entries, p=row / row.sum()) for row in tables], np.int64)
    return codes, tables


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    parts=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 300)), max_size=4),
    concentration=st.sampled_from([0.01, 0.3, 5.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_round_trip_is_exact_and_near_the_entropy(seed, parts, concentration, dtype):
    generator = np.random.default_rng(seed)
    drawn = [draw(generator, count, entries, concentration) for count, entries in parts]
    drawn = [(codes, tables.astype(dtype)) for codes, tables in drawn]
    encoder = CodeEncoder()
    for codes, tables in drawn:
        encoder.encode(codes, tables)
    encoded = encoder.to_bytes()
    decoder = CodeDecoder(encoded)
    for codes, tables in drawn:
        decoded = decoder.decode(tables)
        assert decoded.dtype == np.int64
        np.testing.assert_array_equal(decoded, codes)
    bits = sum(code_bits(codes, tables) for codes, tables in drawn)
    assert len(encoded) * 8 <= 1.02 * bits + 64


def test_one_table_for_all_codes_and_calls_cut_anywhere():
    generator = np.random.default_rng(0)
    table = generator.dirichlet(np.ones(50))
    codes = generator.choice(50, size=5000, p=table)
    encoder = CodeEncoder()
    encoder.encode(codes[:1234], table)
    encoder.encode(codes[1234:], table)
    encoded = encoder.to_bytes()
    entropy = -(table * np.log2(table)).sum() * 5000
    assert len(encoded) * 8 == pytest.approx(entropy, rel=0.02)
    decoder = CodeDecoder(encoded)
    whole = np.concatenate([decoder.decode(table, count=n) for n in (1, 0, 4000, 999)])
    np.testing.assert_array_equal(whole, codes)
    # a table a code costs the same bytes as one table for all
    again = CodeEncoder()
    again.encode(codes, np.tile(table, (5000, 1)))
    assert again.to_bytes() == encoded


def test_many_entries_cost_what_the_model_says():
    generator = np.random.default_rng(1)
    codes, tables = draw(generator, 400, 16384, 0.05)
    encoder = CodeEncoder()
    encoder.encode(codes, tables.astype(np.float32))
    bits = code_bits(codes, tables)
    assert bits <= len(encoder.to_bytes()) * 8 <= 1.02 * bits + 64


def test_what_the_model_thinks_impossible_can_be_coded():
    tables = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    encoder = CodeEncoder()
    encoder.encode([2, 2], tables)
    np.testing.assert_array_equal(CodeDecoder(encoder.to_bytes()).decode(tables), [2, 2])
    assert code_bits([2, 2], tables) == pytest.approx(48)


def test_bits_follow_the_closed_form():
    assert code_bits([0, 1, 1], [0.25, 0.75]) == pytest.approx(2 - 2 * math.log2(0.75))
    assert code_bits([], np.empty((0, 4))) == 0


def test_empty_stream():
    encoder = CodeEncoder()
    encoder.encode(np.empty(0, np.int64), np.empty((0, 7)))
    assert encoder.to_bytes() == b""
    assert CodeDecoder(b"").decode(np.empty((0, 7))).shape == (0,)


@pytest.mark.parametrize(
    ("codes", "table", "error", "words"),
    [
        ([0, 2], [0.5, 0.5], DataError, "from 0 to 1"),
        ([-1], [0.5, 0.5], DataError, "from 0 to 1"),
        ([0.0], [0.5, 0.5], DataError, "integers"),
        ([0, 1], [[0.5, 0.5]], ShapeError, "flatten|Flatten"),
        ([[0]], [0.5, 0.5], ShapeError, "Flatten"),
        ([0], [1, 1], DataError, "floating point"),
        ([0], [math.nan, 1.0], DataError, "finite"),
        ([0], [-0.5, 1.0], DataError, "not negative"),
        ([0], [0.0, 0.0], DataError, "not all 0"),
        ([0], 0.5, ShapeError, "must have shape"),
    ],
)
def test_unusable_input_is_refused(codes, table, error, words):
    with pytest.raises(error, match=words):
        CodeEncoder().encode(codes, table)


def test_decoding_wants_a_count_with_one_table_alone():
    with pytest.raises(ShapeError, match="count=None"):
        CodeDecoder(b"").decode([0.5, 0.5])
    with pytest.raises(ShapeError, match="count=3"):
        CodeDecoder(b"").decode([[0.5, 0.5]], count=3)


def test_a_foreign_stream_gives_a_clear_error():
    table = np.array([0.999, 0.001])
    with pytest.raises(DataError, match="does not fit these probabilities"):
        CodeDecoder(b"\xff" * 64).decode(table, count=500)
