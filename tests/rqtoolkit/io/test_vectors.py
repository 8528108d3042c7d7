import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.io.vectors import open_vectors, write_vectors


def vecs(path: Path, table: np.ndarray) -> None:
    head = np.full((len(table), 1), table.shape[1], dtype="<i4").view(np.uint8)
    path.write_bytes(np.hstack([head, table.view(np.uint8).reshape(len(table), -1)]).tobytes())


def parquet(path: Path, rows, kind=None, **others) -> None:
    table = pa.table({"vectors": pa.array(list(rows), kind), **others})
    pq.write_table(table, path, row_group_size=4)


def write(path: Path, table: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, table)
    elif path.name == "packed.npz":
        np.savez_compressed(path, table=table)
    elif path.suffix == ".npz":
        np.savez(path, table=table)
    elif path.suffix == ".parquet":
        parquet(path, table)
    else:
        vecs(path, table)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i1", "u2", "i8"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz", "a.parquet"])
def test_every_format_and_dtype(tmp_path, name, dtype):
    if name == "a.parquet" and dtype == ">f4":
        pytest.skip("Arrow has no big-endian arrays")
    table = np.random.default_rng(0).integers(0, 100, (11, 3)).astype(dtype)
    write(tmp_path / name, table)
    vectors = open_vectors(tmp_path / name)
    assert (vectors.rows, vectors.dim, vectors.ids) == (11, 3, None)
    chunks = list(vectors.chunks(4))
    assert all(len(chunk) <= 4 and chunk.dtype == np.float32 for chunk in chunks)
    np.testing.assert_array_equal(np.concatenate(chunks), table.astype(np.float32))
    np.testing.assert_array_equal(vectors.sample(100), table.astype(np.float32))


@pytest.mark.parametrize(("suffix", "dtype"), [("fvecs", "<f4"), ("bvecs", "u1")])
def test_vecs(tmp_path, suffix, dtype):
    table = np.random.default_rng(0).integers(0, 256, (11, 3)).astype(dtype)
    vecs(tmp_path / f"a.{suffix}", table)
    vectors = open_vectors(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(np.concatenate(list(vectors.chunks(4))), table)
    assert vectors.sample(5, seed=1).shape == (5, 3)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 3), pa.large_list(pa.int16())]
)
def test_parquet_lists_and_ids(tmp_path, kind):
    table = np.arange(33).reshape(11, 3)
    names = [f"item-{i}" for i in range(11)]
    parquet(tmp_path / "a.parquet", table.tolist(), kind, item=names, price=list(range(11)))
    vectors = open_vectors(tmp_path / "a.parquet", id_column="item")
    assert vectors.ids is not None
    assert vectors.ids.to_pylist() == names
    np.testing.assert_array_equal(np.concatenate(list(vectors.chunks(3))), table)


def test_fortran_order(tmp_path):
    table = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "a.npy", table)
    np.testing.assert_array_equal(open_vectors(tmp_path / "a.npy").sample(9), table)


@pytest.mark.parametrize("name", ["a.npy", "a.fvecs", "a.parquet"])
def test_sample_is_even_ordered_and_fixed_by_the_seed(tmp_path, name):
    table = np.arange(5000, dtype=np.float32)[:, None]
    write(tmp_path / name, table)
    vectors = open_vectors(tmp_path / name)
    drawn = vectors.sample(1000, seed=3)[:, 0]
    assert (np.diff(drawn) > 0).all()
    assert abs(drawn.mean() - 2500) < 200
    np.testing.assert_array_equal(drawn, vectors.sample(1000, seed=3)[:, 0])
    assert not np.array_equal(drawn, vectors.sample(1000, seed=4)[:, 0])


def test_npz_with_several_arrays_needs_a_key(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.ones((2, 3)), test=np.zeros((4, 3)))
    assert open_vectors(tmp_path / "a.npz", key="test").rows == 4
    with pytest.raises(ConfigError, match=r"train, test.*as key"):
        open_vectors(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="no array 'val'; it has train, test"):
        open_vectors(tmp_path / "a.npz", key="val")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([".npy", ".parquet"]))
