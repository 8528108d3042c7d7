import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.io.codes import open_codes, read_codes, write_codes

SIZES = (300, 7, 2)
CODES = np.random.default_rng(0).integers(0, SIZES, (20, 3))


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_round_trip_in_the_smallest_type(tmp_path, suffix):
    path = tmp_path / f"codes{suffix}"
    write_codes(path, [CODES[:15], CODES[15:]], rows=20, codebook_sizes=SIZES)
    found = read_codes(path, codebook_sizes=SIZES)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, CODES)
    if suffix == ".npy":
        assert np.load(path).dtype == np.uint16
    else:
        assert pq.read_schema(path).field("codes").type == pa.list_(pa.uint16(), 3)


def test_ids_beside(tmp_path):
    ids = pa.chunked_array([[f"item {i}" for i in range(20)]])
    path = tmp_path / "codes.parquet"
    write_codes(
        path, [CODES[:15], CODES[15:]], rows=20, codebook_sizes=SIZES, ids=ids, id_column="item"
    )
    assert pq.read_table(path).column_names == ["item", "codes"]
    assert open_codes(path, id_column="item").ids.to_pylist() == ids.to_pylist()
    with pytest.raises(ConfigError, match=r"\.parquet"):
        write_codes(tmp_path / "a.npy", [CODES], rows=20, codebook_sizes=SIZES, ids=ids)


def test_codes_may_stop_at_an_earlier_level(tmp_path):
    np.save(tmp_path / "codes.npy", CODES[:, :2])
    assert read_codes(tmp_path / "codes.npy", codebook_sizes=SIZES).shape == (20, 2)


@pytest.mark.parametrize(
    ("codes", "sizes", "error", "words"),
    [
        (CODES, (300, 7), ShapeError, "depth 3 but the quantizer has depth 2"),
        (CODES, (300, 7, 1), DataError, "level 2 .* below 1; got 1"),
        (CODES - 1, SIZES, DataError, "from 0 below"),
        (CODES - 1, None, DataError, f"from 0 below {2**31}; got -1"),
        (CODES.astype(float), SIZES, DataError, "float64"),
        (CODES[0], SIZES, ShapeError, "two axes"),
        (CODES.astype(np.uint64) + np.uint64(2**63), SIZES, DataError, "below 300"),
    ],
)
def test_bad_codes(tmp_path, codes, sizes, error, words):
    np.save(tmp_path / "codes.npy", codes)
    with pytest.raises(error, match=words):
        read_codes(tmp_path / "codes.npy", codebook_sizes=sizes)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_packed_rows_round_trip(tmp_path, suffix):
    path = tmp_path / f"codes{suffix}"
    write_codes(path, [CODES[:15], CODES[15:]], rows=20, codebook_sizes=SIZES, packed=True)
    table = open_codes(path, codebook_sizes=SIZES, packed=True)
    assert (table.rows, table.depth) == (20, 3)
    chunks = list(table.chunks(7))
    assert [len(chunk) for chunk in chunks] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate(chunks), CODES)
    packed = read_codes(path)  # as plain numbers: 9 + 3 + 1 bits in two bytes
    bits = CODES[:, 0] + (CODES[:, 1] << 9) + (CODES[:, 2] << 12)
    np.testing.assert_array_equal(packed[:, 0] + 256 * packed[:, 1], bits)


def test_packed_rows_of_other_sizes_are_refused(tmp_path):
    write_codes(tmp_path / "c.npy", [CODES], rows=20, codebook_sizes=SIZES, packed=True)
    with pytest.raises(DataError, match=r"\(N, 3\)"):
        open_codes(tmp_path / "c.npy", codebook_sizes=[1024, 1024, 4], packed=True)
    with pytest.raises(ConfigError, match="codebook_sizes"):
        open_codes(tmp_path / "c.npy", packed=True)
    with pytest.raises(DataError, match="below codebook_size"):
        list(open_codes(tmp_path / "c.npy", codebook_sizes=[257, 7, 2], packed=True).chunks(20))
    with pytest.raises(ConfigError, match="no bits"):
        write_codes(tmp_path / "d.npy", [CODES], rows=20, codebook_sizes=[1, 1], packed=True)


def test_numbers_that_are_no_codes_are_refused_without_sizes(tmp_path):
    np.save(tmp_path / "codes.npy", np.array([[1, 2], [3, 2**63 + 5]], dtype=np.uint64))
    with pytest.raises(DataError, match=f"got {2**63 + 5} in row 1"):
        read_codes(tmp_path / "codes.npy")
