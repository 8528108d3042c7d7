"""The filters worked by hand, against a plain loop, and the draw against the exact softmax."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_transformer import keep_top
from scipy.stats import chisquare

from rqtoolkit.errors import ConfigError
from rqtoolkit.transformer.sampling import SamplingRule, sampling_rules


def test_top_k_keeps_ties():
    # e^log(2) = 2: of 1, 2, 2, 4 the two largest are 4 and 2, and the other 2 ties with it.
    logits = torch.tensor([1.0, 2.0, 2.0, 4.0]).log()
    found = SamplingRule(top_k=2).probabilities(logits)
    torch.testing.assert_close(found, torch.tensor([0, 0.25, 0.25, 0.5]))


def test_top_p_keeps_the_entry_that_crosses():
    logits = torch.tensor([0.25, 0.5, 0.125, 0.125]).log()
    # 0.5 alone is under 0.6; 0.5 + 0.25 crosses it; both stay, as 2/3 and 1/3.
    found = SamplingRule(top_p=0.6).probabilities(logits)
    torch.testing.assert_close(found, torch.tensor([1 / 3, 2 / 3, 0, 0]))
    # 0.5 reaches 0.5 exactly: the next entry is not needed. The first entry always stays.
    for p in (0.5, 0.01):
        found = SamplingRule(top_p=p).probabilities(logits)
        torch.testing.assert_close(found, torch.tensor([0, 1.0, 0, 0]))


def test_temperature_comes_before_the_filters():
    logits = torch.tensor([0.0, 1.0, 2.0])
    # At temperature 0.5 the logits are 0, 2, 4: p = .016, .117, .867.
    found = SamplingRule(temperature=0.5, top_p=0.9).probabilities(logits)
    torch.testing.assert_close(
        found,
        torch.tensor([0.0, 2.0, 4.0]).softmax(0)
        * torch.tensor([0, 1, 1])
        / (1 - math.exp(0) / (1 + math.exp(2) + math.exp(4))),
    )


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    entries=st.integers(1, 12),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.one_of(st.none(), st.integers(1, 14)),
    top_p=st.one_of(st.none(), st.floats(0.05, 1.0)),
)
def test_filters_equal_the_plain_loop(seed, entries, temperature, top_k, top_p):
    logits = torch.randn(3, entries, generator=torch.Generator().manual_seed(seed))
    found = SamplingRule(temperature, top_k, top_p).probabilities(logits)
    expected = torch.stack([keep_top(row, temperature, top_k, top_p) for row in logits])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    "rule", [SamplingRule(), SamplingRule(0.7), SamplingRule(1.3, 5), SamplingRule(1.0, 7, 0.8)]
)
def test_draws_follow_the_exact_distribution(rule):
    logits = torch.randn(8, generator=torch.Generator().manual_seed(5))
    count = 40_000
    drawn = rule.draw(logits.expand(count, 8), generator=torch.Generator().manual_seed(1))
    observed = torch.bincount(drawn, minlength=8)
    expected = keep_top(logits, rule.temperature, rule.top_k, rule.top_p).double()
    kept = expected > 0
    assert observed[~kept].sum() == 0
    kept_share = expected[kept] / expected[kept].sum()
    assert chisquare(observed[kept], kept_share * count).pvalue > 0.01


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-12, 1e300])
@pytest.mark.parametrize("scale", [1.0, 1e30, -1e30])
def test_extreme_temperatures_give_the_limits(temperature, scale):
    found = SamplingRule(temperature).probabilities(torch.tensor([3.0, 7.0, 7.0, 5.0]) * scale)
    best = [0.0, 0.5, 0.5, 0.0] if scale > 0 else [1.0, 0.0, 0.0, 0.0]
    expected = best if temperature < 1 else [0.25] * 4
    torch.testing.assert_close(found, torch.tensor(expected))


def test_rules_are_spread_over_levels():
    rules = sampling_rules(2, temperature=0.9, top_k=[5, None], top_p=0.5)
    assert rules == [SamplingRule(0.9, 5, 0.5), SamplingRule(0.9, None, 0.5)]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "top_k=1 for the most likely"),
        ({"temperature": math.inf}, "finite"),
        ({"temperature": math.nan}, "finite"),
        ({"top_k": 0}, "at least 1"),
        ({"top_k": [1, 2]}, r"got 2 for depth 3"),
        ({"top_k": 2.5}, "integer"),
        ({"top_p": 0.0}, "over 0 and at most 1"),
        ({"top_p": [0.5, 0.5, 1.5]}, "top_p=1.5"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        sampling_rules(3, **setting)
