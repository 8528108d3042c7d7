"""faiss indexes against plain sums of codewords, faiss's own encoder, and brute force."""

import builtins

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")

from rqtoolkit.errors import (  # noqa: E402
    ArtifactError,
    ConfigError,
    DataError,
    MissingDependencyError,
    ShapeError,
)
from rqtoolkit.functional.codes import pack_codes  # noqa: E402
from rqtoolkit.io.faiss_index import (  # noqa: E402
    add_codes,
    read_index,
    residual_index,
    residual_tables,
    write_index,
)

SIZES = [(16, 4, 32), (256, 256), (2, 1, 8), (1024, 2), (8, 8, 8, 8, 8)]


def made(sizes, dim=12, rows=300, seed=0):
    rng = np.random.default_rng(seed)
    tables = [
        (rng.normal(size=(size, dim)) / (level + 1)).astype(np.float32)
        for level, size in enumerate(sizes)
    ]
    codes = np.column_stack([rng.integers(0, size, rows) for size in sizes])
    return tables, codes, rng


def decoded(tables, codes):
    """Sum codewords in order, as the definition has it."""
    total = tables[0][codes[:, 0]].copy()
    for level in range(1, len(tables)):
        total += tables[level][codes[:, level]]
    return total


def stored(index, count):
    return faiss.vector_to_array(index.codes).reshape(count, -1)


def assert_same_search(index, metric, queries, vectors, k=10):
    """What the index finds is what scores best, up to float32."""
    scores, rows = index.search(queries, k)
    q, y = queries.astype(np.float64), vectors.astype(np.float64)
    every = q @ y.T if metric == "ip" else np.square(q[:, None] - y).sum(axis=2)
    best = -np.sort(-every, axis=1) if metric == "ip" else np.sort(every, axis=1)
    np.testing.assert_allclose(scores, best[:, :k], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(every, rows, 1), best[:, :k], atol=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_flat_index_holds_packed_codes_and_searches_what_they_decode_to(sizes, metric):
    tables, codes, rng = made(sizes)
    index = residual_index(tables, metric=metric)
    assert index.is_trained
    add_codes(index, codes)
    packed = pack_codes(codes, sizes)
    assert index.ntotal == 300
    assert (stored(index, 300) == packed).all()
    assert (index.sa_decode(packed) == decoded(tables, codes)).all()
    queries = rng.normal(size=(8, 12)).astype(np.float32)
    assert_same_search(index, metric, queries, decoded(tables, codes))


@pytest.mark.parametrize("sizes", SIZES)
def test_norms_follow_the_same_bits(sizes):
    tables, codes, rng = made(sizes)
    index = residual_index(tables, norms=True)
    add_codes(index, codes)
    bits = sum(size.bit_length() - 1 for size in sizes)
    rows = np.unpackbits(stored(index, 300), axis=1, bitorder="little")
    expected = np.unpackbits(pack_codes(codes, sizes), axis=1, bitorder="little")
    assert (rows[:, :bits] == expected[:, :bits]).all()
    norms = np.packbits(rows[:, bits : bits + 32], axis=1, bitorder="little").view(np.float32)
    np.testing.assert_allclose(norms[:, 0], np.square(decoded(tables, codes)).sum(1), rtol=1e-5)
    queries = rng.normal(size=(8, 12)).astype(np.float32)
    assert_same_search(index, "l2", queries, decoded(tables, codes))


@pytest.mark.parametrize("lists", [1, 5, 300])
@pytest.mark.parametrize(("metric", "norms"), [("l2", False), ("l2", True), ("ip", False)])
def test_inverted_index_over_all_lists_is_the_exhaustive_search(lists, metric, norms):
    tables, codes, rng = made((16, 4, 32), rows=400)
    centroids = rng.normal(size=(lists, 12)).astype(np.float32)
    index = residual_index(tables, metric=metric, norms=norms, centroids=centroids)
    assert index.is_trained
    assert not index.by_residual
    add_codes(index, codes[:150])
    add_codes(index, codes[150:], vectors=decoded(tables, codes[150:]))
    assert index.ntotal == 400
    index.nprobe = lists
    queries = rng.normal(size=(8, 12)).astype(np.float32)
    assert_same_search(index, metric, queries, decoded(tables, codes))


def test_inverted_index_files_vectors_as_faiss_does():
    tables, _, rng = made((16, 16))
    vectors = rng.normal(size=(200, 12)).astype(np.float32)
    centroids = rng.normal(size=(6, 12)).astype(np.float32)
    index = residual_index(tables, centroids=centroids, beam=3)
    theirs = residual_index(tables, centroids=centroids, beam=3)
    theirs.add(vectors)
    codes = faiss.ResidualQuantizer.compute_codes(index.rq, vectors)
    add_codes(index, np.column_stack([codes[:, 0] & 15, codes[:, 0] >> 4]), vectors)
    for number in range(6):
        mine = faiss.rev_swig_ptr(index.invlists.get_ids(number), index.get_list_size(number))
        their = faiss.rev_swig_ptr(theirs.invlists.get_ids(number), theirs.get_list_size(number))
        assert mine.tolist() == their.tolist()


@pytest.mark.parametrize("sizes", [(16, 4, 32), (256, 256)])
def test_tables_come_back(sizes):
    tables, _, _ = made(sizes)
    for index in (
        residual_index(tables, beam=7),
        residual_index(tables, beam=7, centroids=tables[0][:3]),
        residual_index(tables, beam=7).rq,
        faiss.IndexIDMap(residual_index(tables, beam=7)),
    ):
        back, beam = residual_tables(index)
        assert beam == 7
        assert len(back) == len(tables)
        assert all((a == b).all() for a, b in zip(back, tables, strict=True))


@pytest.mark.parametrize("kind", ["rotation", "pca", "opq", "two"])
def test_transforms_that_keep_distances_are_folded_into_the_tables(kind):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(600, 10)) @ rng.normal(size=(10, 10)) + 5).astype(np.float32)
    inner = faiss.IndexResidualQuantizer(6 if kind in ("pca", "two") else 10, 2, 4)
    transform = {
        "rotation": lambda: faiss.RandomRotationMatrix(10, 10),
        "pca": lambda: faiss.PCAMatrix(10, 6),
        "opq": lambda: faiss.OPQMatrix(10, 2),
        "two": lambda: faiss.PCAMatrix(10, 6),
    }[kind]()
    index = faiss.IndexPreTransform(transform, inner)
    if kind == "two":
        rotation = faiss.RandomRotationMatrix(10, 10)
        rotation.init(3)
        index.prepend_transform(rotation)
    index.train(x)
    tables, beam = residual_tables(index)
    packed = index.sa_encode(x)
    codes = np.column_stack([packed[:, 0] & 15, packed[:, 0] >> 4])
    np.testing.assert_allclose(decoded(tables, codes), index.sa_decode(packed), atol=1e-3)
    again = residual_index(tables, beam=beam).sa_encode(x)
    assert (again == packed).all(axis=1).mean() > 0.99  # rounding may break near ties


