"""Growth: what is published stays, what is removed is not given again, versions follow."""

import copy
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit import ResidualQuantizer, SemanticIDs
from rqtoolkit.errors import ConfigError, DataError, ShapeError

QUICK = {"iterations": 5, "rounds": 1, "beam": 2}
VECTORS = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
VECTORS[40:] = VECTORS[:24]  # some items are alike


@pytest.fixture(scope="module")
def quantizer():
    return ResidualQuantizer(4, 2, 8).fit(VECTORS, **QUICK)


def assigned(quantizer, items, collisions="match"):
    names = [f"n{item}" for item in items]
    return SemanticIDs.assign(quantizer, VECTORS[items], names, collisions=collisions)


def test_add_appends_and_moves_nothing(quantizer):
    ids = assigned(quantizer, range(30))
    before, parent, fitted_mse = ids.codes.copy(), ids.version, ids.mse
    delta = ids.add(VECTORS[25:40], [f"n{i}" for i in range(25, 40)])
    assert delta.item_ids.tolist() == [f"n{i}" for i in range(30, 40)]
    assert len(delta) == 10
    np.testing.assert_array_equal(ids.codes[:30], before)
    np.testing.assert_array_equal(ids.codes[30:], delta.codes)
    assert ids.item_ids.tolist() == [f"n{i}" for i in range(40)]
    assert ids.added.tolist() == [0] * 30 + [1] * 10
    assert (delta.number, delta.version, delta.parent) == (1, ids.version, parent)
    assert (ids.number, ids.parent, ids.history) == (1, parent, (parent,))
    squared = np.square(ids.decode(delta.codes) - VECTORS[30:40]).sum(axis=1)
    assert delta.mse == pytest.approx(squared.mean())
    assert delta.fitted_mse == ids.mse == fitted_mse


def test_adding_again_changes_nothing(quantizer):
    ids = assigned(quantizer, range(30))
    ids.add(VECTORS[30:35], [f"n{i}" for i in range(30, 35)])
    version, codes = ids.version, ids.codes.copy()
    again = ids.add(-VECTORS[30:35], [f"n{i}" for i in range(30, 35)])  # other vectors, too
    assert len(again) == 0
    assert again.codes.shape == (0, 2)
    assert np.isnan(again.mse)
    assert (ids.version, again.version, again.number) == (version, version, 1)
    np.testing.assert_array_equal(ids.codes, codes)


def test_order_of_new_rows_changes_nothing(quantizer):
    names = np.array([f"n{i}" for i in range(64)])
    for collisions in ("match", "token", "allow"):
        ids = assigned(quantizer, range(30), collisions)
        other = copy.deepcopy(ids)
        ids.add(VECTORS[30:60], names[30:60])
        other.add(VECTORS[30:60][::-1], names[30:60][::-1])
        assert ids.version == other.version
        np.testing.assert_array_equal(ids.codes[30:], other.codes[30:][::-1])


def test_removed_codes_are_not_given_again(quantizer):
    ids = assigned(quantizer, range(24))
    gone = ids.lookup(["n3", "n5"])
    assert ids.remove(["n5", "n3", "n3"]) == 2
    assert "n3" not in ids
    assert len(ids) == 22
    assert sorted(ids.retired_ids.tolist()) == ["n3", "n5"]
    assert ids.items_of(gone).tolist() == [None, None]
    assert ids.remove(["n3"]) == 0
    assert ids.number == 1
    twin = ids.add(VECTORS[[3, 43]], ["n3", "n43"])  # one comes back, one is just like it
    assert not (twin.codes[:, None] == gone).all(axis=2).any()
    with pytest.raises(DataError, match="1 unknown, such as 'n99'"):
        ids.remove(["n5", "n99"])


def test_counters_go_on_after_the_retired(quantizer):
    ids = SemanticIDs.assign(quantizer, VECTORS[[0, 0, 0]], [1, 2, 3], collisions="token")
    assert ids.codes[:, 2].tolist() == [0, 1, 2]
    ids.remove([3])
    assert ids.codebook_sizes == (8, 8, 3)
    delta = ids.add(VECTORS[[0, 0]], [4, 5])
    assert delta.codes[:, 2].tolist() == [3, 4]
    assert ids.codebook_sizes == (8, 8, 5)


