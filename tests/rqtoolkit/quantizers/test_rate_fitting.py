import math
from itertools import pairwise

import pytest
import torch

from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.assign import beam_codes, sum_codewords
from rqtoolkit.functional.least_squares import joint_codebooks
from rqtoolkit.functional.rate_distortion import distortion, entropy_per_depth
from rqtoolkit.quantizers import ResidualQuantizer
from rqtoolkit.quantizers.fitting import kmeans_tables
from rqtoolkit.quantizers.joint import refine_tables
from rqtoolkit.quantizers.rate_fitting import _find_weight, code_prices, fit_with_rate, mean_price

SIZES = (16,) * 4


def vectors(seed, rows=8000, dim=6):
    """Vectors of very different lengths, as patches of images are: most of them near zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator)
    return x * torch.randn(rows, 1, generator=generator).mul(0.7).exp()


@pytest.fixture(scope="module")
def fitted():
    x = vectors(0)
    start = kmeans_tables(x, SIZES, 4, iterations=10, seed=0)
    return x, refine_tables(x, start, SIZES, 4, rounds=3, beam=2)


def measured(x, tables, penalties):
    """Bits by the entropy of each level's codes, and error, on other rows."""
    levels = list(tables)
    codes = beam_codes(x, levels, 2, penalties=None if penalties is None else list(penalties))
    sizes = [len(level) for level in levels]
    return sum(entropy_per_depth(codes, sizes)), distortion(x, sum_codewords(codes, levels))


def test_prices_are_what_each_entry_costs():
    codes = torch.tensor([[0, 0], [0, 1], [1, 1], [0, 1], [0, 1]])
    prices = code_prices(codes, [3, 2])
    torch.testing.assert_close(prices[0].exp2(), torch.tensor([8 / 5, 8 / 2, 8.0]).double())
    torch.testing.assert_close(prices[1].exp2(), torch.tensor([7 / 2, 7 / 5]).double())
    by_hand = (4 * math.log2(8 / 5) + math.log2(4) + math.log2(7 / 2) + 4 * math.log2(7 / 5)) / 5
    assert mean_price(codes, prices) == pytest.approx(by_hand)


def test_a_bit_without_price_is_the_fit_without_rate(fitted):
    x, tables = fitted
    found, penalties, weight = fit_with_rate(x, tables, SIZES, 4, rate_weight=0.0, beam=2, rounds=2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[2000:]
    for _ in range(2):
        codes = beam_codes(x[order], list(tables), 2)
        tables = joint_codebooks(x[order], codes, tables, SIZES)
    torch.testing.assert_close(found, tables, rtol=1e-3, atol=1e-3)
    assert weight == 0
    torch.testing.assert_close(penalties, torch.zeros(4, 16))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_target_rate_is_met_on_rows_held_out(fitted, share):
    x, tables = fitted
    plain, _ = measured(x, tables, None)
    target = share * plain
    found, penalties, weight = fit_with_rate(
        x, tables, SIZES, 4, target_bits=target, beam=2, rounds=3
    )
    held_out = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:2000]]
    codes = beam_codes(held_out, list(found), 2, penalties=list(penalties))
    paid = penalties.gather(1, codes.T).sum() / weight / len(codes)
    assert float(paid) == pytest.approx(target, rel=0.01)
    # 2000 rows know the rate of others within some percent
    assert measured(vectors(1, 20_000), found, penalties)[0] == pytest.approx(target, rel=0.1)
    assert weight > 0


def test_error_rises_and_rate_falls_with_the_weight_below_plain_quantizers_of_fewer_levels(fitted):
    x, tables = fitted
    other = vectors(2, 20_000)
    curve = []
    for weight in (0.1, 0.3, 1.0, 3.0):
        found, penalties, _ = fit_with_rate(
            x, tables, SIZES, 4, rate_weight=weight, beam=2, rounds=3
        )
        curve.append(measured(other, found, penalties))
    bits, errors = zip(*curve, strict=True)
    assert all(after < before for before, after in pairwise(bits))
    assert all(after > before for before, after in pairwise(errors))
    for depth in (1, 2, 3):
        plain = refine_tables(x, tables[:depth], SIZES[:depth], depth, rounds=3, beam=2)
        plain_bits, plain_error = measured(other, plain, None)
        assert bits[-1] < plain_bits < bits[0]
        # the logarithm of the error at the plain quantizer's rate, between two points of the curve
        after = next(i for i, rate in enumerate(bits) if rate <= plain_bits)
        share = (bits[after - 1] - plain_bits) / (bits[after - 1] - bits[after])
        ours = errors[after - 1] ** (1 - share) * errors[after] ** share
        assert ours < 0.9 * plain_error


