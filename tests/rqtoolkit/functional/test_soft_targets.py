"""Soft targets as residuals: the same distributions, codes and gradients as with all held."""

from functools import partial

import pytest
import torch
from largest_tensor import LargestTensor
from torch import nn

from rqtoolkit.errors import ConfigError, DataError, ShapeError
from rqtoolkit.functional.cross_entropy import linear_cross_entropy
from rqtoolkit.functional.soft_targets import SoftTargets, soft_targets
from rqtoolkit.quantizers import ResidualQuantizer
from rqtoolkit.transformer import RQTransformer, losses

SIZES = (5, 3, 7)


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


def tables(dim=4, sizes=SIZES):
    return [torch.randn(size, dim) for size in sizes]


def plain_probabilities(x, levels, codes, tau):
    """Distances one by one, from residuals that follow the given codes."""
    out = torch.zeros(*codes.shape, max(len(table) for table in levels))
    for n, vector in enumerate(x):
        residual = vector.double()
        for level, table in enumerate(levels):
            distances = (residual - table.double()).square().sum(1)
            out[n, level, : len(table)] = (-distances / tau).softmax(0)
            residual = residual - table[codes[n, level]].double()
    return out


@pytest.mark.parametrize("stochastic", [False, True])
def test_probabilities_equal_a_plain_loop(stochastic):
    x, levels = torch.randn(20, 4), tables()
    codes, soft = soft_targets(x, levels, 0.8, stochastic=stochastic, generator=seeded())
    expected = plain_probabilities(x, levels, codes, 0.8)
    torch.testing.assert_close(soft.probabilities(), expected, atol=1e-6, rtol=1e-5)
    if not stochastic:
        assert torch.equal(expected.argmax(-1), codes)


def test_one_chunk_draws_what_one_multinomial_a_level_draws():
    x, levels, generator = torch.randn(50, 4), tables(), seeded()
    codes, soft = soft_targets(x, levels, 2.0, stochastic=True, generator=generator)
    generator = seeded()
    for level, size in enumerate(SIZES):
        probabilities = soft.probabilities()[:, level, :size]
        drawn = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        assert torch.equal(codes[:, level], drawn)


def test_draws_in_chunks_follow_the_distribution():
    x, levels = torch.zeros(40_000, 4), tables(sizes=(6,))
    codes, soft = soft_targets(
        x, levels, 2.0, stochastic=True, generator=seeded(), max_bytes=1000 * 6 * 4
    )
    found = torch.bincount(codes[:, 0], minlength=6) / len(x)
    torch.testing.assert_close(found, soft[:1].probabilities()[0, 0], atol=0.01, rtol=0.0)


def test_indexing_and_flattening_select_rows():
    residuals, levels = torch.randn(2, 3, 5, 3, 4), tables()
    soft = SoftTargets(residuals, levels, 1.0)
    dense = soft.probabilities()
    assert dense.shape == (2, 3, 5, 3, 7)
    assert torch.equal(soft.flatten(0, 2).probabilities(), dense.flatten(0, 2))
    mask = torch.tensor([True, False])
    assert torch.equal(soft[mask].probabilities(), dense[mask])
    assert torch.equal(soft.flatten(0, 2).level(1)(slice(4, 9)), dense.flatten(0, 2)[4:9, 1, :3])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_the_quantizer_gives_the_same_both_ways(relative, channels_first):
    quantizer = ResidualQuantizer(4, 3, SIZES, channels_first=channels_first)
    x = torch.randn(2, 4, 3, 5) if channels_first else torch.randn(2, 3, 5, 4)
    settings = {"relative": relative, "stochastic": True}
    dense = quantizer.soft_codes(x, 0.7, generator=seeded(), **settings)
    codes, soft = quantizer.soft_targets(x, 0.7, generator=seeded(), **settings)
    assert torch.equal(codes, dense.codes)
    assert soft.residuals.shape == (2, 3, 5, 3, 4)
    assert torch.equal(soft.probabilities(), dense.probabilities)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(soft.probabilities(), dense.probabilities)
    with pytest.raises(ConfigError, match="tau=0 has to be above 0"):
        quantizer.soft_targets(x, 0)


def build(sizes=SIZES, positions=(2, 3), **settings):
    model = RQTransformer(
        positions,
        depth=len(sizes),
        codebook_size=sizes,
        dim=16,
        body_layers=1,
        depth_layers=1,
        num_heads=2,
        dropout=0.0,
        **settings,
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def latents(batch, positions=(2, 3), sizes=SIZES):
    quantizer = ResidualQuantizer(4, len(sizes), sizes)
    return quantizer.soft_targets(torch.randn(batch, *positions, 4), 0.7, stochastic=True)


def all_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("sizes", [SIZES, (6, 6)])
@pytest.mark.parametrize("lengths", [None, [6, 1, 4]])
def test_training_equals_the_dense_path(per_level, sizes, lengths, monkeypatch):
    """Against forward and a cross-entropy over all logits at once."""
    monkeypatch.setattr(losses, "linear_cross_entropy", partial(linear_cross_entropy, max_bytes=99))
    positions = (2, 3) if lengths is None else (6,)
    model = build(sizes, positions, classifier_per_level=per_level)
    codes, soft = latents(3, positions, sizes)
    lengths = None if lengths is None else torch.tensor(lengths)
    dense = soft.probabilities().double()
    logits = model(codes, lengths=lengths)
    each = -(dense * logits.log_softmax(-1).masked_fill(logits == -torch.inf, 0.0)).sum(-1)
    flat = each.flatten(1, -2)
    real = torch.ones(flat.shape[:2], dtype=torch.bool)
    if lengths is not None:
        real = torch.arange(6) < lengths[:, None]
    expected = flat[real].mean(0)
    found = model.losses(codes, targets=soft, lengths=lengths)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    held = model.losses(codes, targets=soft.probabilities(), lengths=lengths)
    torch.testing.assert_close(held, found, rtol=1e-6, atol=1e-6)
    wanted = all_gradients(model, expected.mean())
    for one, other in zip(all_gradients(model, found.mean()), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_training_step_holds_neither_distributions_nor_logits(monkeypatch):
    batch, entries, dim = 64, 1024, 16
    model = RQTransformer(
        (4, 4), 2, entries, dim=dim, body_layers=1, depth_layers=1, num_heads=2, dropout=0.0
    )
    quantizer = ResidualQuantizer(4, 2, entries)
    budget = 2**20  # a level's logits are 4 MiB, all of them 8
    chunked = partial(linear_cross_entropy, max_bytes=budget)
    monkeypatch.setattr(losses, "linear_cross_entropy", chunked)
    with LargestTensor() as largest:
        codes, soft = quantizer.soft_targets(
            torch.randn(batch, 4, 4, 4), 0.5, stochastic=True, max_bytes=budget
        )
        model.loss(codes, targets=soft).backward()
    assert largest.bytes <= budget
    with LargestTensor() as largest:
        soft.probabilities()
    assert largest.bytes == 8 * budget


def test_targets_that_do_not_fit_are_named():
    model = build()
    codes, soft = latents(3)
    with pytest.raises(ShapeError, match=r"residuals of shape \(2, 2, 3, 3, 'code_dim'\)"):
        model.loss(codes[:2], targets=soft)
    other = SoftTargets(soft.residuals, (*soft.tables[:2], soft.tables[0]), 1.0)
    with pytest.raises(ShapeError, match=r"tables of sizes \(5, 3, 7\).*\(5, 3, 5\)"):
        model.loss(codes, targets=other)
    with pytest.raises(DataError, match="floating-point"):
        model.loss(codes, targets=soft.probabilities().long())
