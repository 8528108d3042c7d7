import numpy as np
import pytest
from tiny_language_models import make_model, make_tokenizer

from rqtoolkit.errors import DataError
from rqtoolkit.semantic_ids import SemanticIDs
from rqtoolkit.semantic_ids.decoding import beam_search, extend_tokenizer
from rqtoolkit.semantic_ids.ngrams import ngram_sizes
from rqtoolkit.semantic_ids.tokens import parse_tokens

NAMES = np.array([f"item {row}" for row in range(120)])


@pytest.fixture(scope="module", params=["match", "token", "allow"])
def ids(request):
    x = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    x[7] = x[3]
    return SemanticIDs.fit(x, NAMES, depth=2, codebook_size=16, collisions=request.param)


def test_every_item_is_found_again(ids):
    table = ids.prefix_table()
    scores = [np.zeros((1, 1, size)) for size in ids.codebook_sizes]
    found = beam_search(lambda prefixes, _: scores[prefixes.shape[-1]], table, 1, beams=120)
    rows = [row for state in table.find(found.codes[0]) for row in table.all_rows(state).tolist()]
    assert sorted(rows) == list(range(120))
    assert np.array_equal(table.rows(table.find(ids.codes)) == np.arange(120), _first(ids.codes))


def _first(codes):
    seen = set()
    return np.array([not (tuple(code) in seen or seen.add(tuple(code))) for code in codes.tolist()])


def test_items_in_stock(ids):
    table = ids.prefix_table(NAMES[[5, 50]])
    states = table.find(ids.codes[[5, 50, 60]])
    assert table.rows(states)[:2].tolist() == [5, 50]
    assert table.num_rows == 120
    with pytest.raises(DataError):
        ids.prefix_table(["item 999"])


def test_tokens_and_features(ids):
    assert np.array_equal(parse_tokens(ids.tokens(), ids.codes.shape[1]), ids.codes)
    features = ids.prefix_ngrams(table_size=100)
    assert (features.max(axis=0) < ngram_sizes(ids.codebook_sizes, table_size=100)).all()


def test_a_model_learns_the_tokens(ids):
    tokenizer, model = make_tokenizer(), make_model("gpt2")
    tokens = extend_tokenizer(ids, tokenizer, model)
    assert [len(row) for row in tokens] == list(ids.codebook_sizes)
    assert len(model.get_input_embeddings().weight) == len(tokenizer)
    written = [row[code] for row, code in zip(tokens, ids.codes[0], strict=True)]
    assert tokenizer(ids.tokens()[0])["input_ids"] == written


def test_ids_made_elsewhere():
    ids = SemanticIDs.from_codes(np.array([[0, 1], [1, 0], [1, 1]]), ["a", "b", "c"])
    tokens = extend_tokenizer(ids, make_tokenizer(), make_model("gpt2"))
    assert [len(row) for row in tokens] == [2, 2]
