"""`fit`, `assign`, `lookup` and `report`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rqtoolkit import ResidualQuantizer, SemanticIDs
from rqtoolkit.cli.app import main


def test_fit_is_the_library_s_fit(shop, tmp_path, small, run_json):
    x = np.load(shop / "x.npy")
    options = ["--depth", 2, "--seed", 3, "--balance", 1.5, "--scale-columns", "--method",
               "residual", "--collisions", "token", "--encoder", "toy", "--threads", 1]  # fmt: skip
    found = run_json("fit", shop / "x.npy", *small, *options, "--out", tmp_path / "a")
    expected = SemanticIDs.fit(
        x,
        depth=2,
        codebook_size=8,
        settings={"rounds": 1, "starts": 1},
        seed=3,
        balance=1.5,
        scale_columns=True,
        collisions="token",
        encoder="toy",
    )
    made = SemanticIDs.load(tmp_path / "a", encoder="toy")
    np.testing.assert_array_equal(made.codes, expected.codes)
    assert made.version == found["version"] == expected.version
    assert found["items"] == len(x)
    assert found["mse"] == pytest.approx(expected.mse)
    assert found["duplicate_rate"] == found["shared_rate"] == 0
    assert found["codebook_sizes"] == list(expected.codebook_sizes)


def test_sizes_by_level_and_shared_ids(shop, tmp_path, run_json):
    words = ["--depth", 2, "--codebook-size", "4,2", "--collisions", "allow"]
    found = run_json("fit", shop / "x.npy", *words, "--out", tmp_path / "a")
    assert found["codebook_sizes"] == [4, 2]
    assert found["duplicate_rate"] >= 1 - 8 / 120
    assert found["shared_rate"] > found["duplicate_rate"]


def test_ids_of_every_kind_of_file(shop, tmp_path, small, run):
    names = (shop / "names.txt").read_text().split()
    np.save(tmp_path / "names.npy", np.array(names))
    sources = [
        [shop / "x.parquet", "--id-column", "name", "--column", "vector"],
        [shop / "x.npy", "--ids", shop / "names.txt"],
        [shop / "x.npy", "--ids", tmp_path / "names.npy"],
        [shop / "two.npz", "--key", "old", "--ids", shop / "names.txt"],
    ]
    columns = pq.read_table(shop / "x.parquet").rename_columns(["item_id", "vector", "label"])
    pq.write_table(columns, tmp_path / "usual.parquet")
    sources.append([tmp_path / "usual.parquet"])
    made = []
    for place, words in enumerate(sources):
        run("fit", *words, *small, "--out", tmp_path / str(place))
        made.append(SemanticIDs.load(tmp_path / str(place)))
    assert made[0].item_ids.tolist() == names
    assert len({ids.version for ids in made}) == 1


def test_integer_ids_stay_integers(shop, catalogue, tmp_path, small, run, run_json):
    (tmp_path / "numbers.txt").write_text("".join(f"{7 * row - 3}\n" for row in range(120)))
    run("fit", shop / "x.npy", "--ids", tmp_path / "numbers.txt", *small, "--out", tmp_path / "a")
    assert SemanticIDs.load(tmp_path / "a").item_ids.tolist() == [7 * row - 3 for row in range(120)]
    (tmp_path / "padded.txt").write_text("".join(f"{row:03d}\n" for row in range(120)))
    run("fit", shop / "x.npy", "--ids", tmp_path / "padded.txt", *small, "--out", tmp_path / "b")
    assert SemanticIDs.load(tmp_path / "b").item_ids[7] == "007"
    assert run_json("lookup", tmp_path / "b", "007", 7)[1] == {"item_id": "7", "codes": None}
    assert run_json("lookup", catalogue, 7)[0]["item_id"] == 7


def test_a_warning_is_one_line(shop, tmp_path, capsys):
    words = ["fit", shop / "x.npy", "--codebook-size", 200, "--set", "rounds=0", "--out"]
    assert main(["semantic-ids", *map(str, [*words, tmp_path / "a"])]) == 0
    error = capsys.readouterr().err
    assert error.startswith("Warning: SemanticIDs.fit: codebook_size=200")
    assert error.count("\n") == 2  # and where it was written


def test_assign_takes_codebooks_of_a_folder_or_a_file(shop, tmp_path, run, run_json):
    old, x = SemanticIDs.load(shop / "ids"), np.load(shop / "new.npy")
    found = run_json("assign", shop / "ids", shop / "new.npy", "--out", tmp_path / "a")
    made = SemanticIDs.load(tmp_path / "a")
    assert (made.encoder, len(made)) == ("toy", found["items"])
    np.testing.assert_array_equal(made.decode(made.codes), old.decode(made.codes))

    quantizer = ResidualQuantizer(6, 2, 8).fit(torch.from_numpy(x), rounds=0)
    quantizer.save(tmp_path / "q.safetensors")
    words = ["--collisions", "allow", "--encoder", "toy", "--threads", 1]
    run("assign", tmp_path / "q.safetensors", shop / "two.npz", "--key", "new", "--ids",
        shop / "new.txt", *words, "--out", tmp_path / "b")  # fmt: skip
    made = SemanticIDs.load(tmp_path / "b", encoder="toy")
    np.testing.assert_array_equal(made.codes, quantizer.encode(torch.from_numpy(x)))
    assert made.item_ids.tolist() == list(range(120, 140))
    run("assign", shop / "ids", shop / "x.parquet", "--id-column", "name", "--column", "vector",
        "--out", tmp_path / "c")  # fmt: skip
    np.testing.assert_array_equal(SemanticIDs.load(tmp_path / "c").codes, old.codes)


def test_lookup_both_ways(shop, tmp_path, run, run_json, capsys):
    ids = SemanticIDs.load(shop / "ids")
    (tmp_path / "wanted.txt").write_text("5\n\n999\n")
    found = run_json("lookup", shop / "ids", 3, "--file", tmp_path / "wanted.txt")
    assert found == [
        {"item_id": 3, "codes": ids[3].tolist()},
        {"item_id": 5, "codes": ids[5].tolist()},
        {"item_id": 999, "codes": None},
    ]
    codes = ",".join(map(str, ids[5]))
    found = run_json("lookup", shop / "ids", "--codes", codes, "--codes", "0,0,99")
    assert found == [
        {"codes": ids[5].tolist(), "item_ids": [5]},
        {"codes": [0, 0, 99], "item_ids": []},
    ]
    run("lookup", shop / "ids", 3, 999)
    run("lookup", shop / "ids", "--codes", "0,0,99")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:3] == [["3", *map(str, ids[3])], ["999", "–", "–", "–"]]
    assert lines[4] == ["0", "0", "99", "–"]


def test_report_with_everything(shop, tmp_path, catalogue, run, run_json, capsys):
    bare = run_json("report", shop / "ids")
    assert bare["embeddings"] is bare["groups"] is bare["drift"] is None
    run("add", catalogue, shop / "new.npy", "--ids", shop / "new.txt")
    words = ["--groups", shop / "groups.txt", "--against", shop / "ids", "--seed", 1]
    data = ["--data", shop / "two.npz", "--key", "old"]
    found = run_json("report", shop / "ids", *data, *words, "--threads", 1)
    expected = SemanticIDs.load(shop / "ids").report(np.load(shop / "x.npy"))
    assert found["embeddings"]["mse"] == pytest.approx(list(expected.embeddings.mse))
    assert found["groups"]["items"] == 119
    assert found["drift"]["kept"] == [1, 1, 1]
    assert run_json("report", catalogue, "--against", shop / "ids")["drift"]["added"] == 20

    np.save(tmp_path / "all.npy", np.load(shop / "x.npy")[::-1])
    (tmp_path / "all.txt").write_text("".join(f"{row}\n" for row in range(119, -1, -1)))
    backwards = ["--data", tmp_path / "all.npy", "--ids", tmp_path / "all.txt"]
    again = run_json("report", shop / "ids", *backwards)
    assert again["embeddings"]["mse"] == pytest.approx(found["embeddings"]["mse"])

    page = tmp_path / "r.html"
    run("report", shop / "ids", *data, "--html", page)
    assert "<svg" in page.read_text() or "data:image" in page.read_text()
    assert "relative error" in capsys.readouterr().out


def test_report_reads_categories_beside_vectors(shop, tmp_path, small, run, run_json):
    file = shop / "x.parquet"
    names = ["--id-column", "name", "--column", "vector"]
    run("fit", file, *names, *small, "--out", tmp_path / "a")
    words = ["--groups", file, "--group-column", "label", *names]
    both = run_json("report", tmp_path / "a", "--data", file, *words)
    assert both["groups"]["items"] == 119
    assert both["embeddings"]["mse"]
    words = ["--groups", file, "--group-column", "label", "--id-column", "name"]
    alone = run_json("report", tmp_path / "a", "--data", shop / "x.npy", *words)
    assert alone["groups"] == both["groups"]


FIT = ["fit", "{shop}/x.npy", "--codebook-size", "8"]
BAD_CALLS = [
    ([*FIT, "--out", "{tmp}/full"], "exists already"),
    ([*FIT, "--out", "{tmp}/none/a"], "no folder"),
    ([*FIT, "--set", "rounds", "--out", "{tmp}/a"], "NAME=VALUE"),
    ([*FIT, "--set", "rouds=1", "--out", "{tmp}/a"], "Did you mean 'rounds'"),
    ([*FIT, "--depth", "2", "--codebook-size", "8,8,8", "--out", "{tmp}/a"], "codebook_size"),
    ([*FIT, "--codebook-size", "many", "--out", "{tmp}/a"], "--codebook-size=many"),
    ([*FIT, "--balance", "0.5", "--out", "{tmp}/a"], "balance"),
    ([*FIT, "--ids", "{shop}/new.txt", "--out", "{tmp}/a"], "20 ids for 120 rows"),
    ([*FIT, "--ids", "{shop}/none.txt", "--out", "{tmp}/a"], "none.txt does not exist. Check the"),
    ([*FIT, "--ids", "{tmp}/full", "--out", "{tmp}/a"], "full is a folder"),
    ([*FIT, "--ids", "{shop}/x.npy", "--out", "{tmp}/a"], "item_ids"),
    ([*FIT, "--ids", "{shop}/x.parquet", "--out", "{tmp}/a"], "no column 'item_id'"),
    ([*FIT, "--ids", "{shop}/new.txt", "--id-column", "a", "--out", "{tmp}/a"], "both name ids"),
    (["fit", "{shop}/none.npy", "--out", "{tmp}/a"], "does not exist"),
    (["fit", "{shop}/two.npz", "--key", "odd", "--out", "{tmp}/a"], "odd"),
    (["assign", "{tmp}/none", "{shop}/x.npy", "--out", "{tmp}/a"], "does not exist"),
    (["assign", "{tmp}/full", "{shop}/x.npy", "--out", "{tmp}/a"], "no folder of semantic IDs"),
    (
        ["assign", "{shop}/ids", "{shop}/x.npy", "--encoder", "b", "--out", "{tmp}/a"],
        "encoder='toy'",
    ),
    (["lookup", "{shop}/ids"], "no item ids"),
    (["lookup", "{shop}/ids", "tea"], "integers; got 'tea'"),
    (["lookup", "{shop}/ids", "3", "--codes", "1,2,3"], "in place of ids"),
    (["lookup", "{shop}/ids", "--codes", "1,2"], "3 whole numbers, as in 0,0,0"),
    (["report", "{shop}/ids", "--html", "{tmp}/r.txt"], ".html"),
    (["report", "{shop}/ids", "--key", "old"], "--key needs --data"),
    (["report", "{shop}/ids", "--group-column", "g"], "needs --groups"),
    (["report", "{shop}/ids", "--groups", "{shop}/new.txt"], "a tab"),
    (["report", "{shop}/ids", "--groups", "{shop}/groups.txt", "--group-column", "g"], "Parquet"),
    (["report", "{shop}/ids", "--data", "{shop}/new.npy"], "20 rows for 120 items"),
    (["report", "{tmp}/full"], "no folder of semantic IDs"),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_calls(shop, tmp_path, refused, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused([word.format(shop=shop, tmp=tmp_path) for word in words], message)


def test_nothing_half_made_is_left_by_ctrl_c(shop, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rqtoolkit.semantic_ids.folder._write_items", stop)
    words = ["fit", shop / "x.npy", "--codebook-size", 8, "--set", "rounds=0", "--out"]
    assert main(["semantic-ids", *map(str, [*words, tmp_path / "a"])]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    assert list(tmp_path.iterdir()) == []


def test_undefined_figures_are_null(shop, tmp_path, run, capsys):
    run("export", shop / "ids", "--to", "csv", "--out", tmp_path / "a.csv")
    run("import", tmp_path / "a.csv", "--from", "csv", "--out", tmp_path / "a")
    capsys.readouterr()
    run("report", tmp_path / "a", "--data", shop / "x.npy", "--json")
    assert json.loads(capsys.readouterr().out)["embeddings"]["mse"] == []
