"""Language models and a tokenizer made in memory, and semantic IDs for them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rqtoolkit import ResidualQuantizer

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

SIZES = (8, 6, 4)
PAD, END, START = 0, 1, 2
WORDS = ("buy", "a", "lamp", "chair", "then", "blue")


def catalogue(seed=0, rows=25):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(size, size=rows) for size in SIZES], 1)
    return np.unique(codes, axis=0)[rng.permutation(len(np.unique(codes, axis=0)))]


def semantic_ids(dim=16, sizes=SIZES, counter=0):
    torch.manual_seed(3)
    quantizer = ResidualQuantizer(dim, len(sizes), list(sizes))
    x = torch.randn(300, dim)
    quantizer.fit(x)
    codes = quantizer.encode(x).numpy()
    if counter:
        codes = np.column_stack([codes, np.arange(300) % counter])
    return SimpleNamespace(
        quantizer=quantizer,
        codes=codes,
        codebook_sizes=(*sizes, counter) if counter else sizes,
        depth=len(sizes),
    )


def make_tokenizer():
    words = {"<pad>": PAD, "</s>": END, "<item>": START, "<unk>": 3}
    words |= {word: len(words) + i for i, word in enumerate(WORDS)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    core.normalizer = tokenizers.normalizers.Lowercase()
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<item>"], padding_side="left",
    )  # fmt: skip


def make_model(kind, vocabulary=10, tied=True, width=32):
    torch.manual_seed(1)
    ends = {"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": START}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=2, n_head=2, n_positions=64,
            tie_word_embeddings=tied, **ends,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config)
    elif kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48, tie_word_embeddings=tied, **ends,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            vocab_size=vocabulary, d_model=width, d_kv=16, d_ff=48, num_layers=2, num_heads=2,
            decoder_start_token_id=PAD, tie_word_embeddings=tied, **ends,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
    # Sharper than the start of a training: choices then differ between users.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()
