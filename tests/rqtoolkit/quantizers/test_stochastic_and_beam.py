"""Codes that are drawn, or searched for with a beam, while the codebooks learn."""

import copy

import pytest
import reference
import torch
from torch.nn import functional as F

from rqtoolkit import ResidualQuantizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(dim=4, depth=2, size=6, **options):
    quantizer = ResidualQuantizer(dim, depth, size, **options)
    for _ in range(3):
        quantizer(torch.randn(80, dim))
    return quantizer


def chi_square(observed, expected):
    return ((observed - expected).square() / expected).sum()


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_codes_are_drawn_by_their_distances(similarity):
    quantizer = trained(tau=0.7, similarity=similarity)
    before = copy.deepcopy(quantizer.state)
    row, draws = torch.randn(1, 4), 30000
    codes = quantizer(row.expand(draws, -1), generator=generator(1)).codes

    def chances(residual, table):
        if similarity == "cosine":
            residual, table = F.normalize(residual, dim=-1), F.normalize(table, dim=-1)
        unit = table.square().sum(1).mean()
        return (-(residual - table).square().sum(1) / (0.7 * unit)).softmax(0)

    first, second = before.levels(2)
    observed = torch.bincount(codes[:, 0], minlength=6)
    assert chi_square(observed, draws * chances(row, first)) < 20.5  # 5 dof, p = .001
    # What a drawn code leaves is what the next level draws for
    entry = int(observed.argmax())
    chosen = codes[:, 0] == entry
    observed = torch.bincount(codes[chosen, 1], minlength=6)
    expected = chosen.sum() * chances(row - first[entry], second)
    assert chi_square(observed, expected) < 20.5


def test_drawn_codes_are_decoded_counted_and_learnt_from():
    quantizer = trained(tau=1.0, decay=0.0, restart_threshold=0)
    before = copy.deepcopy(quantizer).eval()
    x = torch.randn(50, 4)
    out = quantizer(x, generator=generator())
    assert (out.codes != before.encode(x)).any()
    torch.testing.assert_close(out.quantized, before.decode(out.codes))
    counts = torch.bincount(out.codes[:, 0], minlength=6).float()
    assert torch.equal(quantizer.state.counts[0], counts)
    for entry in range(6):
        if counts[entry]:
            mean = x[out.codes[:, 0] == entry].mean(0)
            torch.testing.assert_close(quantizer.codebooks[0, entry], mean)


def test_draws_follow_their_generator_and_stop_in_eval_mode():
    quantizer = trained(tau=1.0)
    x = torch.randn(50, 4)
    codes = [copy.deepcopy(quantizer)(x, generator=generator(s)).codes for s in (1, 1, 2)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    assert torch.equal(quantizer.eval()(x).codes, quantizer.encode(x))


def test_a_cold_draw_is_the_nearest():
    quantizer = trained(tau=1e-9)
    x = torch.randn(50, 4)
    expected = copy.deepcopy(quantizer).eval().encode(x)
    assert torch.equal(quantizer(x).codes, expected)


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}, {"update": "gradient"}])
def test_a_beam_in_training_lowers_the_error(options):
    greedy = trained(depth=4, **options)
    beam = ResidualQuantizer(4, 4, 6, forward_beam=5, **options)
    beam.load_state_dict(greedy.state_dict())
    x = torch.randn(60, 4)
    with torch.no_grad():
        expected = reference.beam(x, beam._levels(4), 5)
    worse, better = greedy(x), beam(x)
    assert torch.equal(better.codes, expected)
    assert better.stats.distortion[-1] < worse.stats.distortion[-1]


def test_moving_averages_follow_the_codes_of_the_beam():
    quantizer = trained(forward_beam=4, decay=0.0, restart_threshold=0)
    tables = quantizer.codebooks.clone()
    x = torch.randn(60, 4)
    codes = quantizer(x).codes
    residuals = [x, x - tables[0][codes[:, 0]]]
    for level, residual in enumerate(residuals):
        for entry in range(6):
            own = residual[codes[:, level] == entry]
            expected = own.mean(0) if len(own) else tables[level, entry]
            torch.testing.assert_close(quantizer.codebooks[level, entry], expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_beam_over_vectors_that_are_not_finite(training):
    quantizer = trained(forward_beam=4).train(training)
    x = torch.randn(20, 4)
    expected = copy.deepcopy(quantizer)(x).codes
    spoiled = torch.cat([x, torch.full((2, 4), torch.nan), torch.full((2, 4), torch.inf)])
    out = quantizer(spoiled)
    assert torch.equal(out.codes[:20], expected)
    assert ((out.codes >= 0) & (out.codes < 6)).all()
    assert quantizer.codebooks.isfinite().all()
