from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_language_models import SIZES, make_model, make_tokenizer, semantic_ids

from rqtoolkit.errors import MissingDependencyError
from rqtoolkit.semantic_ids.decoding import extend_tokenizer
from rqtoolkit.semantic_ids.tokens import format_tokens


class TestTokens:
    def test_each_code_is_one_token_that_reads_back(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        known = len(tokenizer)
        tokens = extend_tokenizer(ids, tokenizer)
        assert [len(row) for row in tokens] == list(SIZES)
        assert np.concatenate(tokens).tolist() == list(range(known, known + sum(SIZES)))
        text = "buy " + "".join(format_tokens(ids.codes[:1]))
        wanted = [row[code] for row, code in zip(tokens, ids.codes[0], strict=True)]
        assert tokenizer(text)["input_ids"][1:] == wanted

    def test_capitals_survive_a_tokenizer_that_lowers_them(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        tokens = extend_tokenizer(ids, tokenizer, style="<SID_{level}_{code}>")
        assert tokenizer("a <SID_b_3>")["input_ids"][1:] == [tokens[1][3]]

    def test_a_second_call_adds_what_is_new(self):
        tokenizer, model = make_tokenizer(), make_model("gpt2")
        first = extend_tokenizer(semantic_ids(counter=2), tokenizer, model)
        with torch.no_grad():
            model.get_input_embeddings().weight += 1  # trained meanwhile
        before = model.get_input_embeddings().weight.clone()
        second = extend_tokenizer(semantic_ids(counter=4), tokenizer, model)
        assert [row[: len(old)].tolist() for row, old in zip(second, first, strict=True)] == [
            old.tolist() for old in first
        ]
        after = model.get_input_embeddings().weight
        assert len(after) == len(before) + 2
        assert torch.equal(after[: len(before)], before)

    def test_without_transformers(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        with pytest.raises(MissingDependencyError, match=r"rqtoolkit\[huggingface\]"):
            extend_tokenizer(semantic_ids(), object())


def rows_of(weight, tokens):
    return [weight.detach()[torch.from_numpy(row)] for row in tokens]


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("kind", "tied"),
        [("gpt2", True), ("gpt2", False), ("llama", True), ("llama", False), ("t5", True)],
    )
    def test_norms_and_angles(self, kind, tied):
        ids, tokenizer = semantic_ids(dim=16), make_tokenizer()
        model = make_model(kind, len(tokenizer), tied)
        known = model.get_input_embeddings().weight.detach().clone()
        known_head = model.get_output_embeddings().weight.detach().clone()
        tokens = extend_tokenizer(ids, tokenizer, model)
        weight, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        assert len(weight) == len(head) == len(tokenizer) == model.config.vocab_size
        assert (weight.data_ptr() == head.data_ptr()) == tied
        for old, new in ((known, weight), (known_head, head)):
            assert torch.equal(new[: len(old)], old)
            norm = old.norm(dim=1)
            for level, rows in enumerate(rows_of(new, tokens)):
                assert torch.isclose(rows.norm(dim=1).mean(), norm[norm > 0].mean(), rtol=1e-4)
                # 16 dimensions fit into 32: angles and relative lengths are those of codewords.
                words = ids.quantizer.codebooks[level, : SIZES[level]]
                wanted = words @ words.T / words.norm(dim=1).mean() ** 2
                assert torch.allclose(
                    rows @ rows.T / rows.norm(dim=1).mean() ** 2, wanted, atol=1e-4
                )

    def test_codewords_wider_than_the_model(self):
        ids, tokenizer = semantic_ids(dim=64), make_tokenizer()
        model = make_model("gpt2", len(tokenizer))
        tokens = extend_tokenizer(ids, tokenizer, model)
        rows = rows_of(model.get_input_embeddings().weight, tokens)[0]
        words = ids.quantizer.codebooks[0, : SIZES[0]]
        cosines = [torch.nn.functional.normalize(table) for table in (rows, words)]
        both = torch.stack([(table @ table.T).flatten() for table in cosines])
        assert torch.corrcoef(both)[0, 1] > 0.8

    def test_rows_to_spare_are_used_and_the_model_never_shrinks(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        model = make_model("t5", 50)  # 10 of them in the tokenizer
        before = model.get_input_embeddings().weight.detach().clone()
        tokens = extend_tokenizer(ids, tokenizer, model)
        weight = model.get_input_embeddings().weight
        assert len(weight) == 50
        assert torch.equal(weight[:10], before[:10])
        new = torch.from_numpy(np.concatenate(tokens))
        assert not torch.isclose(weight[new], before[new]).any()

    def test_tokenizer_first_and_model_later(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        extend_tokenizer(ids, tokenizer)
        model = make_model("gpt2")
        tokens = extend_tokenizer(ids, tokenizer, model)
        words = ids.quantizer.codebooks[0, : SIZES[0]]
        rows = rows_of(model.get_input_embeddings().weight, tokens)[0]
        cosines = [torch.nn.functional.normalize(table) for table in (rows, words)]
        assert torch.allclose(*(table @ table.T for table in cosines), atol=1e-4)

    def test_levels_without_codewords_start_random_at_the_same_norm(self):
        tokenizer = make_tokenizer()
        model = make_model("gpt2", len(tokenizer))
        norm = model.get_input_embeddings().weight.norm(dim=1).mean()
        tokens = extend_tokenizer(semantic_ids(counter=5), tokenizer, model)
        rows = rows_of(model.get_input_embeddings().weight, tokens)[3]
        assert torch.allclose(rows.norm(dim=1), norm.expand(5), rtol=1e-4)
        assert torch.linalg.matrix_rank(rows) == 5
        unknown = SimpleNamespace(quantizer=None, codebook_sizes=(3, 2), depth=2)
        model, tokenizer = make_model("gpt2"), make_tokenizer()
        assert [len(row) for row in extend_tokenizer(unknown, tokenizer, model)] == [3, 2]
        assert len(torch.unique(model.get_input_embeddings().weight[-5:], dim=0)) == 5

    def test_quantizers_without_tables_start_from_what_codes_change(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        tables = SimpleNamespace(decode=ids.quantizer.decode)
        hidden = SimpleNamespace(**{**vars(ids), "quantizer": tables})
        models = [make_model("gpt2", len(tokenizer)) for _ in range(2)]
        for given, model in zip((ids, hidden), models, strict=True):
            extend_tokenizer(given, make_tokenizer(), model)
        first, second = (model.get_input_embeddings().weight for model in models)
        assert torch.allclose(first, second, atol=1e-4)

    def test_half_precision_and_seed(self):
        ids, tokenizer = semantic_ids(), make_tokenizer()
        models = [make_model("llama", len(tokenizer)).to(torch.bfloat16) for _ in range(3)]
        for seed, model in zip((0, 0, 1), models, strict=True):
            extend_tokenizer(ids, make_tokenizer(), model, seed=seed)
        first, second, other = (model.get_input_embeddings().weight for model in models)
        assert first.dtype == torch.bfloat16
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
