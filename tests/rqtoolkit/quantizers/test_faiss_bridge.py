"""`to_faiss`, `from_faiss` and recall against faiss's own encoder, decoder and search."""

import gc

import numpy as np
import pytest
import torch

faiss = pytest.importorskip("faiss")

from rqtoolkit import ResidualQuantizer  # noqa: E402
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError  # noqa: E402
from rqtoolkit.functional.codes import pack_codes  # noqa: E402
from rqtoolkit.functional.recall import recall_at  # noqa: E402
from rqtoolkit.io.faiss_index import add_codes, write_index  # noqa: E402
from rqtoolkit.quantizers.recall import evaluate_recall  # noqa: E402

DIM = 12


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, DIM)) * 3
    return (centers[rng.integers(0, 20, 900)] + rng.normal(size=(900, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(x):
    return ResidualQuantizer(DIM, 3, [32, 16, 16]).fit(x, rounds=1, starts=1, beam=4)


def stored(index):
    return faiss.vector_to_array(index.codes).reshape(index.ntotal, -1)


def agreement(a, b):
    return (np.asarray(a) == np.asarray(b)).all(axis=1).mean()


def test_index_holds_our_codes_and_decodes_as_we_do(x, fitted):
    codes = fitted.encode(torch.from_numpy(x))
    packed = pack_codes(codes, fitted.codebook_sizes)
    index = fitted.to_faiss(x)
    assert (stored(index) == packed).all()
    assert (stored(fitted.to_faiss(codes=codes)) == packed).all()
    assert (index.sa_decode(packed) == fitted.decode(codes).numpy()).all()


@pytest.mark.parametrize("beam", [1, 4])
def test_faiss_encodes_as_we_do(x, fitted, beam):
    codes = fitted.encode(torch.from_numpy(x), beam=beam)
    index = fitted.to_faiss()
    assert index.ntotal == 0
    assert index.rq.max_beam_size == 4
    index.rq.max_beam_size = beam
    packed = pack_codes(codes, fitted.codebook_sizes)
    assert agreement(index.sa_encode(x), packed) > 0.99  # float32 leaves near ties open


def test_shared_codebook_is_repeated(x):
    quantizer = ResidualQuantizer(DIM, 3, 16, shared_codebook=True).fit(x, rounds=1, starts=1)
    codes = quantizer.encode(torch.from_numpy(x))
    index = quantizer.to_faiss(codes=codes)
    assert (index.sa_decode(stored(index)) == quantizer.decode(codes).numpy()).all()


def test_channels_first(fitted):
    quantizer = ResidualQuantizer(DIM, 3, [32, 16, 16], channels_first=True, beam=4)
    quantizer.load_state_dict(fitted.state_dict())
    images = torch.randn(2, DIM, 5, 4)
    index = quantizer.to_faiss(images, lists=3)
    assert index.ntotal == 2 * 5 * 4
    flat = images.movedim(1, -1).reshape(-1, DIM).contiguous().numpy()
    assert (stored(quantizer.to_faiss(images)) == stored(fitted.to_faiss(flat))).mean() > 0.99


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("lists", [None, 8])
def test_search_finds_what_decodes_nearest(x, fitted, metric, lists):
    index = fitted.to_faiss(x, metric=metric, lists=lists)
    gc.collect()
    if lists:
        index.nprobe = lists
    queries = x[:20] + 0.1
    scores, rows = index.search(queries, 5)
    decoded = fitted.decode(fitted.encode(torch.from_numpy(x))).numpy().astype(np.float64)
    every = queries @ decoded.T
    if metric == "l2":
        every = -np.square(queries[:, None] - decoded).sum(axis=2)
    best = -np.sort(-every, axis=1)[:, :5]
    np.testing.assert_allclose(np.take_along_axis(every, rows, 1), best, atol=1e-4)
    np.testing.assert_allclose(np.abs(scores), np.abs(best), rtol=1e-4, atol=1e-4)


def test_one_list_of_many_finds_most_neighbours(x, fitted):
    whole = fitted.to_faiss(x).search(x[:100], 1)[1]
    for build in (x, None):
        codes = None if build is not None else fitted.encode(torch.from_numpy(x))
        index = fitted.to_faiss(build, codes=codes, lists=8, norms=True)
        assert agreement(index.search(x[:100], 1)[1], whole) > 0.5
        again = fitted.to_faiss(build, codes=codes, lists=8, norms=True)
        assert (again.search(x, 3)[1] == index.search(x, 3)[1]).all()


def test_codes_chunk_by_chunk(x, fitted):
    index = fitted.to_faiss()
    codes = fitted.encode(torch.from_numpy(x)).numpy()
    for start in range(0, 900, 250):
        add_codes(index, codes[start : start + 250])
    assert (stored(index) == stored(fitted.to_faiss(x))).all()


def test_a_quantizer_trained_in_faiss(x, tmp_path):
    index = faiss.IndexResidualQuantizer(DIM, 3, 4)
    index.rq.max_beam_size = 6
    index.train(x)
    index.add(x)
    write_index(tmp_path / "rq.faiss", index)
    for source in (index, tmp_path / "rq.faiss", str(tmp_path / "rq.faiss")):
        state = torch.get_rng_state()
        quantizer = ResidualQuantizer.from_faiss(source)
        assert (torch.get_rng_state() == state).all()
        assert quantizer.beam == 6
        assert quantizer.codebook_size == 16
        codes = quantizer.encode(torch.from_numpy(x))
        assert agreement(pack_codes(codes, quantizer.codebook_sizes), stored(index)) > 0.99
        back = quantizer.to_faiss(codes=codes)
        assert (back.sa_decode(stored(back)) == quantizer.decode(codes).numpy()).all()
        assert (back.sa_decode(stored(index)) == index.sa_decode(stored(index))).all()


def test_an_imported_quantizer_saves_and_learns_on(x, fitted, tmp_path):
    quantizer = ResidualQuantizer.from_faiss(fitted.to_faiss())
    assert quantizer.codebook_size == [32, 16, 16]
    assert (quantizer.codebooks == fitted.codebooks).all()
    quantizer.save(tmp_path / "rq.safetensors")
    loaded = ResidualQuantizer.load(tmp_path / "rq.safetensors")
    assert (loaded.codebooks == fitted.codebooks).all()
    before = quantizer(torch.from_numpy(x)).commitment_loss
    quantizer.train()
    for _ in range(20):
        quantizer(torch.from_numpy(x))
    assert quantizer.eval()(torch.from_numpy(x)).commitment_loss <= before * 1.01


def test_recall_is_that_of_the_exported_index(x, fitted):
    queries, base = x[:50], x[50:]
    chunks = (base[start : start + 300] for start in range(0, len(base), 300))
    recalls = evaluate_recall(fitted, chunks, queries, ks=(1, 5, 20), threads=1)
    for metric, recall in recalls.items():
        flat = faiss.IndexFlat(
            DIM, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
        )
        flat.add(base)
        exact = flat.search(queries, 20)[1]
        found = fitted.to_faiss(base, metric=metric).search(queries, 20)[1]
        theirs = recall_at(exact, found, (1, 5, 20))
        # Vectors of equal codes may come in another order: a few of the 50 queries at most.
        assert recall.one_recall_at == pytest.approx(theirs.one_recall_at, abs=0.1)
        assert recall.k_recall_at == pytest.approx(theirs.k_recall_at, abs=0.1)


def test_errors(x, fitted, tmp_path):
    with pytest.raises(ConfigError, match="codebook_size=48 of level 0 is no power of two"):
        ResidualQuantizer(DIM, 2, 48).to_faiss()
    with pytest.raises(ShapeError, match="dim=12"):
        fitted.to_faiss(x[:, :5])
    with pytest.raises(ShapeError, match="whole stacks"):
        fitted.to_faiss(codes=np.zeros((4, 2), dtype=np.int64))
    with pytest.raises(ShapeError, match="one for each row of codes"):
        fitted.to_faiss(x, codes=np.zeros((4, 3), dtype=np.int64))
    with pytest.raises(DataError, match="integers"):
        fitted.to_faiss(codes=np.zeros((4, 3)))
    with pytest.raises(ConfigError, match="Pass some"):
        fitted.to_faiss(lists=4)
    with pytest.raises(ConfigError, match="lists=9 needs"):
        fitted.to_faiss(x[:8], lists=9)
    with pytest.raises(ConfigError, match="lists=0"):
        fitted.to_faiss(x, lists=0)
    with pytest.raises(ArtifactError, match="is no file"):
        ResidualQuantizer.from_faiss(tmp_path / "none.faiss")
    with pytest.raises(ConfigError, match="IndexFlatL2"):
        ResidualQuantizer.from_faiss(faiss.IndexFlatL2(4))
    with pytest.raises(DataError, match="k=2000"):
        evaluate_recall(fitted, [x], x[:3], ks=(2000,))