def test_until_all_codes_are_taken(quantizer):
    x = np.random.default_rng(1).normal(size=(65, 4)).astype(np.float32)
    ids = SemanticIDs.assign(quantizer, x[:60])
    assert len(np.unique(ids.add(x[60:64], range(60, 64)).codes, axis=0)) == 4
    version = ids.version
    with pytest.raises(DataError, match="larger codebook_size"):
        ids.add(x[64:], [64])
    ids.remove([0])
    with pytest.raises(DataError, match="larger codebook_size"):
        ids.add(x[64:], [64])  # a retired code is not free
    assert ids.parent == version
    assert len(ids) == len(ids.codes) == len(ids.added) == 63


def test_other_kinds_of_new_items(quantizer):
    ids = assigned(quantizer, range(5))
    delta = ids.add(pd.DataFrame(VECTORS[5:7], index=["a much longer name", "z"]))
    assert delta.item_ids.tolist() == ["a much longer name", "z"]
    assert ids.item_ids.tolist() == ["n0", "n1", "n2", "n3", "n4", "a much longer name", "z"]
    with pytest.raises(ConfigError, match="item_ids=None"):
        ids.add(VECTORS[:2])
    with pytest.raises(DataError, match="strings as those of the items; got integers"):
        ids.add(VECTORS[:2], [1, 2])
    with pytest.raises(DataError, match="distinct"):
        ids.add(VECTORS[:2], ["x", "x"])
    with pytest.raises(ShapeError, match=r"\(N, 4\).*\(2, 3\)"):
        ids.add(VECTORS[:2, :3], ["x", "y"])


def test_all_items_removed(quantizer, tmp_path):
    ids = assigned(quantizer, range(3))
    ids.remove(ids.item_ids)
    assert len(ids) == 0
    assert ids.lookup(["n0"], errors="null").tolist() == [[-1, -1]]
    ids.save(tmp_path / "ids")
    loaded = SemanticIDs.load(tmp_path / "ids")
    delta = loaded.add(VECTORS[:3], ["n0", "n1", "n2"])
    assert not (delta.codes[:, None] == ids.retired_codes).all(axis=2).any()


events = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "save"]), st.sets(st.integers(0, 39), max_size=8)),
    max_size=8,
)


@settings(max_examples=15)
@given(events=events, collisions=st.sampled_from(["match", "token", "allow"]), names=st.booleans())
def test_any_history_keeps_its_promises(quantizer, events, collisions, names):
    label = (lambda item: f"n{item}") if names else int
    first = [label(item) for item in range(4)]
    ids = SemanticIDs.assign(quantizer, VECTORS[:4], first, collisions=collisions)
    published = dict(zip(first, map(tuple, ids.codes), strict=True))
    retired = []
    for event, items in events:
        items = sorted(items)
        version, labels = ids.version, list(map(label, items))
        if event == "add" and items:
            delta = ids.add(VECTORS[items], labels)
            assert set(delta.item_ids.tolist()) == set(labels) - set(published)
            assert (ids.version == version) == (len(delta) == 0)
            published |= dict(zip(delta.item_ids.tolist(), map(tuple, delta.codes), strict=True))
            assert len(ids.add(VECTORS[items], labels)) == 0
        elif event == "remove" and items:
            known = [name for name in labels if name in published]
            assert ids.remove(np.array(known, ids.item_ids.dtype)) == len(known)
            retired += [published.pop(name) for name in known]
        elif event == "save":
            with tempfile.TemporaryDirectory() as folder:
                ids.save(Path(folder) / "ids")
                loaded = SemanticIDs.load(Path(folder) / "ids")
            for name in ("version", "history", "collisions", "codebook_sizes", "mse", "number"):
                assert getattr(loaded, name) == getattr(ids, name)
            for name in ("item_ids", "codes", "added", "retired_ids", "retired_codes"):
                np.testing.assert_array_equal(getattr(loaded, name), getattr(ids, name))
            ids = loaded
        assert len(set(ids.history)) == len(ids.history)
        assert dict(zip(ids.item_ids.tolist(), map(tuple, ids.codes), strict=True)) == published
        assert sorted(map(tuple, ids.retired_codes)) == sorted(retired)
        if collisions != "allow":
            assert len({*published.values(), *retired}) == len(published) + len(retired)


def grown(seed=0, items=400, dim=6):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(16, dim))
    return (centers[rng.integers(0, 16, items)] + 0.2 * rng.normal(size=(items, dim))).astype("f4")