def test_a_price_beyond_all_errors_leaves_one_code_a_level_and_finite_tables(fitted):
    x, tables = fitted
    found, penalties, _ = fit_with_rate(x, tables, SIZES, 4, rate_weight=1e6, beam=2, rounds=3)
    bits, error = measured(x, found, penalties)
    assert bits < 0.05
    assert error < 1.05 * float(x.var(dim=0).sum())
    assert torch.isfinite(found).all()
    assert torch.isfinite(penalties).all()
    assert (penalties >= 0).all()


def test_a_target_above_the_need_takes_no_weight(fitted):
    x, tables = fitted
    _, penalties, weight = fit_with_rate(x, tables, SIZES, 4, target_bits=60, beam=2, rounds=1)
    assert weight == 0
    assert not penalties.any()


def test_a_quantizer_fitted_for_a_rate_encodes_at_it_and_after_loading(fitted, tmp_path):
    x = fitted[0][:3000]
    quantizer = ResidualQuantizer(6, 4, 16).fit(x, target_bits=6.0, beam=2, rounds=2)
    codes = quantizer.encode(x)
    assert sum(entropy_per_depth(codes, SIZES)) == pytest.approx(6.0, rel=0.1)
    quantizer.save(tmp_path / "rq.safetensors")
    again = ResidualQuantizer.load(tmp_path / "rq.safetensors").encode(x)
    assert torch.equal(again, codes)


def test_sizes_that_differ_and_a_shared_codebook():
    x = vectors(3, 600)
    sizes = (8, 1, 5)
    tables = kmeans_tables(x, sizes, 3, iterations=3)
    found, penalties, _ = fit_with_rate(x, tables, sizes, 3, rate_weight=0.3, beam=2, rounds=1)
    assert found.shape == tables.shape
    assert penalties.shape == (3, 8)
    for level, size in enumerate(sizes):
        assert not penalties[level, size:].any()
        assert size == 1 or (penalties[level, :size] > 0).all()
    shared = kmeans_tables(x, (12,), 3, iterations=3)
    found, penalties, _ = fit_with_rate(x, shared, (12,), 3, target_bits=4.0, beam=2, rounds=2)
    assert found.shape == (1, 12, 6)
    assert penalties.shape == (3, 12)


@pytest.mark.parametrize("x", [torch.zeros(40, 3), torch.ones(1, 3), torch.eye(8).repeat(4, 1)])
@pytest.mark.parametrize("rate", [{"rate_weight": 0.5}, {"target_bits": 1.0}])
def test_data_without_much_to_fit(x, rate):
    tables = x[:1].repeat(4, 1)[None].repeat(2, 1, 1)
    found, penalties, weight = fit_with_rate(x, tables, (4, 4), 2, beam=2, rounds=2, **rate)
    assert torch.isfinite(found).all()
    assert torch.isfinite(penalties).all()
    assert math.isfinite(weight)


def test_the_seed_fixes_the_result(fitted):
    x, tables = fitted[0][:2000], fitted[1]
    settings = {"target_bits": 6.0, "beam": 2, "rounds": 2}
    first = fit_with_rate(x, tables, SIZES, 4, seed=1, **settings)
    again = fit_with_rate(x, tables, SIZES, 4, seed=1, **settings)
    other = fit_with_rate(x, tables, SIZES, 4, seed=2, **settings)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("start", [1e-9, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("target", [0.5, 10.0, 39.0])
def test_the_search_finds_the_weight_of_a_known_curve(start, target):
    tried = []

    def rate(weight):
        tried.append(weight)
        return 40 / (1 + 30 * weight**0.7)

    found = _find_weight(rate, target, start, 0.004)
    if start in (1e-3, 1.0):
        assert rate(found) == pytest.approx(target, rel=0.004)
    assert len(tried) <= 14


@pytest.mark.parametrize(
    "rate",
    [
        {},
        {"rate_weight": 1.0, "target_bits": 3.0},
        {"rate_weight": -1.0},
        {"rate_weight": math.nan},
        {"rate_weight": math.inf},
        {"target_bits": 0.0},
        {"target_bits": math.nan},
    ],
)
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ConfigError, match=r"rate_weight|target_bits"):
        fit_with_rate(torch.zeros(4, 2), torch.zeros(1, 2, 2), (2,), 1, **rate)
