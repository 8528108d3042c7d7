import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.codes import code_bits, pack_codes, smallest_dtype, unpack_codes

all_sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=6)


def random_codes(sizes, rows, seed):
    return np.random.default_rng(seed).integers(0, sizes, (rows, len(sizes)))


def test_by_hand():
    # Levels of 3 and 6 bits: 5 = 101, 33 = 100001, written 101 100001 from the high end of level 1:
    # bits from low to high 101 | 100001, so byte 0 = 0b00001101 and byte 1 = 0b1.
    assert pack_codes([[5, 33]], [8, 64]).tolist() == [[0b00001101, 0b1]]


@given(all_sizes, st.integers(0, 30), st.integers(0, 1000))
def test_packing_inverts(sizes, rows, seed):
    codes = random_codes(sizes, rows, seed)
    packed = pack_codes(codes, sizes)
    assert packed.shape == (rows, -(-sum(code_bits(sizes)) // 8))
    unpacked = unpack_codes(packed, sizes)
    assert unpacked.dtype == smallest_dtype(sizes)
    np.testing.assert_array_equal(unpacked, codes)


@given(st.lists(st.integers(1, 14), min_size=1, max_size=6), st.integers(0, 1000))
def test_layout_is_that_of_faiss(bits, seed):
    sizes = [2**width for width in bits]
    codes = random_codes(sizes, 9, seed).astype(np.int32)
    packed = pack_codes(codes, sizes)

    quantizer = faiss.ResidualQuantizer()
    quantizer.d, quantizer.M = 4, len(bits)
    faiss.copy_array_to_vector(np.array(bits, dtype=np.uint64), quantizer.nbits)
    quantizer.set_derived_values()
    expected = np.zeros((9, quantizer.code_size), dtype=np.uint8)
    quantizer.pack_codes(9, faiss.swig_ptr(codes), faiss.swig_ptr(expected))
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(
        faiss.unpack_bitstrings(packed, [int(width) for width in bits]), codes
    )


def test_any_leading_shape_and_torch():
    codes = torch.randint(0, 300, (2, 3, 4))
    packed = pack_codes(codes, [300] * 4)
    assert packed.shape == (2, 3, 5)
    np.testing.assert_array_equal(unpack_codes(packed, [300] * 4), codes.numpy())


def test_chunks_do_not_change_the_bytes(monkeypatch):
    codes = random_codes([7, 900], 50, 0)
    whole = pack_codes(codes, [7, 900])
    monkeypatch.setattr("rqtoolkit.functional.codes._CHUNK_ROWS", 8)
    np.testing.assert_array_equal(pack_codes(codes, [7, 900]), whole)
    np.testing.assert_array_equal(unpack_codes(whole, [7, 900]), codes)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [([1], "u1"), ([256, 2], "u1"), ([257], "u2"), ([65536], "u2"), ([2, 65537], "u4")],
)
def test_smallest_dtype(sizes, dtype):
    assert smallest_dtype(sizes) == np.dtype(dtype)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pack_codes([[0, 1]], [2]), ShapeError, r"\(\.\.\., 1\)"),
        (lambda: pack_codes([[0.5]], [2]), DataError, "float64"),
        (lambda: pack_codes([[2]], [2]), DataError, "in \\[0"),
        (lambda: pack_codes([[-1]], [2]), DataError, "-1"),
        (lambda: unpack_codes(np.zeros((2, 2), np.uint8), [256]), ShapeError, "8 bits"),
        (lambda: unpack_codes(np.zeros((2, 1), np.int64), [256]), DataError, "uint8"),
        (lambda: unpack_codes(np.full((2, 1), 255, np.uint8), [200]), DataError, "255"),
        (lambda: code_bits([]), ConfigError, "from 1 on"),
        (lambda: smallest_dtype([4, 0]), ConfigError, "from 1 on"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
