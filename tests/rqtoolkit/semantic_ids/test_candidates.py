"""Prefixes and last-level costs, against trying every stack of codes."""

import itertools

import pytest
import torch

from rqtoolkit.quantizers.grouped import GroupedResidualQuantizer
from rqtoolkit.quantizers.neural import NeuralResidualQuantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.semantic_ids.candidates import last_level_costs, prefix_candidates

KINDS = {
    "residual": lambda: ResidualQuantizer(6, 3, [4, 3, 5]),
    "shared": lambda: ResidualQuantizer(6, 3, 4, shared_codebook=True),
    "one level": lambda: ResidualQuantizer(6, 1, 7),
    "grouped": lambda: GroupedResidualQuantizer(6, 2, 3, groups=2, rotation="random"),
    "neural": lambda: NeuralResidualQuantizer(6, 3, 4, width=8),
}


def all_errors(quantizer, x):
    """Squared errors (N, prefixes, K) of every stack of codes, and the prefixes in that order."""
    sizes = quantizer.codebook_sizes
    stacks = torch.tensor(list(itertools.product(*map(range, sizes))))
    errors = (quantizer.decode(stacks) - x[:, None]).square().sum(dim=2)
    return errors.view(len(x), -1, sizes[-1]), stacks[:: sizes[-1], :-1]


@pytest.mark.parametrize("kind", KINDS)
def test_costs_are_the_errors_of_decoding(kind):
    quantizer, x = KINDS[kind](), torch.randn(9, 6)
    errors, prefixes = all_errors(quantizer, x)
    chosen = torch.randint(len(prefixes), (9,))
    costs = last_level_costs(quantizer, x, prefixes[chosen], max_bytes=100)
    torch.testing.assert_close(costs, errors[torch.arange(9), chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_all_prefixes_come_in_the_order_of_the_best_code_after_each(kind):
    quantizer, x = KINDS[kind](), torch.randn(9, 6)
    errors, every = all_errors(quantizer, x)
    prefixes, costs = prefix_candidates(quantizer, x, 1000)
    assert prefixes.shape == (9, *every.shape)
    assert all(len(set(map(tuple, own.tolist()))) == len(every) for own in prefixes)
    expected = errors.amin(dim=2).sort(dim=1).values
    torch.testing.assert_close(costs, expected, rtol=1e-4, atol=1e-5)
    for some, own in zip(prefixes[:, 0], errors, strict=True):
        assert own[(every == some).all(dim=1)].min() == pytest.approx(float(own.min()), rel=1e-4)


def test_few_prefixes_are_those_of_a_beam():
    quantizer, x = ResidualQuantizer(6, 3, 8), torch.randn(20, 6)
    prefixes, costs = prefix_candidates(quantizer, x, 4, max_bytes=1000)
    assert prefixes.shape == (20, 4, 2)
    assert (costs.diff(dim=1) >= 0).all()
    found = quantizer.encode(x, beam=4)
    least = (quantizer.decode(found) - x).square().sum(dim=1)
    torch.testing.assert_close(costs[:, 0], least, rtol=1e-4, atol=1e-5)


def test_penalties_are_part_of_what_prefixes_cost():
    quantizer, x = ResidualQuantizer(6, 2, 4), torch.randn(20, 6)
    plain, costs = prefix_candidates(quantizer, x, 4)
    penalties = torch.zeros(2, 4)
    penalties[0, 2], penalties[1] = 1000.0, 5.0
    quantizer.state.set_penalties(penalties)
    priced, dearer = prefix_candidates(quantizer, x, 4)
    assert (priced[:, -1] == 2).all()
    torch.testing.assert_close(dearer[:, 0].min(), costs[plain[..., 0] != 2].min() + 5)
