"""`add`, `remove` and `refit`."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from rqtoolkit import SemanticIDs
from rqtoolkit.cli.app import main


def test_add_publishes_and_moves_nothing(shop, catalogue, tmp_path, run_json, run, capsys):
    expected = SemanticIDs.load(catalogue)
    before = expected.codes.copy()
    delta = expected.add(np.load(shop / "new.npy"), np.arange(120, 140))
    words = [shop / "two.npz", "--key", "new", "--ids", shop / "new.txt", "--encoder", "toy"]
    file = tmp_path / "delta.parquet"
    found = run_json("add", catalogue, *words, "--delta", file, "--threads", 1)
    grown = SemanticIDs.load(catalogue)
    assert grown.version == expected.version == found["version"]
    assert found["parent"] == expected.parent
    np.testing.assert_array_equal(grown.codes[:120], before)
    assert found["item_ids"] == list(range(120, 140))
    assert found["codes"] == delta.codes.tolist()
    assert (found["added"], found["items"], found["number"]) == (20, 140, 1)
    assert found["mse"] == pytest.approx(delta.mse)

    table = pq.read_table(file)
    assert table.column_names == ["item_id", "code_0", "code_1", "code_2", "added"]
    assert table["item_id"].to_pylist() == list(range(120, 140))
    np.testing.assert_array_equal(
        np.column_stack([table[f"code_{level}"] for level in range(3)]), delta.codes
    )
    assert table["added"].to_pylist() == [1] * 20

    again = run_json("add", catalogue, *words)
    assert (again["added"], again["mse"], again["version"]) == (0, None, found["version"])
    run("add", catalogue, *words)
    assert "Nothing new" in capsys.readouterr().err


def test_add_shows_the_first_items(shop, catalogue, tmp_path, run, capsys):
    out = tmp_path / "grown"
    run("add", catalogue, shop / "new.npy", "--ids", shop / "new.txt", "--out", out)
    shown, told = capsys.readouterr()
    assert "129" in shown
    assert "130" not in shown.split()
    assert "… and 10 more" in shown
    assert told == f"Wrote {out}\n"
    assert (len(SemanticIDs.load(catalogue)), len(SemanticIDs.load(out))) == (120, 140)


def test_words_take_the_kind_of_the_catalogue(shop, tmp_path, small, run):
    (tmp_path / "ids.txt").write_text("".join(f"{row:03d}\n" for row in range(120)))
    (tmp_path / "new.txt").write_text("".join(f"{row}\n" for row in range(120, 140)))
    catalogue = tmp_path / "a"
    run("fit", shop / "x.npy", "--ids", tmp_path / "ids.txt", *small, "--out", catalogue)
    run("add", catalogue, shop / "new.npy", "--ids", tmp_path / "new.txt")
    run("remove", catalogue, "125", "007")
    grown = SemanticIDs.load(catalogue)
    assert grown.item_ids.dtype.kind == "U"
    assert len(grown) == 138


def test_add_reads_ids_beside_vectors(shop, tmp_path, small, run, run_json):
    names = ["--id-column", "name", "--column", "vector"]
    run("fit", shop / "x.npy", "--ids", shop / "names.txt", *small, "--out", tmp_path / "a")
    assert run_json("add", tmp_path / "a", shop / "x.parquet", *names)["added"] == 0


def test_remove_retires(catalogue, tmp_path, run, run_json, capsys):
    (tmp_path / "old.txt").write_text("5\n6\n")
    found = run_json("remove", catalogue, 7, "--file", tmp_path / "old.txt")
    assert (found["retired"], found["items"], found["number"]) == (3, 117, 1)
    left = SemanticIDs.load(catalogue)
    assert sorted(left.retired_ids.tolist()) == [5, 6, 7]
    run("remove", catalogue, 7)
    assert "Nothing to retire" in capsys.readouterr().err
    run("remove", catalogue, 8, "--out", tmp_path / "b")
    assert (len(SemanticIDs.load(catalogue)), len(SemanticIDs.load(tmp_path / "b"))) == (117, 116)


def test_refit_is_the_library_s_refit(shop, catalogue, tmp_path, run, run_json):
    old = SemanticIDs.load(catalogue)
    expected, stability = old.refit(np.load(shop / "x.npy"))
    words = ["--encoder", "toy", "--threads", 1, "--out", tmp_path / "new"]
    found = run_json("refit", catalogue, shop / "two.npz", "--key", "old", *words)
    assert SemanticIDs.load(tmp_path / "new").version == expected.version == found["version"]
    assert found["parent"] == old.version
    assert found["kept"] == pytest.approx(list(stability.kept))
    assert found["new_mse"] == pytest.approx(stability.new_mse)
    assert SemanticIDs.load(catalogue).version == old.version

    (tmp_path / "ids.txt").write_text("".join(f"{row}\n" for row in range(120)))
    anew = ["--no-warm-start", "--codebook-size", 6, "--set", "rounds=0"]
    run("refit", catalogue, shop / "x.npy", "--ids", tmp_path / "ids.txt", *anew,
        "--out", tmp_path / "cold")  # fmt: skip
    assert SemanticIDs.load(tmp_path / "cold").codebook_sizes == (6, 6, 6)


def test_refit_reads_ids_beside_vectors(shop, tmp_path, small, run, capsys):
    names = ["--id-column", "name", "--column", "vector"]
    run("fit", shop / "x.parquet", *names, *small, "--out", tmp_path / "a")
    capsys.readouterr()
    run("refit", tmp_path / "a", shop / "x.parquet", *names, "--warm-start",
        "--out", tmp_path / "b")  # fmt: skip
    assert "first_codes" in capsys.readouterr().out


ADD = ["add", "{ids}", "{shop}/new.npy"]
BAD_CALLS = [
    (ADD, "Name --id-column or --ids"),
    ([*ADD, "--ids", "{shop}/names.txt"], "integers; got 'i000'"),
    ([*ADD, "--ids", "{shop}/new.txt", "--encoder", "other"], "encoder='toy'"),
    ([*ADD, "--ids", "{shop}/new.txt", "--delta", "{tmp}/d.csv"], ".parquet"),
    ([*ADD, "--ids", "{shop}/new.txt", "--delta", "{tmp}/none/d.parquet"], "no folder"),
    ([*ADD, "--ids", "{shop}/new.txt", "--out", "{tmp}/full"], "exists already"),
    (["add", "{tmp}/codes", "{shop}/new.npy", "--ids", "{shop}/new.txt"], "no codebooks"),
    (["add", "{tmp}/full", "{shop}/new.npy", "--ids", "{shop}/new.txt"], "no folder of semantic"),
    (["remove", "{ids}"], "no item ids"),
    (["remove", "{ids}", "5000"], "unknown"),
    (["remove", "{ids}", "tea"], "integers; got 'tea'"),
    (["remove", "{ids}", "5", "--out", "{tmp}/full"], "exists already"),
    (["refit", "{ids}", "{shop}/x.npy", "--out", "{ids}"], "exists already"),
    (["refit", "{ids}", "{shop}/new.npy", "--out", "{tmp}/a"], "120 items published"),
    (
        ["refit", "{ids}", "{shop}/x.npy", "--codebook-size", "4", "--out", "{tmp}/a"],
        "--no-warm-start",
    ),
]


@pytest.mark.parametrize(("words", "message"), BAD_CALLS, ids=[case[1] for case in BAD_CALLS])
def test_bad_growth(shop, catalogue, tmp_path, refused, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    SemanticIDs.from_codes(np.arange(6).reshape(3, 2)).save(tmp_path / "codes")
    places = {"shop": shop, "tmp": tmp_path, "ids": catalogue}
    refused([word.format(**places) for word in words], message)


def test_ctrl_c_while_saving_leaves_the_old_version(shop, catalogue, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    before = SemanticIDs.load(catalogue).version
    monkeypatch.setattr("rqtoolkit.semantic_ids.folder._write_items", stop)
    words = ["add", catalogue, shop / "new.npy", "--ids", shop / "new.txt"]
    assert main(["semantic-ids", *map(str, words)]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    monkeypatch.undo()
    assert SemanticIDs.load(catalogue).version == before
    assert [path.name for path in catalogue.parent.iterdir()] == [catalogue.name]