def test_file_round_trip(tmp_path):
    tables, codes, rng = made((16, 8))
    for centroids in (None, tables[0][:4]):
        index = residual_index(tables, beam=4, centroids=centroids)
        add_codes(index, codes)
        write_index(tmp_path / "a.faiss", index)
        back = read_index(tmp_path / "a.faiss")
        queries = rng.normal(size=(5, 12)).astype(np.float32)
        assert (back.search(queries, 4)[1] == index.search(queries, 4)[1]).all()
        assert residual_tables(back)[1] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.faiss"]


def test_files_that_are_no_index(tmp_path):
    with pytest.raises(ArtifactError, match="is no file"):
        read_index(tmp_path / "none.faiss")
    (tmp_path / "text.faiss").write_text("not an index at all")
    with pytest.raises(ArtifactError, match="no readable faiss index"):
        read_index(tmp_path / "text.faiss")
    tables, codes, _ = made((16, 8))
    index = residual_index(tables)
    add_codes(index, codes)
    write_index(tmp_path / "cut.faiss", index)
    whole = (tmp_path / "cut.faiss").read_bytes()
    (tmp_path / "cut.faiss").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="no readable faiss index"):
        read_index(tmp_path / "cut.faiss")


def test_export_errors():
    tables, codes, _ = made((16, 8))
    with pytest.raises(ConfigError, match=r"codebook_size=12 of level 1 .* with 8 or 16"):
        residual_index([tables[0], tables[0][:12]])
    with pytest.raises(ConfigError, match="no bits"):
        residual_index([tables[0][:1]])
    with pytest.raises(ConfigError, match="metric='cosine'"):
        residual_index(tables, metric="cosine")
    with pytest.raises(ConfigError, match="norms=True"):
        residual_index(tables, metric="ip", norms=True)
    index = residual_index(tables)
    with pytest.raises(ShapeError, match=r"\(N, 2\)"):
        add_codes(index, codes[:, :1])
    with pytest.raises(ShapeError, match=r"\(300, 12\)"):
        add_codes(index, codes, vectors=np.ones((4, 12), dtype=np.float32))
    with pytest.raises(DataError):
        add_codes(index, codes + 9)


def _whitening(x):
    index = faiss.IndexPreTransform(
        faiss.PCAMatrix(12, 4, -0.5), faiss.IndexResidualQuantizer(4, 2, 3)
    )
    index.train(x)
    return index


def _normalised(x):
    index = faiss.IndexPreTransform(
        faiss.NormalizationTransform(12), faiss.IndexResidualQuantizer(12, 2, 3)
    )
    index.train(x)
    return index


def _by_residual(_):
    tables, _, _ = made((16, 8))
    index = residual_index(tables, centroids=tables[0][:4])
    index.by_residual = True
    return index


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda _: faiss.IndexResidualQuantizer(12, 2, 3), "not trained"),
        (lambda _: faiss.IndexPQ(12, 2, 8), "got IndexPQ"),
        (lambda _: faiss.IndexLocalSearchQuantizer(12, 2, 4), "got IndexLocalSearchQuantizer"),
        (lambda _: faiss.IndexProductResidualQuantizer(12, 2, 2, 4), "got IndexProductResidual"),
        (lambda _: "index.faiss", "got str"),
        (_by_residual, "by_residual"),
        (_whitening, "changes distances"),
        (_normalised, "NormalizationTransform"),
    ],
)
def test_import_errors(make, match):
    x = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32) * np.arange(1, 13)
    with pytest.raises(ConfigError, match=match):
        residual_tables(make(x.astype(np.float32)))


def test_without_faiss(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError, match="rqtoolkit\\[cpu\\]"):
        residual_index(made((4, 4))[0])
    with pytest.raises(MissingDependencyError, match="rqtoolkit\\[cpu\\]"):
        read_index("some.faiss")
