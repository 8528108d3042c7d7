"""`export` and `import`: every format there and back."""

import csv
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqtoolkit import SemanticIDs
from rqtoolkit.cli.semantic_ids.items import ids_of_words

FORMATS = ["lc-rec", "grid", "torch-easy-rec", "tokens", "csv", "parquet"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("counter", [False, True], ids=["codes", "counter"])
def test_codes_come_back(tmp_path, run_json, name, counter):
    codes = np.random.default_rng(0).permutation(60)[:30]
    codes = np.column_stack([codes // 12, codes // 4 % 3, codes % 4])
    if counter:
        codes[:, 2] = [(codes[:row, :2] == codes[row, :2]).all(1).sum() for row in range(30)]
    collisions = "token" if counter else "allow"
    ids = SemanticIDs.from_codes(codes, np.arange(30)[::-1], collisions=collisions)
    ids.save(tmp_path / "a")
    file = tmp_path / ("f.parquet" if name == "parquet" else "f.any")
    found = run_json("export", tmp_path / "a", "--to", name, "--out", file)
    assert found == {"items": 30, "length": 3, "bytes": file.stat().st_size}
    words = ["--counter"] if counter else []
    run_json("import", file, "--from", name, *words, "--encoder", "e", "--out", tmp_path / "b")
    back = SemanticIDs.load(tmp_path / "b", encoder="e")
    assert back.collisions == collisions
    assert sorted(back.item_ids.tolist()) == list(range(30))
    np.testing.assert_array_equal(back.lookup(ids.item_ids), codes)


def test_files_are_what_others_read(tmp_path, run):
    codes = np.array([[3, 1], [0, 2]])
    SemanticIDs.from_codes(codes, ["tea, green", "cup"]).save(tmp_path / "a")
    run("export", tmp_path / "a", "--to", "lc-rec", "--out", tmp_path / "i.json")
    found = json.loads((tmp_path / "i.json").read_text())
    assert found == {"tea, green": ["<a_3>", "<b_1>"], "cup": ["<a_0>", "<b_2>"]}
    style = ["--style", "[{number}:{code}]"]
    run("export", tmp_path / "a", "--to", "tokens", *style, "--out", tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text() == "tea, green\t[0:3][1:1]\ncup\t[0:0][1:2]\n"
    run("import", tmp_path / "t.txt", "--from", "tokens", *style, "--out", tmp_path / "b")
    np.testing.assert_array_equal(SemanticIDs.load(tmp_path / "b").codes, codes)
    run("export", tmp_path / "a", "--to", "csv", "--out", tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert rows[0] == {"item_id": "tea, green", "code_0": "3", "code_1": "1"}
    words = ["--to", "grid", "--out", tmp_path / "g.pt", "--ids-out", tmp_path / "g.txt"]
    run("export", tmp_path / "a", *words)
    np.testing.assert_array_equal(torch.load(tmp_path / "g.pt", weights_only=True), codes.T)
    words = ["--ids", tmp_path / "g.txt", "--codebook-size", "4,3"]
    run("import", tmp_path / "g.pt", "--from", "grid", *words, "--out", tmp_path / "d")
    back = SemanticIDs.load(tmp_path / "d")
    assert back.item_ids.tolist() == ["tea, green", "cup"]
    assert back.codebook_sizes == (4, 3)


def test_a_saved_folder_s_own_table_is_read(shop, tmp_path, run):
    file = shop / "ids" / "ids.parquet"
    run("import", file, "--from", "parquet", "--out", tmp_path / "a")
    expected, found = SemanticIDs.load(shop / "ids"), SemanticIDs.load(tmp_path / "a")
    np.testing.assert_array_equal(found.codes, expected.codes)
    assert found.item_ids.tolist() == expected.item_ids.tolist()


@given(st.lists(st.integers(-(10**18) + 1, 10**18 - 1), min_size=1), st.booleans())
def test_words_are_integers_only_if_nothing_is_lost(numbers, padded):
    words = [str(number) for number in numbers]
    if padded:
        words[0] = "0" + words[0].removeprefix("-")
    found = ids_of_words(words)
    assert [str(item) for item in found.tolist()] == words
    assert found.dtype.kind == ("U" if padded else "i")


EXPORT, IMPORT = ["export", "{tmp}/a"], ["import", "--out", "{tmp}/b"]
BAD_CALLS = [
    ([*EXPORT, "--to", "grid", "--out", "{tmp}/g.pt"], "item_ids have to be 0"),
    ([*EXPORT, "--to", "csv", "--out", "{tmp}/none/c.csv"], "no folder"),
    ([*EXPORT, "--to", "csv", "--out", "{tmp}/c", "--ids-out", "{tmp}/d"], "for --to=grid"),
    ([*EXPORT, "--to", "grid", "--out", "{tmp}/c", "--ids-out", "{tmp}/c"], "is also --out"),
    ([*EXPORT, "--to", "tokens", "--style", "<{code}>", "--out", "{tmp}/t"], "style"),
    ([*EXPORT, "--to", "tokens", "--out", "{tmp}/t"], "tabs"),
    ([*EXPORT, "--to", "csv", "--style", "<a>", "--out", "{tmp}/c"], "is for --to=tokens; got csv"),
    ([*IMPORT, "{tmp}/good.csv", "--from", "csv", "--style", "<a>"], "is for --from=tokens"),
    (["export", "{tmp}", "--to", "csv", "--out", "{tmp}/c"], "no folder of semantic IDs"),
    ([*IMPORT, "{tmp}/none", "--from", "csv"], "none does not exist. Check the path."),
    ([*IMPORT, "{tmp}/none", "--from", "parquet"], "none does not exist. Check the path."),
    ([*IMPORT, "{tmp}/none", "--from", "lc-rec"], "none"),
    ([*IMPORT, "{tmp}/head.csv", "--from", "csv"], "columns item_id, code_0"),
    ([*IMPORT, "{tmp}/odd.csv", "--from", "csv"], "2 fields a line"),
    ([*IMPORT, "{tmp}/words.csv", "--from", "csv"], "codes have to be integers"),
    ([*IMPORT, "{tmp}/bare.csv", "--from", "csv"], "and items"),
    ([*IMPORT, "{tmp}/good.csv", "--from", "csv", "--codebook-size", "1"], "below 1"),
    ([*IMPORT, "{tmp}/good.csv", "--from", "csv", "--ids", "{tmp}/x"], "for --from=grid"),
    ([*IMPORT, "{tmp}/good.csv", "--from", "tokens"], "an id, a tab and tokens"),
    ([*IMPORT, "{tmp}/good.csv", "--from", "parquet"], "good.csv"),
    ([*IMPORT, "{tmp}/odd.txt", "--from", "tokens"], "semantic ID"),
    (["import", "{tmp}/good.csv", "--from", "csv", "--out", "{tmp}/a"], "exists already"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD_CALLS, ids=[" ".join(c[0][-2:]) for c in BAD_CALLS]
)
def test_bad_exchanges(tmp_path, refused, words, message):
    SemanticIDs.from_codes(np.arange(4).reshape(2, 2), ["a\tb", "c"]).save(tmp_path / "a")
    files = {
        "head.csv": "item,codes\n1,2\n",
        "odd.csv": "item_id,code_0\n1,2,3\n",
        "words.csv": "item_id,code_0\n1,many\n",
        "bare.csv": "item_id,code_0\n",
        "good.csv": "item_id,code_0\n1,2\n",
        "odd.txt": "1\t<a_1>\n2\t<b_1>\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    refused([word.replace("{tmp}", str(tmp_path)) for word in words], message)
