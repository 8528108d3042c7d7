"""What theory says of residual quantizers, checked on generated data."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtoolkit import ResidualQuantizer
from rqtoolkit.functional.rate_distortion import distortion, gaussian_distortion

few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def sample(seed, rows=150, dim=4, spread=None):
    x = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))
    return x if spread is None else x * torch.tensor(spread)


def errors_by_depth(quantizer, x):
    codes = quantizer.encode(x)
    return [distortion(x, quantizer.decode(codes[:, :d])) for d in range(1, quantizer.depth + 1)]


@few
@given(seed=seeds, size=st.integers(2, 12), depth=st.integers(1, 6), grid=st.booleans())
def test_training_distortion_falls_with_depth_until_nothing_is_left(seed, size, depth, grid):
    x = sample(seed)
    if grid:  # data with many equal rows, so that the residual can reach zero
        x = x.round()
    quantizer = ResidualQuantizer(4, depth, size).fit(x, rounds=0, beam=1, seed=seed)
    errors = [distortion(x, x.mean(0).expand_as(x)), *errors_by_depth(quantizer, x)]
    for before, after in pairwise(errors):
        assert after < before or before < 1e-9 * errors[0]


@few
@given(seed=seeds, size=st.integers(2, 12), depth=st.integers(1, 5), shared=st.booleans())
def test_prefixes_decode_to_the_partial_sums(seed, size, depth, shared):
    x = sample(seed)
    quantizer = ResidualQuantizer(4, depth, size, shared_codebook=shared).fit(x, rounds=1)
    codes = quantizer.encode(x)
    sums = quantizer.partial_sums(codes)
    for d in range(1, depth + 1):
        torch.testing.assert_close(quantizer.decode(codes[:, :d]), sums[:, d - 1])
    greedy = quantizer.encode(x, beam=1)
    for d in range(1, depth + 1):
        assert torch.equal(quantizer.encode(x, beam=1, depth=d), greedy[:, :d])


@few
@given(seed=seeds, size=st.integers(2, 16), shared=st.booleans())
def test_joint_refinement_never_loses_on_the_training_sample(seed, size, shared):
    x = sample(seed)
    plain, refined = (
        ResidualQuantizer(4, 3, size, shared_codebook=shared).fit(x, rounds=rounds, seed=seed)
        for rounds in (0, 3)
    )
    assert errors_by_depth(refined, x)[-1] <= errors_by_depth(plain, x)[-1] * (1 + 1e-6)


@few
@given(seed=seeds, size=st.integers(4, 16), depth=st.integers(2, 5), rounds=st.integers(0, 2))
def test_on_average_a_wider_beam_is_no_worse(seed, size, depth, rounds):
    x = sample(seed, rows=400)
    quantizer = ResidualQuantizer(4, depth, size).fit(x, rounds=rounds, seed=seed)
    errors = [distortion(x, quantizer.decode(quantizer.encode(x, beam=b))) for b in (1, 4, 16)]
    for narrow, wide in pairwise(errors):
        assert wide <= narrow * (1 + 1e-6)


@few
@given(seed=seeds, exponent=st.integers(-6, 6), shift=st.sampled_from([0.0, 3.0, -50.0]))
def test_scaling_and_shifting_the_data_scale_the_distortion(seed, exponent, shift):
    x, scale = sample(seed), 2.0**exponent
    moved = (x + shift) * scale
    errors = [
        errors_by_depth(ResidualQuantizer(4, 3, 8).fit(data, rounds=0, beam=1, seed=7), data)[-1]
        for data in (x, moved)
    ]
    # A power of two scales every intermediate exactly; a shift is rounded, and may move a vector
    # or two to other cells
    assert errors[1] == pytest.approx(scale**2 * errors[0], rel=1e-5 if shift == 0 else 0.1)


@few
@given(seed=seeds)
def test_permuting_rows_permutes_codes_and_permuting_columns_changes_nothing(seed):
    x = sample(seed)
    quantizer = ResidualQuantizer(4, 3, 8).fit(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    codes = quantizer.encode(x)
    assert torch.equal(quantizer.encode(x[order]), codes[order])
    columns = [2, 0, 3, 1]
    turned = ResidualQuantizer(4, 3, 8)
    turned.state.set_tables(quantizer.codebooks[..., columns], vectors=1)
    same = (turned.encode(x[:, columns], beam=1) == quantizer.encode(x, beam=1)).all(1)
    assert same.float().mean() > 0.98  # sums in another order may break a near tie


@few
@given(seed=seeds)
def test_codewords_encode_to_themselves(seed):
    x = sample(seed)
    quantizer = ResidualQuantizer(4, 2, 8).fit(x)
    once = quantizer.decode(quantizer.encode(x, beam=64))
    again = quantizer.decode(quantizer.encode(once, beam=64))  # 64 = every stack of codes
    torch.testing.assert_close(once, again, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("spread", "depth", "size"),
    [(None, 2, 16), (None, 4, 16), ([2.0, 1.0, 0.5, 0.1], 3, 32), ([5.0, 0.1, 0.1, 0.1], 2, 64)],
)
@pytest.mark.parametrize("shared", [True, False])
def test_held_out_gaussian_data_stay_above_the_gaussian_bound(spread, depth, size, shared):
    train, held_out = (sample(seed, rows=20_000, spread=spread) for seed in (1, 2))
    quantizer = ResidualQuantizer(4, depth, size, shared_codebook=shared)
    quantizer.fit(train, max_rows=20_000, rounds=1)
    squared = (held_out - quantizer.decode(quantizer.encode(held_out))).square().sum(1)
    standard_error = float(squared.std()) / math.sqrt(len(squared))
    variances = np.square(spread or [1.0] * 4)
    bound = gaussian_distortion(variances, depth * math.log2(size))
    assert float(squared.mean()) > bound - 3 * standard_error
    # Near enough that the check means something; 16 entries that serve 4 levels cannot be near
    assert float(squared.mean()) < (13 if shared else 4) * bound + 1e-3


@pytest.mark.parametrize("dim", [4, 16])
def test_depth_beats_width_in_multiply_adds_and_stays_close_in_distortion(dim):
    """At 8 bits: one codebook of 256, two of 16 and four of 4."""
    train, held_out = sample(3, rows=20_000, dim=dim), sample(4, rows=5_000, dim=dim)
    errors, multiply_adds = [], []
    for depth, size in ((1, 256), (2, 16), (4, 4)):
        quantizer = ResidualQuantizer(dim, depth, size).fit(train, max_rows=20_000)
        errors.append(distortion(held_out, quantizer.decode(quantizer.encode(held_out))))
        multiply_adds.append(sum(table.numel() for table in quantizer.state.levels(depth)))
    assert multiply_adds == [256 * dim, 2 * 16 * dim, 4 * 4 * dim]
    assert errors[1] < 1.35 * errors[0]
    assert errors[2] < 1.7 * errors[0]
