import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.io import compressed_codes
from rqtoolkit.io.compressed_codes import open_compressed, write_compressed


def read(path, rows=1000):
    file = open_compressed(path)
    chunks = list(file.chunks(rows))
    assert all(chunk.dtype == np.int64 and len(chunk) == rows for chunk in chunks[:-1])
    return np.concatenate([np.empty((0, file.depth), np.int64), *chunks])


def random_codes(seed, rows, sizes, dtype=np.int64):
    generator = np.random.default_rng(seed)
    return (generator.random((rows, len(sizes))) ** 2 * np.array(sizes)).astype(dtype)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.sampled_from([1, 2, 5, 64, 256, 1000, 65536]), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 300), max_size=4),
    read_rows=st.integers(1, 400),
)
def test_chunks_come_back_as_they_went(tmp_path_factory, seed, sizes, cuts, read_rows):
    path = tmp_path_factory.mktemp("codes") / "codes.rqcodes"
    codes = random_codes(seed, sum(cuts), sizes, np.uint32)
    chunks = np.split(codes, np.cumsum(cuts)[:-1]) if cuts else []
    write_compressed(path, iter(chunks), rows=len(codes), codebook_sizes=sizes)
    file = open_compressed(path, codebook_sizes=[*sizes, 7])
    assert (file.rows, file.depth, file.ids) == (len(codes), len(sizes), None)
    assert file.codebook_sizes == tuple(sizes)
    np.testing.assert_array_equal(read(path, read_rows), codes)


@pytest.mark.parametrize("rows", [0, 1, 3, 60, 127, 500, 20_000])
@pytest.mark.parametrize(("size", "depth"), [(1, 8), (2, 1), (256, 8), (1024, 3)])
def test_a_file_is_two_percent_and_sixteen_bytes_over_the_model(tmp_path, rows, size, depth):
    codes = random_codes(0, rows, [size] * depth)
    path = tmp_path / "codes.rqcodes"
    bits = write_compressed(path, [codes], rows=rows, codebook_sizes=[size] * depth)
    assert path.stat().st_size <= 1.02 * bits / 8 + 16
    np.testing.assert_array_equal(read(path), codes)


def test_bytes_do_not_depend_on_the_chunks(tmp_path):
    codes = random_codes(1, 3000, (256, 100))
    one, many = tmp_path / "one", tmp_path / "many"
    write_compressed(one, [codes], rows=3000, codebook_sizes=(256, 100))
    write_compressed(many, np.split(codes, 60), rows=3000, codebook_sizes=(256, 100))
    assert one.read_bytes() == many.read_bytes()


def test_long_files_have_several_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed_codes, "_STREAM_CODES", 1000)
    for rows in (500, 1000, 5000):
        codes = random_codes(2, rows, (256, 16))
        write_compressed(tmp_path / "codes", [codes], rows=rows, codebook_sizes=(256, 16))
        np.testing.assert_array_equal(read(tmp_path / "codes"), codes)


def test_skewed_codes_take_fewer_bytes_than_their_entropy_coded_alone_would(shared_data, tmp_path):
    """Two levels that depend on each other: codes of embeddings by k-means and its residuals."""
    x = np.load(shared_data("data/recsys/beauty/item_embeddings.npy"))[:4000].astype(np.float32)
    first = (x @ x[:16].T).argmax(1)
    rest = x - x[:16][first]
    codes = np.stack([first, (rest @ x[16:32].T).argmax(1)], axis=1)
    path = tmp_path / "codes.rqcodes"
    write_compressed(path, [codes], rows=len(codes), codebook_sizes=(16, 16))
    shares = [np.bincount(column, minlength=16) / len(codes) for column in codes.T]
    entropy = -sum((p[p > 0] * np.log2(p[p > 0])).sum() for p in shares)
    assert path.stat().st_size * 8 < 0.98 * entropy * len(codes) < 0.98 * 8 * len(codes)


def test_a_changed_or_missing_byte_is_noticed(tmp_path):
    codes = random_codes(3, 50, (16, 16))
    path = tmp_path / "codes.rqcodes"
    write_compressed(path, [codes], rows=50, codebook_sizes=(16, 16))
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(ArtifactError, match=r"no compressed file|unknown version|damaged"):
            read(path)
        path.write_bytes(whole[:place])
        with pytest.raises(ArtifactError, match=r"no compressed file|damaged or truncated"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        open_compressed(path)


def test_codes_that_another_model_would_read_are_refused(tmp_path, monkeypatch):
    codes = random_codes(4, 3000, (256, 256))
    path = tmp_path / "codes.rqcodes"
    write_compressed(path, [codes], rows=3000, codebook_sizes=(256, 256))
    monkeypatch.setattr("rqtoolkit.functional.code_model._BLENDS", ((3.0, 0.0),) * 10)
    with pytest.raises(ArtifactError, match="cannot be decompressed here"):
        read(path)


def test_foreign_and_missing_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="is no file"):
        open_compressed(tmp_path / "none.rqcodes")
    with pytest.raises(ArtifactError, match="is no file"):
        open_compressed(tmp_path)
    np.save(tmp_path / "codes.npy", np.zeros((3, 2), np.uint8))
    with pytest.raises(ArtifactError, match="no compressed file of codes"):
        open_compressed(tmp_path / "codes.npy")


def test_codes_of_another_quantizer_are_refused(tmp_path):
    path = tmp_path / "codes.rqcodes"
    write_compressed(path, [np.zeros((3, 2), int)], rows=3, codebook_sizes=(4, 4))
    with pytest.raises(ShapeError, match="depth 2 but the quantizer has depth 1"):
        open_compressed(path, codebook_sizes=(4,))
    with pytest.raises(DataError, match=r"sizes \(4, 4\)"):
        open_compressed(path, codebook_sizes=(4, 8))


@pytest.mark.parametrize(
    ("chunks", "rows", "sizes", "error", "words"),
    [
        ([np.zeros((3, 2), int)], 4, (2, 2), ShapeError, "add up to; got 3"),
        ([np.zeros((3, 2), int)], 2, (2, 2), ShapeError, "got 3 or more"),
        ([np.zeros((3, 2), int)], 0, (2, 2), ShapeError, "got 3 or more"),
        ([np.zeros((3, 2), int)], -1, (2, 2), ConfigError, "rows=-1"),
        ([np.zeros((3, 1), int)], 3, (2, 2), ShapeError, r"\(n, 2\)"),
        ([np.zeros((3, 2))], 3, (2, 2), DataError, "integers"),
        ([np.full((3, 2), 2)], 3, (2, 3), DataError, "codebook_size"),
        ([np.full((3, 2), -1)], 3, (2, 2), DataError, "codebook_size"),
        ([], 0, (0,), ConfigError, "at least 1"),
        ([], 0, (), ConfigError, "codebook_size"),
        ([], 0, (2**17,), ConfigError, "65536"),
    ],
)
def test_unusable_codes_leave_no_file(tmp_path, chunks, rows, sizes, error, words):
    path = tmp_path / "codes.rqcodes"
    path.write_bytes(b"before")
    with pytest.raises(error, match=words):
        write_compressed(path, chunks, rows=rows, codebook_sizes=sizes)
    assert [file.name for file in tmp_path.iterdir()] == ["codes.rqcodes"]
    assert path.read_bytes() == b"before"
