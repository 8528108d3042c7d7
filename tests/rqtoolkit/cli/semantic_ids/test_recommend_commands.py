"""`train`, `recommend` and `evaluate`."""

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from rqtoolkit.cli.app import app, main
from rqtoolkit.cli.semantic_ids.session import read_sequences
from rqtoolkit.semantic_ids.recommend import (
    GenerativeRecommender,
    Sequences,
    evaluate_next_item,
    tune,
)

TINY = ["--dim", 8, "--body-layers", 1, "--depth-layers", 1, "--num-heads", 1, "--epochs", 2]
TINY += ["--batch-size", 16, "--history-length", 8, "--no-autocast", "--threads", 1]


@pytest.fixture(scope="module")
def model(shop, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    words = ["train", shop / "ids", shop / "histories.txt", *TINY, "--out", folder]
    assert main(["semantic-ids", *map(str, words)]) == 0
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    return folder


def _interactions(shop, path: Path, **columns: str) -> Path:
    """Write the histories as Parquet, a row an interaction, newest first."""
    names = {"user": "user", "item": "item", "time": "timestamp"} | columns
    lines = [line.split() for line in (shop / "histories.txt").read_text().splitlines()]
    rows = [(user, int(item), place) for user, *items in lines for place, item in enumerate(items)][
        ::-1
    ]
    table = {name: [row[i] for row in rows] for i, name in enumerate(names.values())}
    pq.write_table(pa.table(table), path)
    return path


def _trained(folder: Path) -> dict[str, np.ndarray]:
    weights = GenerativeRecommender.load(folder).model.state_dict()
    return {name: tensor.numpy() for name, tensor in weights.items()}


def test_train_is_the_library_s_fit(shop, model):
    recommender = GenerativeRecommender.load(model)
    ids = recommender.ids
    split = Sequences.read(shop / "histories.txt", item_ids=ids.item_ids).leave_one_out()
    expected = GenerativeRecommender(
        ids, dim=8, body_layers=1, depth_layers=1, num_heads=1, history_length=8, autocast=False
    )
    expected.fit(split.train, validation=split.validation, epochs=2, batch_size=16)
    tune(expected, split.validation)
    assert recommender.codes_share == expected.codes_share
    assert recommender.new_item_boost == expected.new_item_boost
    np.testing.assert_allclose(
        recommender.scores(split.test.histories),
        expected.scores(split.test.histories),
        rtol=1e-4,
    )


def test_train_takes_every_option(shop, tmp_path, run_json):
    file = _interactions(shop, tmp_path / "i.parquet", user="who", item="what", time="when")
    names = ["--user-column", "who", "--item-column", "what", "--time-column", "when"]
    others = ["--learning-rate", 0.01, "--weight-decay", 0.1, "--patience", 1, "--dropout", 0]
    others += [
        "--memory-dropout",
        0.2,
        "--codes-share",
        0.5,
        "--new-item-boost",
        1,
        "--seed",
        5,
        "--device",
        "cpu",
    ]
    words = [*TINY, *names, *others, "--no-hold-out", "--skip-unknown", "--out", tmp_path / "m"]
    found = run_json("train", shop / "ids", file, *words)
    assert found["users"] == 30
    assert [epoch["number"] for epoch in found["epochs"]] == [1, 2]
    assert found["epochs"][0]["validation"] is None
    trained = GenerativeRecommender.load(tmp_path / "m")
    assert (trained.codes_share, trained.new_item_boost) == (0.5, 1)


def test_help_tells_the_library_s_defaults():
    command = (
        typer.main.get_command(app).get_command(None, "semantic-ids").get_command(None, "train")
    )
    shown = {p.name: p.show_default for p in command.params if isinstance(p.show_default, str)}
    used = [
        inspect.signature(f).parameters for f in (GenerativeRecommender, GenerativeRecommender.fit)
    ]
    library = {name: parameter.default for own in used for name, parameter in own.items()}
    assert shown.pop("threads") == "all cores"
    read = inspect.signature(Sequences.read).parameters
    for column in ("user_column", "item_column", "time_column"):
        assert shown.pop(column) == read[column].default
    assert {name: float(text) for name, text in shown.items()} == {
        name: library[name] for name in shown
    }
    assert len(shown) == 14


def test_a_stopped_training_goes_on_to_the_same_result(shop, model, tmp_path, monkeypatch, capsys):
    def stop_in_the_second(self, *words, **named):
        def progress(work, *_):
            if work == "epoch 2":
                raise KeyboardInterrupt

        return fit(self, *words, **named | {"progress": progress})

    fit = GenerativeRecommender.fit
    monkeypatch.setattr(GenerativeRecommender, "fit", stop_in_the_second)
    words = ["train", shop / "ids", shop / "histories.txt", *TINY, "--out", tmp_path / "m"]
    words = ["semantic-ids", *map(str, words)]
    assert main(words) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["m.training.safetensors"]
    monkeypatch.undo()
    capsys.readouterr()
    assert main(words) == 0
    assert "Going on from" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    expected, found = _trained(model), _trained(tmp_path / "m")
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_recommend_writes_the_best_items(shop, model, tmp_path, run, run_json):
    recommender = GenerativeRecommender.load(model)
    item_ids = recommender.ids.item_ids
    read = Sequences.read(shop / "histories.txt", item_ids=item_ids)
    expected = item_ids[recommender.recommend(read, 4)]
    words = [model, shop / "histories.txt", "--k", 4]
    run("recommend", *words, "--out", tmp_path / "l.txt")
    lines = [line.split() for line in (tmp_path / "l.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == read.user_ids.tolist()
    np.testing.assert_array_equal([list(map(int, line[1:])) for line in lines], expected)

    found = run_json("recommend", *words, "--threads", 1, "--out", tmp_path / "l.parquet")
    assert found["users"] == 30
    table = pq.read_table(tmp_path / "l.parquet").to_pydict()
    assert table["user"][:4] == ["u0"] * 4
    assert table["rank"][:4] == [1, 2, 3, 4]
    np.testing.assert_array_equal(np.reshape(table["item"], (-1, 4)), expected)


def test_recommend_among_some_items_seen_or_not(shop, model, tmp_path, run):
    (tmp_path / "stock.txt").write_text("1\n7\n13\n")
    file = _interactions(shop, tmp_path / "i.parquet", user="who")
    words = ["--user-column", "who", "--items", tmp_path / "stock.txt", "--k", 3]
    out = tmp_path / "l.parquet"
    run("recommend", model, file, *words, "--keep-seen", "--beams", 200, "--out", out)
    table = pq.read_table(out).to_pydict()
    assert len(table["item"]) == 3 * 30
    assert set(table["item"]) == {1, 7, 13}
    run("recommend", model, file, *words, "--out", out)
    assert len(pq.read_table(out)) < 3 * 30  # lists of those who have had some are shorter


def test_added_items_are_recommended_at_once(shop, model, tmp_path, run):
    grown = shutil.copytree(model, tmp_path / "grown")
    run("add", grown, shop / "new.npy", "--ids", shop / "new.txt")
    words = ["--items", shop / "new.txt", "--k", 5, "--out", tmp_path / "l.parquet"]
    run("recommend", grown, shop / "histories.txt", *words)
    items = pq.read_table(tmp_path / "l.parquet")["item"].to_pylist()
    assert len(items) == 5 * 30
    assert set(items) <= set(range(120, 140))


def test_unknown_items_are_left_out_on_demand(model, tmp_path, run, capsys):
    (tmp_path / "odd.txt").write_text("a 1 5000 7\nb 6000\nc 13\n")
    (tmp_path / "even.txt").write_text("a 1 7\nb\nc 13\n")
    run("recommend", model, tmp_path / "odd.txt", "--skip-unknown", "--out", tmp_path / "l.txt")
    assert "Left out 2 of 5 interactions" in capsys.readouterr().err
    run("recommend", model, tmp_path / "even.txt", "--out", tmp_path / "m.txt")
    assert (tmp_path / "l.txt").read_text() == (tmp_path / "m.txt").read_text()


def test_numbers_in_text_may_be_words_of_the_catalogue(tmp_path):
    (tmp_path / "h.txt").write_text("a 1 7\nb 7\n")
    catalogue = np.array(["7", "x", "1"])
    read = read_sequences(tmp_path / "h.txt", catalogue, (None, None, None))
    assert (read.items.tolist(), read.offsets.tolist()) == ([2, 0, 0], [0, 2, 3])


def test_evaluate_is_the_library_s(shop, model, tmp_path, run, run_json, capsys):
    recommender = GenerativeRecommender.load(model)
    read = Sequences.read(shop / "histories.txt", item_ids=recommender.ids.item_ids)
    found = run_json("evaluate", model, shop / "histories.txt", "--threads", 1)
    expected = evaluate_next_item(recommender, read).to_json()
    assert found == {"generative": json.loads(json.dumps(expected))}
    file = _interactions(shop, tmp_path / "i.parquet", user="who")
    words = ["--user-column", "who", "--ks", "1,3", "--split", "validation", "--keep-seen"]
    found = run_json("evaluate", model, file, *words)
    expected = evaluate_next_item(recommender, read, ks=(1, 3), split="validation", mask_seen=False)
    assert found["generative"] == expected.to_json()
    assert found["generative"]["mask_seen"] is False
    run("evaluate", model, shop / "histories.txt", "--ks", 7, "--baselines")
    shown = capsys.readouterr().out
    assert "recall@7" in shown
    assert [line.split()[0] for line in shown.splitlines()[1:-1:3]] == [
        "generative",
        "popularity",
        "markov",
        "co-occurrence",
    ]
    assert "120 items ranked for the test" in shown


TRAIN = ["train", "{shop}/ids", "{shop}/histories.txt", "--out", "{tmp}/m"]
BAD_CALLS = [
    (["train", "{shop}/ids", "{shop}/histories.txt", "--out", "{tmp}/full"], "exists already"),
    (["train", "{shop}/ids", "{tmp}/none.txt", "--out", "{tmp}/m"], "none.txt is not a file"),
    (["train", "{shop}/ids", "{tmp}/strange.txt", "--out", "{tmp}/m"], "5000"),
    (["train", "{tmp}/full", "{shop}/histories.txt", "--out", "{tmp}/m"], "no folder of semantic"),
    ([*TRAIN, "--dim", "9", "--num-heads", "2"], "num_heads"),
    ([*TRAIN, "--dropout", "2"], "dropout"),
    ([*TRAIN, "--codes-share", "-1"], "codes_share"),
    ([*TRAIN, "--device", "moon"], "--device=moon"),
    (["train", "{shop}/ids", "{tmp}/i.parquet", "--time-column", "t", "--out", "{tmp}/m"], "'t'"),
    (["recommend", "{shop}/ids", "{shop}/histories.txt", "--out", "{tmp}/l.txt"], "recommender"),
    (["recommend", "{model}", "{shop}/histories.txt", "--out", "{tmp}/l.csv"], ".parquet, .txt"),
    (
        ["recommend", "{model}", "{shop}/histories.txt", "--beams", "2", "--out", "{tmp}/l.txt"],
        "beams=2",
    ),
    (
        ["recommend", "{model}", "{tmp}/h.txt", "--out", "{tmp}/h.txt"],
        "also an input",
    ),
    (
        [
            "recommend",
            "{model}",
            "{shop}/histories.txt",
            "--items",
            "{tmp}/odd.txt",
            "--out",
            "{tmp}/l.txt",
        ],
        "9000",
    ),
    (["train", "{shop}/ids", "{tmp}/h.txt", "--time-column", "", "--out", "{tmp}/m"], "--time-c"),
    ([*TRAIN, "--user-column", "who"], "--user-column=who is for Parquet"),
    ([*TRAIN, "--learning-rate", "0"], "learning_rate=0"),
    ([*TRAIN, "--learning-rate", "nan"], "learning_rate=nan"),
    ([*TRAIN, "--weight-decay", "-1"], "weight_decay=-1"),
    ([*TRAIN, "--new-item-boost", "nan"], "new_item_boost=nan"),
    (
        [
            "recommend",
            "{model}",
            "{shop}/histories.txt",
            "--items",
            "{tmp}/nothing.txt",
            "--out",
            "{tmp}/l.txt",
        ],
        "nothing.txt names no item",
    ),
    (["evaluate", "{model}", "{tmp}/pairs.txt"], "three interactions"),
    (["evaluate", "{model}", "{shop}/histories.txt", "--ks", "0"], "--ks=0"),
    (["evaluate", "{shop}/ids", "{shop}/histories.txt"], "Train a recommender"),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_recommenders(shop, model, tmp_path, refused, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "strange.txt").write_text("u 1 2 5000\n")
    (tmp_path / "odd.txt").write_text("9000\n")
    (tmp_path / "h.txt").write_text("u 1 2 3\n")
    (tmp_path / "pairs.txt").write_text("u 1 2\nv 3\n")
    (tmp_path / "nothing.txt").write_text("\n")
    _interactions(shop, tmp_path / "i.parquet")
    places = {"shop": shop, "tmp": tmp_path, "model": model}
    refused([word.format(**places) for word in words], message)
