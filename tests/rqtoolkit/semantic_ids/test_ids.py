"""SemanticIDs: what goes in, what comes out, and the traps that others fell into."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rqtoolkit import ResidualQuantizer, SemanticIDs
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids import Standardization

QUICK = {"iterations": 5, "rounds": 1, "beam": 2}


def points(items=120, dim=8, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, dim))
    x = centers[rng.integers(0, 12, items)] + 0.3 * rng.normal(size=(items, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def fit(x, item_ids=None, **options):
    options = {"depth": 3, "codebook_size": 8, "settings": QUICK} | options
    return SemanticIDs.fit(x, item_ids, **options)


@pytest.fixture(scope="module")
def fitted():
    return fit(points(), [f"item {i}" for i in range(120)])


def test_shapes_types_and_distinct_codes(fitted):
    assert len(fitted) == 120
    assert fitted.codes.shape == (120, 3)
    assert fitted.codes.dtype == np.int64
    assert fitted.added.dtype == np.int32
    assert not fitted.added.any()
    assert fitted.item_ids.dtype.kind == "U"
    assert (fitted.depth, fitted.length, fitted.dim, fitted.number) == (3, 3, 8, 0)
    assert fitted.codebook_sizes == (8, 8, 8)
    assert fitted.parent is None
    assert len(np.unique(fitted.codes, axis=0)) == 120


def test_mse_is_in_input_units(fitted):
    x = points()
    assert fitted.mse == pytest.approx(
        np.square(fitted.decode(fitted.codes) - x).sum(axis=1).mean()
    )
    tenfold = fit(10 * x, fitted.item_ids)
    assert tenfold.mse == pytest.approx(100 * fitted.mse, rel=0.02)
    # The mean alone would do much worse: unit vectors have not collapsed to one code.
    assert fitted.mse < 0.5 * np.square(x - x.mean(axis=0)).sum(axis=1).mean()
    assert len(np.unique(fitted.codes[:, 0])) == 8


def test_order_of_rows_changes_nothing():
    x = points()
    names = np.array([f"item {i}" for i in range(len(x))])
    order = np.random.default_rng(1).permutation(len(x))
    ids, shuffled = fit(x, names), fit(x[order], names[order])
    assert (ids.codes[order] == shuffled.codes).all()
    assert ids.version == shuffled.version
    few = {"settings": QUICK | {"max_rows": 50}}
    assert (fit(x, names, **few).codes[order] == fit(x[order], names[order], **few).codes).all()


def test_same_seed_same_version_and_no_global_chance():
    x = points()
    torch.manual_seed(1)
    first = fit(x)
    state = torch.random.get_rng_state()
    second = fit(x)
    assert (torch.random.get_rng_state() == state).all()
    assert first.version == second.version
    assert fit(x, seed=1).version != first.version


@pytest.mark.parametrize("collisions", ["match", "token", "allow"])
def test_ways_with_collisions(collisions):
    x = np.repeat(points(40), 3, axis=0)  # exact duplicates
    ids = fit(x, collisions=collisions, codebook_size=(4, 4, 8))
    distinct = len(np.unique(ids.codes, axis=0))
    assert distinct == len(x) if collisions != "allow" else distinct <= 40
    assert ids.length == (4 if collisions == "token" else 3)
    assert (ids.codes < ids.codebook_sizes).all()
    if collisions == "token":
        assert ids.codes[:, 3].min() == 0
        assert ids.codebook_sizes[3] == ids.codes[:, 3].max() + 1
        np.testing.assert_array_equal(ids.codes[:, :3], ids.encode(x))
        np.testing.assert_array_equal(ids.decode(ids.codes), ids.decode(ids.codes[:, :3]))


def test_assigning_twice_is_assigning_once():
    quantizer = ResidualQuantizer(8, 3, 8).fit(points(), **QUICK)
    given = {"standardization": Standardization.identity(8)}
    first = SemanticIDs.assign(quantizer, points(), **given)
    second = SemanticIDs.assign(quantizer, points())
    assert (first.codes == second.codes).all()
    assert first.version == second.version
    assert len(np.unique(first.codes, axis=0)) == len(first)
    with pytest.raises(ShapeError, match=r"\(N, 8\).*\(5, 9\)"):
        SemanticIDs.assign(quantizer, np.zeros((5, 9)))


def test_all_kinds_of_embeddings_give_the_same(tmp_path):
    x, names = points(60), [f"n{i}" for i in range(60)]
    expected = fit(x, names)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x)
    pq.write_table(pa.table({"name": names, "v": list(x)}), tmp_path / "x.parquet")
    frame = pd.DataFrame({"name": names, "v": list(x), "price": range(60)})
    by_columns = {"column": "v", "id_column": "name"}
    others = [
        fit(np.load(tmp_path / "x.npy", mmap_mode="r"), names),
        fit(torch.from_numpy(x), names),
        fit(x.tolist(), np.array(names, object)),
        fit(tmp_path / "x.npy", names),
        fit(str(tmp_path / "x.npz"), names),
        fit(tmp_path / "x.parquet", **by_columns),
        fit(tmp_path / "x.parquet", names),
        fit(pd.DataFrame(x, index=names)),
        fit(pd.Series(list(x), index=names)),
        fit(frame, **by_columns),
        fit(frame.set_index("name"), column="v"),
        fit(pd.DataFrame(x).assign(name=names), id_column="name"),
    ]
    assert [ids.version for ids in others] == [expected.version] * len(others)
    plain = fit(x)
    assert plain.item_ids.tolist() == list(range(60))


@pytest.mark.parametrize(
    ("embeddings", "options", "error", "said"),
    [
        (np.zeros(5), {}, ShapeError, r"\(N, dim\)"),
        (np.zeros((0, 5)), {}, ShapeError, "neither 0"),
        (np.full((9, 2), np.nan), {}, DataError, "row 0"),
        (np.array([["a"]]), {}, DataError, "real numbers"),
        (np.zeros((9, 2), complex), {}, DataError, "real numbers"),
        (points(9), {"item_ids": [1, 2]}, ShapeError, "2 ids for 9 rows"),
        (points(9), {"item_ids": [1] * 9}, DataError, "distinct"),
        (points(9), {"column": "x"}, ConfigError, "Parquet files and data frames"),
        (pd.DataFrame(points(9)), {"column": "x"}, ConfigError, "'x' is not in"),
        (pd.Series([[1.0], [1.0, 2.0]]), {}, ShapeError, "one length"),
        ("nowhere.npy", {}, ArtifactError, "does not exist"),
        (points(), {"method": "pq"}, ConfigError, "residual"),
        (points(), {"collisions": "sinkhorn"}, ConfigError, "match, token, allow"),
        (points(), {"depth": 0}, ConfigError, "depth=0"),
        (points(), {"codebook_size": (8, 8)}, ConfigError, "one size per level"),
        (points(), {"balance": 0.5}, ConfigError, "at least 1"),
        (points(), {"settings": {"round": 3}}, ConfigError, "Did you mean 'rounds'"),
        (points(), {"settings": {"rounds": print}}, ConfigError, "manifest"),
        (points(), {"settings": {"colour": 3}}, ConfigError, "Known: "),
        (points(), {"depth": 1}, ConfigError, "Raise codebook_size or depth"),
    ],
)
def test_errors_name_the_argument(embeddings, options, error, said):
    with pytest.raises(error, match=said):
        fit(embeddings, options.pop("item_ids", None), **options)


def test_codebook_shrinks_to_few_items_with_one_warning():
    with pytest.warns(UserWarning, match="codebook_size=256 exceeds.*got 5 items") as caught:
        ids = fit(points(5), codebook_size=256)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert ids.codebook_sizes == (5, 5, 5)
    assert len(np.unique(ids.codes, axis=0)) == 5
    with pytest.warns(UserWarning, match="got 1 items"):
        assert fit(points(1)).codes.tolist() == [[0, 0, 0]]


def test_as_many_items_as_codes_and_fewer_distinct_vectors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = fit(points(8))
        same = fit(np.tile(points(3), (40, 1)))
    assert ids.mse < 1e-6
    for some in (ids, same):
        assert len(np.unique(some.codes, axis=0)) == len(some)
        assert np.isfinite(some.decode(some.codes)).all()


def test_constant_columns_and_large_offsets():
    x = np.concatenate([points(), np.full((120, 2), 0.25, np.float32)], axis=1)
    for scale_columns in (False, True):
        ids = fit(x, scale_columns=scale_columns)
        assert np.isfinite(ids.decode(ids.codes)).all()
        np.testing.assert_allclose(ids.decode(ids.codes)[:, -2:], 0.25, atol=1e-3)
    shifted = fit(points() + 1000)
    assert shifted.mse == pytest.approx(fit(points()).mse, rel=0.05)


def test_lookups_both_ways(fitted):
    names = fitted.item_ids[[7, 3, 7]]
    codes = fitted.lookup(names)
    np.testing.assert_array_equal(codes, fitted.codes[[7, 3, 7]])
    assert fitted.items_of(codes).tolist() == names.tolist()
    np.testing.assert_array_equal(fitted["item 5"], fitted.codes[5])
    assert "item 5" in fitted
    assert "item 500" not in fitted
    assert 5 not in fitted
    assert list(fitted)[:2] == ["item 0", "item 1"]
    null = fitted.lookup(["item 5", "other"], errors="null")
    assert null[1].tolist() == [-1, -1, -1]
    assert fitted.items_of(np.stack([null, null])).tolist() == [["item 5", None]] * 2
    assert fitted.items_of([[8, 0, 0], [0, 0, 2**40]]).tolist() == [None, None]
    with pytest.raises(DataError, match="1 of 2 item_ids are not published, such as 'other'"):
        fitted.lookup(["item 5", "other"])
    with pytest.raises(DataError, match="strings as those"):
        fitted.lookup([5])
    with pytest.raises(KeyError, match="other"):
        fitted["other"]
    with pytest.raises(ShapeError, match=r"\(\.\.\., 3\)"):
        fitted.items_of([[1, 2]])
    with pytest.raises(ConfigError, match="errors='ignore'"):
        fitted.lookup(["item 5"], errors="ignore")
    assert fitted.lookup([]).shape == (0, 3)


def test_all_items_of_shared_codes():
    ids = SemanticIDs.from_codes([[0, 1], [2, 2], [0, 1]], ["a", "b", "c"])
    assert ids.items_of([[0, 1], [1, 1]]).tolist() == ["a", None]
    found = ids.items_of([[0, 1], [1, 1], [-1, 0]], all=True)
    assert [items.tolist() for items in found] == [["a", "c"], [], []]


def test_codes_made_elsewhere(fitted):
    ids = SemanticIDs.from_codes(
        fitted.codes, fitted.item_ids, codebook_sizes=(8, 8, 9), collisions="match"
    )
    assert ids.quantizer is None
    assert ids.dim is None
    assert np.isnan(ids.mse)
    assert ids.codebook_sizes == (8, 8, 9)
    np.testing.assert_array_equal(ids["item 4"], fitted["item 4"])
    for refused in (
        lambda: ids.encode(points()),
        lambda: ids.decode(ids.codes),
        lambda: ids.add(points(), fitted.item_ids),
        lambda: ids.refit(points()),
    ):
        with pytest.raises(ConfigError, match="there are no codebooks"):
            refused()
    with pytest.raises(DataError, match="differ"):
        SemanticIDs.from_codes([[0], [0]], collisions="match")
    with pytest.raises(ShapeError, match="2 rows; got 1"):
        SemanticIDs.from_codes([[0], [1]], ["a"])
    counted = SemanticIDs.from_codes([[0, 0], [0, 1]], collisions="token")
    assert (counted.depth, counted.codebook_sizes) == (1, (1, 2))


def test_encode_and_decode(fitted):
    x = points()
    raw = fitted.encode(x)
    assert raw.shape == (120, 3)
    error = np.square(fitted.decode(raw) - x).sum(axis=1)
    published = np.square(fitted.decode(fitted.codes) - x).sum(axis=1)
    assert error.mean() <= published.mean()
    assert fitted.decode(raw[:, :1]).shape == x.shape
    assert fitted.decode(raw[3]).shape == (8,)
    with pytest.raises(ShapeError, match=r"\(N, 8\)"):
        fitted.encode(np.zeros((2, 7)))
    with pytest.raises(DataError, match="in row 1"):
        fitted.encode(np.where(np.arange(2)[:, None] == 1, np.inf, x[:2]))


def test_numbers_of_numpy_are_as_good_as_plain_ones(tmp_path):
    settings = QUICK | {"rounds": np.int64(1)}
    ids = fit(
        points(),
        codebook_size=np.int64(8),
        depth=np.int32(3),
        seed=np.int64(0),
        **{"settings": settings},
    )
    assert ids.version == fit(points()).version
    ids.save(tmp_path / "ids")
    assert SemanticIDs.load(tmp_path / "ids").fitted_with == ids.fitted_with


def test_tables_tokens_features_and_figures(fitted):
    table = fitted.prefix_table()
    states = table.start(2)
    for level in range(3):
        states = table.step(states, fitted.codes[[3, 9], level])
    assert table.rows(states).tolist() == [3, 9]
    some = fitted.prefix_table(["item 9"])
    assert len(some) == 1
    with pytest.raises(DataError, match="'other'"):
        fitted.prefix_table(["other"])
    first = fitted.codes[0]
    assert fitted.tokens()[0].count("<") == 3
    assert fitted.tokens("({level}:{code})")[0].endswith(f":{first[2]})")
    ngrams = fitted.prefix_ngrams()
    assert ngrams[0].tolist() == [
        first[0],
        first[0] * 8 + first[1],
        (first[0] * 8 + first[1]) * 8 + first[2],
    ]
    assert fitted.report(points()).items == 120


def test_too_few_codes_to_match_are_refused_before_the_fit():
    told = []
    arguments = {"depth": 2, "codebook_size": [8, 14], "progress": lambda *step: told.append(step)}
    with pytest.raises(ConfigError, match=r"\(8, 14\) makes 112 codes.*120 items.*Raise"):
        SemanticIDs.fit(points(), **arguments)
    assert not told
    assert len(SemanticIDs.fit(points(), collisions="token", settings=QUICK, **arguments)) == 120
    assert told


@pytest.mark.slow  # trains networks
def test_other_quantizers():
    neural = fit(points(), method="neural", settings={"epochs": 1, "width": 8, "beam": 2})
    assert type(neural.quantizer).__name__ == "NeuralResidualQuantizer"
    assert neural.quantizer.width == 8
    assert len(np.unique(neural.codes, axis=0)) == 120
    with pytest.raises(ConfigError, match="warm_start=False"):
        neural.refit(points())


def test_large_map_is_read_a_chunk_at_a_time(tmp_path, monkeypatch):
    from rqtoolkit.semantic_ids import inputs

    x, quantizer = points(500), ResidualQuantizer(8, 3, 8).fit(points(500), **QUICK)
    np.save(tmp_path / "x.npy", x)
    whole = SemanticIDs.assign(quantizer, x)
    largest = []
    finite = inputs.Embeddings._finite
    monkeypatch.setattr(inputs, "_CHUNK_BYTES", 4 * 8 * 64)
    monkeypatch.setattr(
        inputs.Embeddings, "_finite", lambda *a: largest.append(len(a[1])) or finite(*a)
    )
    ids = SemanticIDs.assign(quantizer, tmp_path / "x.npy", collisions="allow")
    np.testing.assert_array_equal(ids.encode(tmp_path / "x.npy"), ids.codes)
    assert ids.mse == pytest.approx(np.square(ids.decode(ids.codes) - x).sum(axis=1).mean())
    mapped = SemanticIDs.assign(quantizer, np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert mapped.version == whole.version
    assert largest.count(64) > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": 3}, "settings=3 has to map names to values"),
        ({"settings": {"rounds": "x"}}, "settings has rounds='x'; got str in place of int"),
        ({"settings": {"rounds": True}}, "settings has rounds=True; got bool in place of int"),
        ({"settings": {"time_budget": "x"}}, "got str in place of float or None"),
        ({"balance": "x"}, "balance='x' must be a finite number of at least 1"),
        ({"balance": 0}, "balance=0 must be a finite number of at least 1"),
        ({"balance": 2.0, "method": "rqvae", "settings": {}}, "fit: balance=2.0 needs a Residual"),
        ({"balance": 2.0, "settings": {"target_bits": 3.0}}, "target_bits both set penalties"),
        ({"threads": 0}, "threads=0 must be an integer of at least 1"),
        ({"threads": "a"}, "threads='a' must be an integer"),
        ({"seed": None}, "seed=None must be an integer from 0 to"),
        ({"seed": "a"}, "seed='a' must be an integer"),
        ({"seed": 1.5}, "seed=1.5 must be an integer"),
        ({"seed": 2**70}, "must be an integer from 0 to"),
        ({"seed": -1}, "seed=-1 must be an integer"),
        ({"scale_columns": "yes"}, "scale_columns='yes' must be True or False"),
        ({"encoder": 3}, "encoder=3 must be a name, or None"),
        ({"method": "x", "codebook_size": 256}, "method='x' is unknown"),  # and no warning before
    ],
)
def test_arguments_of_the_wrong_kind_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        fit(points(60), **options)


def test_tables_that_are_no_embeddings_are_named_in_one_line():
    with pytest.raises(ShapeError, match="vectors of one length"):
        fit([[1, 2], [3]])
    table = pa.table({"item_id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    with pytest.raises(DataError, match=r"columns item_id, vector. Pass table.to_pandas") as error:
        fit(table)
    assert "\n" not in str(error.value)
    assert len(fit(table.to_pandas(), column="vector", id_column="item_id", codebook_size=2)) == 2


def test_codes_the_wrong_way_round_get_a_hint():
    codes = np.random.default_rng(0).integers(0, 8, (400, 3))
    with pytest.warns(UserWarning, match=r"3 items of 400 codes. Pass codes.T"):
        SemanticIDs.from_codes(codes.T)
    assert len(SemanticIDs.from_codes(codes[:2])) == 2  # few items are no mistake


def test_errors_name_the_method_that_was_called(fitted):
    for call, where in [
        (lambda: fitted.lookup([3]), "lookup"),
        (lambda: fitted.rows([3]), "rows"),
        (lambda: fitted.add(points(1), [3]), "add"),
        (lambda: fitted.remove([3]), "remove"),
        (lambda: fitted.prefix_table([3]), "prefix_table"),
    ]:
        with pytest.raises(DataError, match=rf"SemanticIDs.{where}: item_ids have to be strings"):
            call()


def test_one_item_as_of_a_dict(fitted):
    assert fitted.get("item 3").tolist() == fitted["item 3"].tolist()
    assert fitted.get("other") is None
    assert fitted.get("other", ()) == ()
    for strange in ("other", 3):
        with pytest.raises(KeyError):
            fitted[strange]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rqvae", {"latent_dim": 4, "hidden": [8], "epochs": 2, "batch_size": 8}),
        ("neural", {"width": 8, "epochs": 1, "batch_size": 8}),
        ("residual", QUICK),
    ],
)
@pytest.mark.parametrize("items", [8, 16, 40])
def test_batches_and_catalogues_no_larger_than_a_codebook(method, options, items):
    x = points(items + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*exceeds the number of items")
        ids = fit(x[:items], method=method, settings=options, codebook_size=16, depth=2)
    assert len(np.unique(ids.codes, axis=0)) == items
    assert np.isfinite(ids.mse)
    delta = ids.add(x[items:], [items])  # a batch of one
    assert np.isfinite(delta.mse)
    assert ids.items_of(delta.codes).tolist() == [items]


@pytest.mark.parametrize("collisions", ["match", "token", "allow"])
def test_levels_at_which_nothing_is_left_to_divide(collisions):
    x = np.repeat(points(6), 5, axis=0)  # each first code has one vector, whose residual is 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = fit(x, depth=4, codebook_size=6, collisions=collisions)
    assert ids.quantizer.codebooks.isfinite().all()
    assert (ids.encode(x)[::5, 0] == ids.encode(x)[4::5, 0]).all()
    assert len(np.unique(ids.encode(x), axis=0)) == 6
    figures = ids.report(x)
    assert figures.levels[0].used == 6
    assert all(0 < level.used <= 6 for level in figures.levels[1:4])  # and the rest are empty
    assert all(np.isfinite(level.perplexity) for level in figures.levels)
    ids.add(points(4, seed=5), range(100, 104))
    assert len(ids) == 34
    assert len(ids.prefix_table()) == len(np.unique(ids.codes, axis=0))
