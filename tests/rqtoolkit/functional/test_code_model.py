import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit.functional.code_model import CodeModel, block_rows
from rqtoolkit.functional.entropy_coding import CodeDecoder, CodeEncoder

BLENDS = [(start, weight) for weight in (0, 4096, 512, 64, 8) for start in (1, 1 / 16)]


def blocks(codes):
    done = 0
    while done < len(codes):
        size = block_rows(done, codes.shape[1])
        yield codes[done : done + size]
        done += size


def encode(codes, sizes):
    model, encoder = CodeModel(sizes), CodeEncoder()
    bits = sum(model.encode(encoder, block) for block in blocks(codes))
    return encoder.to_bytes(), bits


def decode(encoded, rows, sizes):
    model, decoder = CodeModel(sizes), CodeDecoder(encoded)
    empty = np.empty((rows, len(sizes)), np.int64)
    parts = [model.decode(decoder, len(block)) for block in blocks(empty)]
    return np.concatenate([empty[:0], *parts])


def plain_bits(codes, sizes):
    """What the model spends, code by code, with dictionaries of counts."""
    counts = [Counter() for _ in sizes]
    pairs = [Counter() for _ in sizes]
    chosen = [[1] * len(BLENDS) for _ in sizes]
    bits, done = 0.0, 0
    for block in blocks(codes):
        for level, size in enumerate(sizes):
            if size == 1:
                continue
            costs = []
            for start, weight in BLENDS:
                cost = 0.0
                for row in block.tolist():
                    code = row[level]
                    odds = (counts[level][code] + start) / (done + start * size)
                    if level and weight and sizes[level - 1] > 1:
                        seen = counts[level - 1][row[level - 1]]
                        odds = (pairs[level][row[level - 1], code] + weight * odds) / (
                            seen + weight
                        )
                    cost -= math.log2(odds)
                costs.append(cost)
            best = int(np.argmin(costs))
            if done:
                bits -= math.log2(chosen[level][best] / sum(chosen[level]))
                chosen[level][best] += 1
            bits += costs[best]
        for row in block.tolist():
            for level, code in enumerate(row):
                counts[level][code] += 1
                pairs[level][row[level - 1] if level else None, code] += 1
        done += len(block)
    return bits


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.sampled_from([1, 2, 3, 17, 256, 5000, 65536]), min_size=1, max_size=4),
    rows=st.integers(0, 700),
    concentration=st.sampled_from([0.02, 1.0, 100.0]),
)
def test_round_trip_is_exact_and_costs_what_the_model_says(seed, sizes, rows, concentration):
    generator = np.random.default_rng(seed)
    columns = [
        generator.integers(0, max(1, math.ceil(size * min(1.0, concentration))), rows)
        for size in sizes
    ]
    codes = np.stack(columns, axis=1)
    encoded, bits = encode(codes, sizes)
    np.testing.assert_array_equal(decode(encoded, rows, sizes), codes)
    assert len(encoded) * 8 <= 1.01 * bits + 48


@pytest.mark.parametrize("sizes", [(5,), (4, 6), (1, 3, 1, 3), (16, 16, 16)])
def test_bits_are_those_of_a_plain_count(sizes):
    generator = np.random.default_rng(3)
    codes = np.minimum(generator.geometric(0.3, (900, len(sizes))) - 1, np.array(sizes) - 1)
    codes[:, 1:] = (codes[:, 1:] + codes[:, :-1]) % np.array(sizes[1:])
    _, bits = encode(codes, sizes)
    assert bits == pytest.approx(plain_bits(codes, sizes), rel=1e-9)


def test_a_chain_of_levels_costs_its_conditional_entropy():
    generator = np.random.default_rng(0)
    first = generator.dirichlet(np.ones(32))
    change = generator.dirichlet(np.full(32, 0.1), size=32)
    rows = 40_000
    top = generator.choice(32, size=rows, p=first)
    low = (change.cumsum(1)[top] < generator.random((rows, 1))).sum(1).clip(max=31)
    entropy = -(first * np.log2(first)).sum()
    chain = entropy - (first[:, None] * change * np.log2(np.maximum(change, 1e-300))).sum()
    encoded, _ = encode(np.stack([top, low], axis=1), (32, 32))
    alone = np.bincount(low, minlength=32) / rows
    assert len(encoded) * 8 / rows == pytest.approx(chain, rel=0.02)
    assert chain < 0.8 * (entropy - (alone * np.log2(np.maximum(alone, 1e-300))).sum())


def test_codes_without_pattern_cost_their_full_length():
    codes = np.random.default_rng(0).integers(0, 256, (20_000, 2))
    encoded, _ = encode(codes, (256, 256))
    assert 1.0 < len(encoded) / codes.size < 1.015  # the frequencies have to be learnt


def test_blocks_grow_with_what_is_known_within_bounds():
    assert [block_rows(done, 8) for done in (0, 512, 8000, 2**30)] == [64, 64, 1000, 2**17]
    assert block_rows(2**30, 2**21) == 1
