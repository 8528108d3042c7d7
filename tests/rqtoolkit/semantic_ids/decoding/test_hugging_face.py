import numpy as np
import pytest
import torch
from tiny_language_models import (
    END,
    SIZES,
    START,
    catalogue,
    make_model,
    make_tokenizer,
    semantic_ids,
    transformers,
)

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.semantic_ids.decoding import (
    PrefixTable,
    beam_search,
    extend_tokenizer,
    logits_processor,
    read_codes,
)
from rqtoolkit.semantic_ids.tokens import format_tokens, parse_tokens


@pytest.fixture(scope="module")
def tokenizer_and_tokens():
    tokenizer = make_tokenizer()
    return tokenizer, extend_tokenizer(semantic_ids(), tokenizer)


def all_valid(codes, items):
    return set(map(tuple, codes.tolist())) <= set(map(tuple, items.tolist()))


PROMPTS = ["buy a lamp", "chair", "buy a blue chair then a lamp"]


class TestGenerate:
    @pytest.mark.parametrize("kind", ["gpt2", "llama"])
    @pytest.mark.parametrize(
        "how",
        [
            {"num_beams": 5, "num_return_sequences": 5},
            {"do_sample": True, "num_return_sequences": 20},
            {"do_sample": True, "num_beams": 2},
            {},
        ],
        ids=["beams", "sampling", "sampled beams", "greedy"],
    )
    def test_only_items_after_left_padded_prompts(self, kind, how, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items, model = catalogue(), make_model(kind, len(tokenizer))
        inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
        length = inputs["input_ids"].shape[1]
        constraint = logits_processor(PrefixTable(items, SIZES), tokens, prompt_length=length)
        assert isinstance(constraint, transformers.LogitsProcessor)
        out = model.generate(
            **inputs, logits_processor=[constraint], max_new_tokens=3, min_new_tokens=3, **how
        )
        found = read_codes(out, tokens, prompt_length=length)
        assert all_valid(found, items)
        texts = [text.split("lamp")[-1].split("chair")[-1] for text in tokenizer.batch_decode(out)]
        assert np.array_equal(parse_tokens(texts, 3), found)
        free = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, **how)
        assert (read_codes(free, tokens, prompt_length=length) == -1).any()

    def test_encoder_and_decoder(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items, model = catalogue(), make_model("t5", len(tokenizer))
        constraint = logits_processor(
            PrefixTable(items, SIZES), tokens, prompt_length=1, end_token=END
        )
        inputs = tokenizer(PROMPTS, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(
            **inputs, logits_processor=[constraint], num_beams=4, num_return_sequences=4,
            max_new_tokens=8,
        )  # fmt: skip
        assert all_valid(read_codes(out, tokens, prompt_length=1), items)
        assert (out[:, 4] == END).all()
        assert out.shape[1] == 5

    def test_same_beams_as_our_search(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items, model = catalogue(), make_model("llama", len(tokenizer))
        table = PrefixTable(items, SIZES)
        prompt = tokenizer(["buy lamp", "blue chair"], return_tensors="pt")["input_ids"]
        constraint = logits_processor(table, tokens, prompt_length=2)
        out = model.generate(
            prompt, logits_processor=[constraint], num_beams=6, num_return_sequences=6,
            max_new_tokens=3, min_new_tokens=3, length_penalty=0.0, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip

        def step(prefixes, _):
            level = prefixes.shape[-1]
            written = [
                torch.from_numpy(row)[prefixes[..., i]] for i, row in enumerate(tokens[:level])
            ]
            words = torch.stack(written, -1) if level else prefixes
            words = torch.cat([prompt[:, None].expand(-1, words.shape[1], -1), words], -1)
            with torch.no_grad():
                logits = model(words.flatten(0, 1)).logits[:, -1]
            return logits.log_softmax(-1)[:, torch.from_numpy(tokens[level])]

        found = beam_search(step, table.to("cpu"), 2, beams=6)
        codes = read_codes(out.sequences, tokens, prompt_length=2)
        assert codes.tolist() == found.codes.flatten(0, 1).tolist()
        assert torch.allclose(out.sequences_scores, found.scores.flatten(), atol=1e-4)

    def test_free_text_around_semantic_ids(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items = catalogue()
        history = format_tokens(items[:2])
        prompts = [
            f"buy <item>{history[0]}",
            f"<item>{history[1]} then a <item>",
            "<item>" + history[0][:5],
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)["input_ids"]
        constraint = logits_processor(
            PrefixTable(items, SIZES), tokens, start_token=START, end_token=END
        )
        scores = torch.randn(3, len(tokenizer))
        result = constraint(inputs, scores)
        assert torch.equal((result > -torch.inf).nonzero()[:1], torch.tensor([[0, END]]))
        assert (result[0] > -torch.inf).sum() == 1  # complete: only the end
        starts = tokens[0][np.unique(items[:, 0])]
        assert (result[1] > -torch.inf).nonzero()[:, 0].tolist() == starts.tolist()
        begun = items[items[:, 0] == items[0, 0]]
        assert (result[2] > -torch.inf).nonzero()[:, 0].tolist() == tokens[1][
            np.unique(begun[:, 1])
        ].tolist()
        kept = result > -torch.inf
        assert torch.equal(result[kept], scores[kept])
        plain = tokenizer(["buy a lamp"], return_tensors="pt")["input_ids"]
        assert torch.equal(constraint(plain, scores[:1]), scores[:1])  # no start: free
        free = logits_processor(PrefixTable(items, SIZES), tokens, start_token=START)
        assert torch.equal(free(inputs[:1], scores[:1]), scores[:1])  # complete, no end asked for
        assert read_codes(inputs, tokens, start_token=START).tolist() == [
            items[0].tolist(), [-1] * 3, [-1] * 3,
        ]  # fmt: skip

    def test_more_beams_than_items(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items = catalogue()[:2]
        prompt = tokenizer(["buy lamp"], return_tensors="pt")["input_ids"]
        constraint = logits_processor(PrefixTable(items, SIZES), tokens, prompt_length=2)
        out = make_model("gpt2", len(tokenizer)).generate(
            prompt, logits_processor=[constraint], num_beams=5, num_return_sequences=5,
            max_new_tokens=3, min_new_tokens=3,
        )  # fmt: skip
        found = read_codes(out, tokens, prompt_length=2)
        assert all_valid(found, items)
        assert len(torch.unique(found[:2], dim=0)) == 2

    def test_a_subset_of_the_items(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items = catalogue()
        prompt = tokenizer(["buy lamp", "a chair"], return_tensors="pt")["input_ids"]
        table = PrefixTable(items, SIZES).to("cpu").subset([4, 7, 9])
        out = make_model("gpt2", len(tokenizer)).generate(
            prompt, logits_processor=[logits_processor(table, tokens, prompt_length=2)],
            do_sample=True, num_return_sequences=30, max_new_tokens=3, min_new_tokens=3,
        )  # fmt: skip
        rows = table.rows(table.find(read_codes(out, tokens, prompt_length=2)))
        assert set(rows.tolist()) == {4, 7, 9}


class TestRefusals:
    def test_arguments(self, tokenizer_and_tokens):
        _, tokens = tokenizer_and_tokens
        table = PrefixTable(catalogue(), SIZES)
        for wrong in ({}, {"prompt_length": 1, "start_token": START}):
            with pytest.raises(ConfigError, match="pass one of them"):
                logits_processor(table, tokens, **wrong)
        with pytest.raises(ConfigError, match="start_token"):
            logits_processor(table, tokens, start_token=int(tokens[1][0]))
        with pytest.raises(ShapeError, match="token_ids"):
            logits_processor(table, tokens[::-1], prompt_length=1)
        with pytest.raises(DataError, match="empty"):
            logits_processor(table.subset([]), tokens, prompt_length=1)

    def test_a_prompt_that_begins_no_item(self, tokenizer_and_tokens):
        tokenizer, tokens = tokenizer_and_tokens
        items = catalogue()
        items = items[items[:, 0] != 0]
        constraint = logits_processor(PrefixTable(items, SIZES), tokens, start_token=START)
        inputs = torch.tensor([[START, int(tokens[0][0])]])
        with pytest.raises(DataError, match="does not exist"):
            constraint(inputs, torch.zeros(1, len(tokenizer)))

    def test_a_head_without_the_tokens(self, tokenizer_and_tokens):
        _, tokens = tokenizer_and_tokens
        constraint = logits_processor(PrefixTable(catalogue(), SIZES), tokens, prompt_length=1)
        with pytest.raises(DataError, match="extend_tokenizer"):
            constraint(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 10))