def test_what_is_written_in_chunks_reads_back(lengths, suffix):
    table = np.random.default_rng(0).normal(size=(sum(lengths), 4)).astype(np.float32)
    ids = pa.chunked_array([pa.array(range(len(table)))]) if suffix == ".parquet" else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        chunks = np.split(table, np.cumsum(lengths)[:-1])
        write_vectors(path, chunks, rows=len(table), dim=4, ids=ids, id_column="item")
        vectors = open_vectors(path, id_column=None if ids is None else "item")
        np.testing.assert_array_equal(vectors.sample(10**6), table)
        assert ids is None or vectors.ids.to_pylist() == ids.to_pylist()


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_interrupted_write_leaves_nothing(tmp_path, suffix):
    def chunks():
        yield np.ones((2, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_vectors(tmp_path / f"a{suffix}", chunks(), rows=4, dim=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bad", "words"), [(np.nan, "nan"), (np.inf, "inf"), (1e300, "1e\\+300")])
def test_values_that_are_not_finite_in_float32(tmp_path, bad, words):
    table = np.ones((9, 3))
    table[7, 2] = bad
    np.save(tmp_path / "a.npy", table)
    vectors = open_vectors(tmp_path / "a.npy")
    for read in (lambda: list(vectors.chunks(4)), lambda: vectors.sample(9)):
        with pytest.raises(DataError, match=f"{words} in row 7, dimension 2"):
            read()


def truncated(path: Path, table=None, keep: float = 0.5) -> None:
    write(path, np.ones((50, 30), np.float32) if table is None else table)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


BAD_FILES = {
    "missing.npy": (lambda path: path.exists(), ArtifactError, "does not exist"),
    "folder.npy": (lambda path: path.mkdir(), ArtifactError, "is a folder"),
    "suffix.csv": (lambda path: path.write_text("1,2"), ConfigError, "has to end in"),
    "nosuffix": (lambda path: path.write_text("1,2"), ConfigError, "no suffix"),
    "bytes.npy": (lambda path: path.write_bytes(b""), ArtifactError, "not a readable"),
    "bytes.npz": (lambda path: path.write_bytes(b""), ArtifactError, "not a readable"),
    "bytes.fvecs": (lambda path: path.write_bytes(b""), DataError, "is empty"),
    "bytes.parquet": (lambda path: path.write_bytes(b""), ArtifactError, "not a readable"),
    "text.npy": (lambda path: path.write_text("hello world " * 9), ArtifactError, "not a readable"),
    "text.npz": (lambda path: path.write_text("hello world " * 9), ArtifactError, "not a readable"),
    "text.fvecs": (lambda path: path.write_text("hello world"), ArtifactError, "not a readable"),
    "text.parquet": (lambda path: path.write_text("hello " * 9), ArtifactError, "not a readable"),
    "cut.npy": (truncated, ArtifactError, "truncated"),
    "cut.npz": (truncated, ArtifactError, "truncated"),
    "cut.fvecs": (lambda path: truncated(path, keep=0.505), ArtifactError, "truncated"),
    "cut.parquet": (truncated, ArtifactError, "truncated"),
    "head.npy": (lambda path: truncated(path, keep=0.01), ArtifactError, "truncated"),
    "axis.npy": (lambda path: np.save(path, np.ones(3)), ShapeError, r"\(3,\)"),
    "axes.npy": (lambda path: np.save(path, np.ones((2, 3, 4))), ShapeError, r"\(2, 3, 4\)"),
    "none.npy": (lambda path: np.save(path, np.ones((0, 3))), DataError, "is empty"),
    "nodim.npy": (lambda path: np.save(path, np.ones((3, 0))), DataError, "is empty"),
    "none.parquet": (lambda path: parquet(path, [], pa.list_(pa.float32())), DataError, "is empty"),
    "bool.npy": (lambda path: np.save(path, np.ones((3, 2), bool)), DataError, "bool"),
    "text-values.npy": (lambda path: np.save(path, np.array([["a"]])), DataError, "<U1"),
    "complex.npy": (lambda path: np.save(path, np.ones((3, 2), complex)), DataError, "complex"),
    "object.npy": (
        lambda path: np.save(path, np.array([[None]]), allow_pickle=True), DataError, "object",
    ),
    "object.npz": (lambda path: np.savez(path, a=np.array([[{}]])), DataError, "object"),
    "ragged.parquet": (lambda path: parquet(path, [[1.0, 2.0], [3.0]]), ShapeError, "1 in row 1"),
    "null.parquet": (lambda path: parquet(path, [[1.0], None]), DataError, "in row 1"),
    "nulls.parquet": (lambda path: parquet(path, [[1.0, 2.0], [3.0, None]]), DataError, "in row 1"),
    "flat.parquet": (lambda path: parquet(path, [1.0, 2.0]), ConfigError, "none among vectors"),
    "two.parquet": (
        lambda path: parquet(path, [[1.0]], other=[[1.0]]), ConfigError, "vectors, other",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tmp_path, name):
    make, error, words = BAD_FILES[name]
    make(tmp_path / name)
    with pytest.raises(error, match=words) as caught:
        list(open_vectors(tmp_path / name).chunks(10))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_vecs_of_several_lengths(tmp_path):
    # Two rows of 1 float, then one that says 3 and happens to fill whole rows.
    words = np.array([1, 0, 1, 0, 3, 0, 0, 0], dtype="<i4")
    (tmp_path / "a.fvecs").write_bytes(words.tobytes())
    with pytest.raises(ShapeError, match="one length"):
        list(open_vectors(tmp_path / "a.fvecs").chunks(10))


def test_damaged_pages_of_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    parquet(path, np.random.default_rng(0).normal(size=(100, 8)))
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="truncated"):
        list(open_vectors(path).chunks(10))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"column": "no"}, "no column 'no'; it has vectors, item"),
        ({"id_column": "no"}, "no column 'no'; it has vectors, item"),
        ({"key": "no"}, "no array 'no', as .npz files have"),
    ],
)
def test_unknown_names_in_parquet(tmp_path, options, words):
    parquet(tmp_path / "a.parquet", [[1.0]], item=["a"])
    with pytest.raises(ConfigError, match=words):
        open_vectors(tmp_path / "a.parquet", **options)
    with pytest.raises(DataError, match="lists of numbers"):
        open_vectors(tmp_path / "a.parquet", column="item")


def test_options_of_another_format(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((2, 2)))
    for options in ({"key": "a"}, {"column": "a"}, {"id_column": "a"}):
        with pytest.raises(ConfigError, match="Leave it out"):
            open_vectors(tmp_path / "a.npy", **options)


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("a.csv", ConfigError, "has to end in"),
        ("no/a.npy", ArtifactError, "no folder"),
    ],
)
def test_bad_outputs(tmp_path, path, error, words):
    with pytest.raises(error, match=words):
        write_vectors(tmp_path / path, [np.ones((1, 1))], rows=1, dim=1)
    assert list(tmp_path.iterdir()) == []


def test_ids_need_parquet(tmp_path):
    ids = pa.chunked_array([["a"]])
    with pytest.raises(ConfigError, match=r"\.parquet"):
        write_vectors(tmp_path / "a.npy", [np.ones((1, 1))], rows=1, dim=1, ids=ids)
    assert list(tmp_path.iterdir()) == []