def test_warm_refit_keeps_most_first_codes_and_error():
    x = grown()
    fit = {"codebook_size": 16, "settings": QUICK}
    old = SemanticIDs.fit(x[:360], **fit)
    version, codes = old.version, old.codes.copy()
    new, stability = old.refit(x, np.arange(400))
    assert (old.version, new.parent, new.history) == (version, version, (version,))
    assert (new.number, len(new), set(new.added.tolist())) == (1, 400, {1})
    np.testing.assert_array_equal(old.codes, codes)
    assert stability.items == 360
    assert stability.kept == tuple(
        (new.codes[:360, :depth] == codes[:, :depth]).all(axis=1).mean() for depth in (1, 2, 3)
    )
    assert stability.kept[0] >= 0.9
    assert stability.new_mse <= stability.old_mse
    raw = np.square(new.decode(new.encode(x)) - x).sum(axis=1).mean()
    assert stability.new_mse == pytest.approx(raw)
    cold, chance = old.refit(x, np.arange(400), warm_start=False, codebook_size=8)
    assert cold.codebook_sizes == (8, 8, 8)
    assert cold.fitted_with == old.fitted_with | {"codebook_size": 8}
    assert chance.kept[0] < 0.5
    assert (cold.codes == SemanticIDs.fit(x, codebook_size=8, settings=QUICK).codes).all()


def test_refit_of_a_balanced_quantizer_is_balanced():
    x = grown()
    old = SemanticIDs.fit(x[:360], codebook_size=8, settings=QUICK, balance=2.0)
    new, _ = old.refit(x, np.arange(400))
    assert old.quantizer.penalties.numel()
    assert new.quantizer.penalties.numel()
    assert np.bincount(new.encode(x)[:, 0]).max() <= 2 * 400 / 8
    assert new.fitted_with == old.fitted_with


def test_refit_says_what_it_cannot(quantizer):
    ids = assigned(quantizer, range(10))
    with pytest.raises(ConfigError, match="codebooks that were given"):
        ids.refit(VECTORS[:10], warm_start=False)
    with pytest.raises(ConfigError, match="10 items published; got 11 rows"):
        ids.refit(VECTORS[:11])
    with pytest.raises(ConfigError, match="codebook_size=4"):
        ids.refit(VECTORS[:10], codebook_size=4)
    with pytest.raises(ConfigError, match="Did you mean 'rounds'"):
        ids.refit(VECTORS[:10], settings={"roundes": 4})
    new, stability = ids.refit(VECTORS[:10])
    assert new.item_ids.tolist() == ids.item_ids.tolist()
    assert stability.items == 10


@pytest.mark.slow
def test_growth_of_the_beauty_catalogue(shared_data):
    x = np.load(shared_data("data/recsys/beauty/item_embeddings.npy"))
    order = np.random.default_rng(0).permutation(len(x))
    first, all_items = order[:11_001], np.arange(len(x))
    ids = SemanticIDs.fit(x[first], first)
    codes = ids.codes.copy()
    delta = ids.add(x, all_items)
    assert len(delta) == 1_100
    np.testing.assert_array_equal(ids.codes[:11_001], codes)
    assert len(np.unique(ids.codes, axis=0)) == 12_101
    assert delta.mse < 1.2 * delta.fitted_mse
    _, stability = ids.refit(x, all_items)
    assert stability.kept[0] > 0.9
    assert stability.new_mse < stability.old_mse


@pytest.mark.parametrize("collisions", ["match", "token"])
def test_retired_codes_stay_so_through_a_warm_refit(collisions, tmp_path):
    names = np.array([f"n{i}" for i in range(40)])
    ids = SemanticIDs.fit(
        VECTORS[:40], names, depth=2, codebook_size=8, settings=QUICK, collisions=collisions
    )
    ids.remove(names[:3])
    dropped = ids.lookup(names[3:5])
    new, _ = ids.refit(VECTORS[5:40], names[5:])
    assert new.retired_ids.tolist() == names[:5].tolist()
    np.testing.assert_array_equal(new.retired_codes, np.concatenate([ids.retired_codes, dropped]))
    new.save(tmp_path / "ids")
    new = SemanticIDs.load(tmp_path / "ids")
    new.add(VECTORS[:5], [f"same vector as n{i}" for i in range(5)])
    given = {tuple(codes) for codes in new.codes.tolist()}
    assert not given & {tuple(codes) for codes in new.retired_codes.tolist()}
    assert len(given) == len(new) == 40
    anew, _ = ids.refit(VECTORS[5:40], names[5:], warm_start=False)
    assert len(anew.retired_ids) == len(anew.retired_codes) == 0
