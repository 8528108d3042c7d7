"""SASRec is causal, blind to padding, learns, and a stopped training ends as one that was not."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.recommend import SASRec, Sequences, evaluate_next_item
from rqtoolkit.semantic_ids.recommend.sasrec_training import Training, _batches

ITEMS = 30
SMALL = {"dim": 16, "layers": 1, "max_length": 8, "dropout": 0.0}
FIT = SMALL | {"batch_size": 16, "learning_rate": 1e-2, "autocast": False}


@pytest.fixture(scope="module")
def cycle():
    """Users who walk round the items in order, from different starts."""
    lists = [[(start + step) % ITEMS for step in range(9 + start % 4)] for start in range(60)]
    return Sequences.from_lists(lists, item_ids=range(ITEMS))


@pytest.fixture
def model():
    return SASRec(ITEMS, **SMALL).eval()


def test_loss_equals_cross_entropy_of_the_scores_step_by_step(model):
    lists = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
    items = torch.from_numpy(Sequences.from_lists(lists, item_ids=range(ITEMS)).padded(5))
    weight = model.item_embedding.weight
    losses = []
    for history in lists:
        # One history at a time, without padding.
        states = model(torch.tensor([history[:-1]]), torch.tensor([len(history) - 1]))[0]
        losses.append(
            F.cross_entropy(states @ weight.T, torch.tensor(history[1:]), reduction="sum")
        )
    expected = sum(losses) / sum(len(history) - 1 for history in lists)
    torch.testing.assert_close(model.loss(items), expected)


def test_later_items_and_padding_change_nothing_before(model):
    lengths = torch.tensor([6])
    items = torch.arange(6)[None]
    changed = torch.tensor([[0, 1, 2, 9, 9, 9, 7, 7]])
    before, after = model(items, lengths), model(changed, lengths)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:6])


def test_scores_equal_the_forward_pass_of_the_latest_items(model):
    lists = [list(range(11)), [2], [], [5, 4, 3]]
    histories = Sequences.from_lists(lists, item_ids=range(ITEMS))
    found = model.scores(histories)
    assert found.dtype == np.float32
    for row, history in zip(found, lists, strict=True):
        if not history:
            assert not row.any()
            continue
        last = torch.tensor([history[-8:]])
        state = model(last, torch.tensor([last.shape[1]]))[0, -1]
        expected = (model.item_embedding.weight @ state).detach().numpy()
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_scores_leave_the_mode_alone():
    model = SASRec(ITEMS, **(SMALL | {"dropout": 0.5}))
    histories = Sequences.from_lists([[1, 2]], item_ids=range(ITEMS))
    np.testing.assert_array_equal(model.scores(histories), model.scores(histories))
    assert model.training


def test_it_learns_and_survives_saving(cycle, tmp_path):
    train, validation, _ = cycle.leave_one_out()
    calls = []
    model = SASRec.fit(
        train,
        validation=validation,
        epochs=40,
        patience=40,
        progress=lambda *call: calls.append(call),
        **FIT,
    )
    assert model.history[-1]["loss"] < 0.3 * model.history[0]["loss"]
    found = evaluate_next_item(model, cycle, ks=(1,))
    assert found.all.recall[1] > 0.9
    assert calls[-1] == ("train SASRec", 40, 40)
    model.save(tmp_path / "sasrec.safetensors")
    loaded = SASRec.load(tmp_path / "sasrec.safetensors")
    assert loaded.history == model.history
    assert evaluate_next_item(loaded, cycle, ks=(1,)) == found


@pytest.mark.parametrize("autocast", [False, True])
def test_a_stopped_training_ends_as_one_that_was_not(cycle, tmp_path, autocast):
    train, validation, _ = cycle.leave_one_out()
    arguments = FIT | {"dropout": 0.3, "autocast": autocast, "patience": 9, "threads": 1}
    whole = SASRec.fit(train, validation=validation, epochs=4, **arguments)

    class StopError(Exception):
        pass

    def stop(what, done, total):  # noqa: ARG001
        if done == 2:
            raise StopError

    arguments["checkpoint"] = tmp_path / "training.safetensors"
    with pytest.raises(StopError):
        SASRec.fit(train, validation=validation, epochs=4, progress=stop, **arguments)
    parts = SASRec.fit(train, validation=validation, epochs=4, **arguments)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
    assert [e["ndcg"] for e in parts.history] == [e["ndcg"] for e in whole.history]


def test_the_best_epoch_is_kept_and_patience_ends(cycle):
    train, validation, _ = cycle.leave_one_out()
    model = SASRec.fit(
        train, validation=validation, epochs=50, patience=1, **(FIT | {"learning_rate": 0.3})
    )
    ndcg = [entry["ndcg"] for entry in model.history]
    assert len(ndcg) < 50
    assert ndcg[-1] <= max(ndcg[:-1])
    found = evaluate_next_item(model, cycle, split="validation", ks=(10,)).all
    assert found.ndcg[10] == pytest.approx(max(ndcg))


def test_the_seed_fixes_the_result_and_nothing_else_is_drawn(cycle):
    train, validation, _ = cycle.leave_one_out()
    state = torch.get_rng_state()
    first, again, other = (
        SASRec.fit(train, validation=validation, epochs=1, seed=seed, **FIT) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.item_embedding.weight, again.item_embedding.weight)
    assert not torch.equal(first.item_embedding.weight, other.item_embedding.weight)


def test_every_prediction_weighs_the_same_and_the_rate_falls(cycle, monkeypatch):
    """Whatever the lengths of histories in a batch; weights are of loss sums over their mean."""
    train, validation, _ = cycle.leave_one_out()
    steps = []
    monkeypatch.setattr(
        Training, "_step", lambda _, items, weight, rate: steps.append((items, weight, rate)) or 1.0
    )
    arguments = {"items": ITEMS, "layers": 1, "dim": 16, "num_heads": 1, "max_length": 8}
    settings = {"epochs": 30, "patience": 30, "batch_size": 7, "learning_rate": 0.1, "seed": 0}
    training = Training(train, validation, arguments | {"dropout": 0.0}, settings)
    for _ in range(30):
        training.run_epoch()
    counts = np.array([(items[:, 1:] >= 0).sum() for items, _, _ in steps])
    weights, rates = (np.array([step[place] for step in steps]) for place in (1, 2))
    np.testing.assert_allclose(weights, counts / counts.mean())
    assert (np.diff(rates[:49]) > 0).all()
    assert (np.diff(rates[50:]) < 0).all()
    assert 0.09 < rates.max() < 0.1
    assert rates[-1] == pytest.approx(0.005, rel=0.02)


def test_batches_are_all_users_once_and_alike():
    lengths = np.random.default_rng(0).geometric(0.15, 3000)
    batches = list(_batches(lengths, 50, np.random.default_rng(1)))
    assert sorted(itertools.chain(*batches)) == list(range(3000))
    padded = sum(lengths[users].max() * len(users) for users in batches)
    assert padded < 1.5 * lengths.sum()


def test_bad_arguments_are_refused(cycle, model, tmp_path):
    train, validation, _ = cycle.leave_one_out()
    with pytest.raises(ConfigError, match="num_heads=3 must divide"):
        SASRec(ITEMS, dim=16, num_heads=3)
    with pytest.raises(ConfigError, match="layers=0"):
        SASRec(ITEMS, layers=0)
    with pytest.raises(ConfigError, match="learning_rate"):
        SASRec.fit(train, validation=validation, **(FIT | {"learning_rate": 0}))
    with pytest.raises(DataError, match="two training interactions"):
        SASRec.fit(train.keep_last(1), validation=validation, **FIT)
    with pytest.raises(ShapeError, match="30 items"):
        model.scores(Sequences.from_lists([[0]], item_ids=range(3)))
    file = tmp_path / "training.safetensors"
    SASRec.fit(train, validation=validation, epochs=1, checkpoint=file, **FIT)
    with pytest.raises(ArtifactError, match="seed=0 in place of 1"):
        SASRec.fit(train, validation=validation, epochs=1, checkpoint=file, seed=1, **FIT)
