import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from rqtoolkit.errors import ArtifactError, ConfigError, DataError
from rqtoolkit.semantic_ids import SemanticIDs
from rqtoolkit.semantic_ids.recommend import Sequences, evaluate_next_item, tune
from rqtoolkit.semantic_ids.recommend.evaluation import target_ranks
from rqtoolkit.semantic_ids.recommend.generative import GenerativeRecommender
from rqtoolkit.semantic_ids.recommend.sequences import Split
from rqtoolkit.semantic_ids.recommend.training import Settings, train

ITEMS = 36
NAMES = np.array([f"item {number:02}" for number in range(ITEMS + 3)])
CODES = np.stack(
    [np.arange(ITEMS + 3) // 9, np.arange(ITEMS + 3) // 3 % 3, np.arange(ITEMS + 3) % 3], 1
)


def make_ids(count=ITEMS):
    return SemanticIDs.from_codes(CODES[:count], NAMES[:count], codebook_sizes=(8, 8, 8))


def make_sequences(users=80, names=NAMES[:ITEMS], length=6):
    """Everybody walks round the catalogue, each from somewhere else."""
    starts = np.random.default_rng(0).integers(0, ITEMS - 3, users)
    lists = [NAMES[(start + np.arange(length)) % (ITEMS - 2)] for start in starts]
    return Sequences.from_lists(lists, item_ids=names)


def make(ids=None, **changes):
    settings = {"dim": 16, "body_layers": 1, "history_length": 8, "autocast": False}
    return GenerativeRecommender(ids or make_ids(), **settings | changes)


FIT = {"epochs": 5, "batch_size": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def sequences():
    return make_sequences()


@pytest.fixture(scope="module")
def fitted(sequences):
    recommender = make(dropout=0.1)
    train, validation, _ = sequences.leave_one_out()
    recommender.fit(train, validation=validation, **FIT)
    return recommender


def test_it_learns_what_comes_next(fitted, sequences):
    assert evaluate_next_item(fitted, sequences).all.recall[5] > 0.9


def test_the_codes_alone_learn_it_too(fitted, sequences, monkeypatch):
    monkeypatch.setattr(fitted, "codes_share", 1e6)
    monkeypatch.setattr(fitted, "new_item_boost", -100.0)
    assert evaluate_next_item(fitted, sequences).all.recall[5] > 0.6  # 5 of 30 by chance


def test_the_share_of_the_codes_is_what_validates_best(fitted, sequences, monkeypatch):
    validation = sequences.leave_one_out().validation
    monkeypatch.setattr(fitted, "codes_share", 0.1)
    tune(fitted, validation, boosts=(1.0,), shares=(0.0, 0.3, 1e6))
    chosen, gains = fitted.codes_share, {}
    for share in (0.0, 0.3, 1e6):
        fitted.codes_share = share
        gains[share] = validated(fitted, sequences)
    assert gains[chosen] == max(gains.values())
    with pytest.raises(ConfigError, match="tune"):
        tune(fitted, validation, shares=())


def validated(recommender, sequences):
    return evaluate_next_item(recommender, sequences, split="validation").all.ndcg[10]


def test_new_items_come_forward_as_far_as_the_others_can_bear(fitted, sequences, monkeypatch):
    histories, targets = sequences.leave_one_out().validation
    new = np.flatnonzero(fitted.new_items(sequences.item_ids))
    assert len(new) >= 2  # the walk leaves them out
    validation = Split(histories, np.concatenate([new[:1], targets[1:]]))
    for name in ("codes_share", "new_item_boost"):
        monkeypatch.setattr(fitted, name, 0.0)
    boosts = [float(boost) for boost in range(0, 24, 2)]
    gains = []
    for boost in boosts:
        fitted.new_item_boost = boost
        gains.append(target_ranks(fitted, validation, k=10, by="scores").gains(10).mean())
    assert gains[-1] < 0.95 * gains[0]
    for cost in (0.0, 0.05):
        tune(fitted, validation, boosts=boosts[::-1], cost=cost, shares=(0.0,))
        over = np.flatnonzero(np.array(gains) < (1 - cost) * gains[0])
        assert fitted.new_item_boost == boosts[over[0] - 1]


def test_without_users_of_new_items_nothing_is_said_of_them(fitted, sequences, monkeypatch):
    validation = sequences.leave_one_out().validation
    new = fitted.new_items(sequences.item_ids)
    assert new.any()
    assert not new[validation.targets].any()
    for boost in (0.0, 1.25):
        monkeypatch.setattr(fitted, "new_item_boost", boost)
        monkeypatch.setattr(fitted, "codes_share", 0.0)
        tune(fitted, validation, shares=(0.0,))
        assert fitted.new_item_boost == boost


def test_copies_added_later_do_not_flood_the_lists(sequences):
    recommender, (train, validation, _) = make(), sequences.leave_one_out()
    recommender.fit(train, validation=validation, **FIT)
    tune(recommender, validation)
    before = evaluate_next_item(recommender, sequences).all
    copies = np.concatenate([CODES[:ITEMS], np.repeat([[0, 0, 3]], 5, 0)])  # next to the first
    names = np.concatenate([NAMES[:ITEMS], [f"copy {number}" for number in range(5)]])
    recommender.ids = SemanticIDs.from_codes(
        copies, names, codebook_sizes=(8, 8, 8), collisions="allow"
    )
    grown = Sequences(sequences.items, sequences.offsets, names, sequences.user_ids)
    after = evaluate_next_item(recommender, grown).all
    assert after.recall[5] >= before.recall[5] - 0.02
    assert after.ndcg[10] >= before.ndcg[10] - 0.02


def test_as_many_beams_as_items_give_the_exact_list(fitted, sequences):
    histories = sequences.take(slice(0, 20))
    exact = fitted.recommend(histories, 10)
    np.testing.assert_array_equal(fitted.recommend(histories, 10, beams=ITEMS), exact)
    scores = fitted.scores(histories)
    for user, row in enumerate(exact):
        assert not set(row) & set(histories[user])
        others = np.setdiff1d(np.arange(ITEMS), [*row, *histories[user]])
        assert scores[user, row].min() >= scores[user, others].max()
        assert (np.diff(scores[user, row]) <= 0).all()


def test_lists_hold_only_items_asked_for(fitted, sequences):
    histories = sequences.take(slice(0, 20))
    stock = NAMES[[1, 5, 9, 20]]
    exact = fitted.recommend(histories, 6, items=stock, mask_seen=False)
    assert (np.sort(exact, 1) == [-1, -1, 1, 5, 9, 20]).all()
    found = fitted.recommend(histories, 6, items=stock, mask_seen=False, beams=10)
    np.testing.assert_array_equal(found, exact)


def test_users_do_not_depend_on_each_other_or_on_the_order_of_items(fitted, sequences):
    histories = sequences.take(slice(0, 30))
    scores = fitted.scores(histories)
    np.testing.assert_allclose(fitted.scores(histories.take([7, 3])), scores[[7, 3]], atol=1e-5)
    order = np.random.default_rng(0).permutation(ITEMS)
    lists = [histories.item_ids[histories[user]] for user in range(30)]
    shuffled = Sequences.from_lists(lists, item_ids=NAMES[:ITEMS][order])
    np.testing.assert_allclose(fitted.scores(shuffled), scores[:, order], atol=1e-5)


def test_a_user_without_history_gets_items(fitted):
    nobody = Sequences.from_lists([[]], item_ids=NAMES[:ITEMS])
    assert (fitted.recommend(nobody, 3) >= 0).all()


def test_items_added_later_can_be_recommended_and_move_nothing(sequences):
    train = sequences.leave_one_out().train
    ids = make_ids()
    recommender = make(ids)
    recommender.fit(train, **FIT | {"epochs": 1})
    histories = sequences.take(slice(0, 5))
    before = recommender.scores(histories)
    recommender.ids = make_ids(ITEMS + 3)
    lists = [NAMES[histories[user]] for user in range(5)]
    grown = Sequences.from_lists(lists, item_ids=NAMES)
    after = recommender.scores(grown)
    # More items share the probability.
    assert (after[:, :ITEMS] <= before + 1e-4).all()
    met = np.flatnonzero(train.counts)
    recommender.new_item_boost += 3
    boosted = recommender.scores(grown)
    np.testing.assert_array_equal(boosted[:, met], after[:, met])
    gain = 3 * (1 + recommender.codes_share)
    np.testing.assert_allclose(boosted[:, ITEMS:], after[:, ITEMS:] + gain, atol=1e-5)


def test_saved_and_loaded_it_scores_the_same(fitted, sequences, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = GenerativeRecommender.load(tmp_path / "model")
    histories = sequences.take(slice(0, 10))
    np.testing.assert_array_equal(loaded.scores(histories), fitted.scores(histories))
    fitted.save(tmp_path / "model")  # replaces its own


def test_ids_of_another_fit_are_refused(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    other = SemanticIDs.from_codes(CODES[:ITEMS][::-1], NAMES[:ITEMS], codebook_sizes=(8, 8, 8))
    other.save(tmp_path / "model")
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        GenerativeRecommender.load(tmp_path / "model")


def test_moved_items_are_refused_and_added_or_retired_ones_are_not(fitted, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    fitted.save(folder)
    codes = np.concatenate([CODES[:ITEMS], [[0, 0, 7]]])
    names = np.append(NAMES[:ITEMS], "item new")
    grown = SemanticIDs.from_codes(codes, names, codebook_sizes=(8, 8, 8))
    grown.remove([NAMES[1]])
    grown.save(folder)
    assert len(GenerativeRecommender.load(folder).ids) == ITEMS
    swapped = CODES[:ITEMS].copy()
    swapped[[3, 4]] = swapped[[4, 3]]  # the same codes, of other items
    refitted = SemanticIDs.from_codes(swapped, NAMES[:ITEMS], codebook_sizes=(8, 8, 8))
    refitted.history = (*grown.history, grown.version)
    refitted.save(folder)
    with pytest.raises(ArtifactError, match="other codes for 2 of 34 items that it met"):
        GenerativeRecommender.load(folder)
    monkeypatch.setattr(fitted, "ids", refitted)
    with pytest.raises(ArtifactError, match=r"save: the recommender was trained on other"):
        fitted.save(tmp_path / "another")


def test_counters_may_grow_past_those_of_training(tmp_path):
    codes = np.stack([np.arange(12) // 2, np.arange(12) % 2], 1)
    ids = SemanticIDs.from_codes(codes, np.arange(12), codebook_sizes=(6, 2), collisions="token")
    sequences = Sequences.from_lists([np.arange(12)] * 8, item_ids=ids.item_ids)
    recommender = make(ids, codes_share=0.2)
    recommender.fit(sequences, **FIT | {"epochs": 1})
    more = [*codes.tolist(), *([0, counter] for counter in range(2, 9))]
    sizes = {"codebook_sizes": (6, 9), "collisions": "token"}
    recommender.ids = SemanticIDs.from_codes(more, np.arange(19), **sizes)
    recommender.save(tmp_path / "model")
    loaded = GenerativeRecommender.load(tmp_path / "model")
    histories = Sequences.from_lists([[0, 1], [14, 3]], item_ids=np.arange(19))
    scores = loaded.scores(histories)
    np.testing.assert_array_equal(scores, recommender.scores(histories))
    np.testing.assert_array_equal(scores[:, 12:], np.tile(scores[:, 12:13], 7))
    assert np.isfinite(scores).all()
    lists = loaded.recommend(histories, 19)
    assert (
        np.sort(lists, 1)[:, 2:] == [np.delete(np.arange(19), seen) for seen in histories]
    ).all()


def test_an_interrupted_training_goes_on_to_the_same_result(sequences, tmp_path):
    train, validation, _ = sequences.leave_one_out()
    whole, cut = make(), make()
    settings = {"validation": validation, "batch_size": 32, "epochs": 3, "seed": 3}
    epochs = whole.fit(train, **settings)

    class StopError(Exception):
        pass

    def stop(what, done, total):  # noqa: ARG001
        if what == "epoch 3" and done == 2:
            raise StopError

    checkpoint = tmp_path / "training.safetensors"
    with pytest.raises(StopError):
        cut.fit(train, **settings, checkpoint=checkpoint, progress=stop)
    assert cut.fit(train, **settings, checkpoint=checkpoint) == epochs
    np.testing.assert_array_equal(
        cut.scores(validation.histories), whole.scores(validation.histories)
    )
    with pytest.raises(ArtifactError, match="other settings"):
        cut.fit(train, **settings | {"seed": 4}, checkpoint=checkpoint)
    other = SemanticIDs.from_codes(CODES[:ITEMS] + 1, NAMES[:ITEMS], codebook_sizes=(8, 8, 8))
    with pytest.raises(ArtifactError, match="other semantic IDs"):
        make(other).fit(train, **settings, checkpoint=checkpoint)


def test_training_stops_without_progress_and_keeps_the_best(sequences):
    recommender = make()
    recommender.fit(sequences.leave_one_out().train, epochs=1)
    values = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    weights = []

    def validate():
        weights.append(recommender.model.memories.detach().clone())
        return next(values)

    settings = Settings(
        epochs=9, batch_size=64, learning_rate=1e-3, weight_decay=0.0, codes_weight=1.0,
        averaging=0.9, patience=2, autocast=False, seed=0,
    )  # fmt: skip
    histories = np.array([[0, 1, 2], [3, 4, -1]])
    epochs = train(recommender.model, histories, settings, validate=validate)
    assert [epoch.validation for epoch in epochs] == [0.5, 0.7, 0.6, 0.6]
    assert (recommender.model.memories == weights[1]).all()


def test_seeds_fix_the_result_and_leave_the_global_state_alone(sequences):
    train = sequences.leave_one_out().train
    results = []
    for _ in range(2):
        recommender = make()
        state = torch.get_rng_state()
        recommender.fit(train, epochs=1)
        assert torch.equal(state, torch.get_rng_state())
        torch.rand(1)
        results.append(recommender.scores(train.take([0, 1])))
    np.testing.assert_array_equal(*results)


def test_checkpoints_are_plain_safetensors(sequences, tmp_path):
    path = tmp_path / "training.safetensors"
    make().fit(sequences.leave_one_out().train, epochs=1, checkpoint=path)
    with safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["arguments"])["settings"]["epochs"] == 1


def test_what_cannot_be_is_said(fitted, sequences):
    with pytest.raises(ConfigError, match="not fitted"):
        make().scores(sequences)
    with pytest.raises(ConfigError, match="beams=5 must be at least k=10"):
        fitted.recommend(sequences, 10, beams=5)
    with pytest.raises(DataError, match="1 of 2 items are not in the catalogue"):
        fitted.recommend(sequences, 1, items=[NAMES[0], "nothing"])
    with pytest.raises(DataError, match="3 of 39 items of the sequences have no semantic ID"):
        fitted.scores(Sequences.from_lists([[NAMES[0]]], item_ids=NAMES))
    with pytest.raises(DataError, match="two semantic IDs or more; got 1"):
        make().fit(Sequences.from_lists([[NAMES[0]]], item_ids=NAMES[:ITEMS]))
    validation = sequences.take([]).leave_one_out().validation
    with pytest.raises(DataError, match="validation has no user"):
        make().fit(sequences, validation=validation)
    with pytest.raises(ConfigError, match="dropout"):
        make(dropout=1.0)
    for changes in ({"codes_share": -1.0}, {"codes_share": np.nan}, {"new_item_boost": np.nan}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))}=.* must be"):
            make(**changes)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"learning_rate": np.nan}, {"weight_decay": -1}, {"averaging": 1}],
)
def test_training_refuses_numbers_it_cannot_work_with(sequences, wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}=.* must be"):
        make().fit(sequences, **wrong)
