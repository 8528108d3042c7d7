"""Tokenizers: trained, saved, loaded; rows of one length; refusals."""

import json
import pickle

import pytest
import torch
from typer.testing import CliRunner

from imagegen.config import load_config
from imagegen.runs import Run
from imagegen.text import (
    Tokenizer,
    keep_tokenizer,
    load_run_tokenizer,
    load_tokenizer,
    read_texts,
    train_tokenizer,
    training_tokenizer,
)
from rqtoolkit.cli.app import app
from rqtoolkit.errors import ArtifactError, ConfigError, DataError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a red square on a blue ground", "a blue square", "two red circles on a blue ground"]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(TEXTS, vocabulary=300, length=8)


def test_texts_become_rows_of_one_length(trained):
    rows = trained.encode(["a blue square", "", "A BLUE SQUARE", " ".join(TEXTS)])
    assert (rows.dtype, rows.shape) == (torch.int64, (4, 8))
    assert trained.vocabulary <= 300
    assert 0 <= rows.min() <= rows.max() < trained.vocabulary
    pad = trained.backend.token_to_id("[PAD]")
    assert rows[1].tolist() == [pad] * 8
    assert torch.equal(rows[0], rows[2])  # letters are lowered
    assert (rows[0] == pad).any()  # short texts end in padding
    assert (rows[0][(rows[0] == pad).int().argmax() :] == pad).all()
    assert not (rows[3] == pad).any()  # long ones are cut
    assert trained.encode([]).shape == (0, 8)


def test_bytes_survive_whatever_was_never_seen(trained):
    long = Tokenizer(pickle.loads(pickle.dumps(trained.backend)), 64)
    for text in ("zebra 斑馬 🦓", "ünïcödé", "a\tb"):
        row = long.encode([text])[0].tolist()
        assert long.backend.decode(row).strip() == text


def test_training_is_repeatable_and_survives_saving_and_pickling(trained, tmp_path):
    again = train_tokenizer(TEXTS, vocabulary=300, length=8)
    assert again.backend.to_str() == trained.backend.to_str()
    trained.save(tmp_path / "tokenizer.json")
    for other in (load_tokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(trained))):
        assert torch.equal(other.encode(TEXTS), trained.encode(TEXTS))
    longer = load_tokenizer(tmp_path / "tokenizer.json", length=12)
    assert torch.equal(longer.encode(TEXTS)[:, :8], trained.encode(TEXTS))


def test_dropout_of_merges_is_turned_off(trained):
    backend = tokenizers.Tokenizer.from_str(trained.backend.to_str())
    backend.model.dropout = 0.9
    other = Tokenizer(backend, 8)
    assert torch.equal(other.encode(TEXTS * 20), trained.encode(TEXTS * 20))


def test_the_files_of_released_models_are_read_as_their_authors_do(tmp_path):
    vocabulary = {word: n for n, word in enumerate(["[UNK]", "a", "c", "a</w>", "t</w>", "at</w>"])}
    (tmp_path / "bpe-vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "bpe-merges.txt").write_text("#version: 0.2\na t</w>\n")
    ours = load_tokenizer(tmp_path, length=6)
    theirs = tokenizers.CharBPETokenizer.from_file(
        str(tmp_path / "bpe-vocab.json"),
        str(tmp_path / "bpe-merges.txt"),
        unk_token="[UNK]",
        lowercase=True,
    )
    theirs.add_special_tokens(["[PAD]"])
    theirs.enable_padding(length=6, pad_id=theirs.token_to_id("[PAD]"))
    theirs.enable_truncation(max_length=6)
    for text in ("a cat", "CAT a", "dog", "a " * 9):
        assert ours.encode([text])[0].tolist() == theirs.encode(text).ids
    assert ours.encode(["a cat"])[0].tolist() == [3, 2, 5, 6, 6, 6]  # a, c+at, padding


def test_refusals(tmp_path):
    with pytest.raises(ArtifactError, match=r"neither a tokenizer\.json nor a folder"):
        load_tokenizer(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"broken\.json cannot be read"):
        load_tokenizer(tmp_path / "broken.json")
    bare = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    bare.save(str(tmp_path / "bare.json"))
    with pytest.raises(ConfigError, match="pads to no length"):
        load_tokenizer(tmp_path / "bare.json")
    with pytest.raises(ConfigError, match=r"no token \[PAD\]"):
        load_tokenizer(tmp_path / "bare.json", length=4)
    with pytest.raises(ConfigError, match="vocabulary=256 must be over 256"):
        train_tokenizer(TEXTS, vocabulary=256)
    with pytest.raises(DataError, match="nothing to learn from"):
        train_tokenizer(["", " "])


def test_texts_come_from_lines_and_from_lists(tmp_path):
    (tmp_path / "lines.txt").write_text("one text\n\nanother\n", encoding="utf-8")
    assert list(read_texts(tmp_path / "lines.txt")) == ["one text", "another"]
    (tmp_path / "list.txt").write_text("./a.png\tone text\n./b.png\tanother\n", encoding="utf-8")
    assert list(read_texts(tmp_path / "list.txt")) == ["one text", "another"]
    (tmp_path / "list.csv").write_text('path,text\na.png,"one, two"\n', encoding="utf-8")
    assert list(read_texts(tmp_path / "list.csv")) == ["one, two"]
    (tmp_path / "classes.tsv").write_text("a.png\t3\n", encoding="utf-8")
    with pytest.raises(DataError, match="has no captions"):
        read_texts(tmp_path / "classes.tsv")
    with pytest.raises(ArtifactError, match="cannot be read as texts"):
        read_texts(tmp_path / "none.txt")


def test_a_run_keeps_its_tokenizer(tmp_path, trained):
    named = tmp_path / "named.json"
    trained.save(named)
    config = load_config("digits", overrides={"data.tokenizer": str(named)})
    run = Run.create(tmp_path / "run", config)
    keep_tokenizer(run, training_tokenizer(run))
    keep_tokenizer(run, training_tokenizer(run))  # the same again, as on resuming
    train_tokenizer(["quite other words"], vocabulary=270, length=32).save(named)
    with pytest.raises(ConfigError, match=r"is not the one this run began with; got another"):
        training_tokenizer(run)
    assert training_tokenizer(run, anew=True).vocabulary == load_tokenizer(named).vocabulary
    named.unlink()
    assert torch.equal(training_tokenizer(run).encode(TEXTS), trained.encode(TEXTS))
    with pytest.raises(ArtifactError, match="neither a tokenizer"):
        training_tokenizer(run, anew=True)
    assert torch.equal(load_run_tokenizer(run).encode(TEXTS), trained.encode(TEXTS))
    plain = Run.create(tmp_path / "plain", load_config("digits"))
    assert training_tokenizer(plain) is None
    keep_tokenizer(plain, None)
    with pytest.raises(ConfigError, match="was trained without texts"):
        load_run_tokenizer(plain)


def test_command(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "tokenizer.json"
    arguments = ["imagegen", "tokenizer", str(tmp_path / "texts.txt"), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--vocabulary", "280", "--length", "5"])
    assert result.exit_code == 0, result.output
    assert "5 a text" in result.output
    assert load_tokenizer(out).encode(["a red"]).shape == (1, 5)
