"""Prices: fewer collisions, first codes within their limit, the same rule for new vectors."""

import numpy as np
import pytest
import torch

from rqtoolkit import SemanticIDs
from rqtoolkit.errors import ConfigError
from rqtoolkit.quantizers.neural import NeuralResidualQuantizer
from rqtoolkit.quantizers.residual import ResidualQuantizer
from rqtoolkit.semantic_ids.balance import balanced_fit

SETTINGS = {"iterations": 5, "rounds": 1}


def clusters(count, seed=0):
    """Vectors around a few places, some of which are far more popular than others."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(0).standard_normal((12, 6))
    popular = rng.choice(12, count, p=np.arange(1, 13) ** 2 / 650)
    return (places[popular] + 0.3 * rng.standard_normal((count, 6))).astype(np.float32)


def figures(quantizer, x):
    codes = quantizer.encode(torch.from_numpy(x))
    largest = int(torch.bincount(codes[:, 0], minlength=quantizer.codebook_sizes[0]).max())
    return largest, 1 - len(codes.unique(dim=0)) / len(x)


@pytest.mark.parametrize("balance", [2.0, 1.3])
def test_first_codes_keep_to_their_limit(balance):
    x = clusters(1500)
    quantizer = balanced_fit(ResidualQuantizer(6, 3, 8), x, balance, **SETTINGS)
    assert figures(quantizer, x)[0] <= balance * 1500 / 8
    assert (quantizer.penalties >= 0).all()
    assert figures(quantizer, clusters(1500, seed=1))[0] <= 1.2 * balance * 1500 / 8


def test_collisions_become_fewer():
    x = clusters(1500)
    plain = ResidualQuantizer(6, 3, 16).fit(x, **SETTINGS)
    balanced = balanced_fit(ResidualQuantizer(6, 3, 16), x, 4.0, **SETTINGS)
    assert figures(balanced, x)[1] < figures(plain, x)[1]
    torch.testing.assert_close(balanced.codebooks, plain.codebooks)


def test_prices_are_saved_and_fixed_by_the_seed(tmp_path):
    x = clusters(600)
    one, two = (
        balanced_fit(ResidualQuantizer(6, 2, [8, 4]), torch.from_numpy(x), 1.5, seed=3, **SETTINGS)
        for _ in range(2)
    )
    one.save(tmp_path / "q.safetensors")
    loaded = ResidualQuantizer.load(tmp_path / "q.safetensors")
    for other in (two, loaded):
        assert torch.equal(other.penalties, one.penalties)
        assert torch.equal(other.encode(torch.from_numpy(x)), one.encode(torch.from_numpy(x)))


@pytest.mark.filterwarnings("ignore:balanced_fit")  # prices alone do not reach the least limit
@pytest.mark.parametrize("balance", [1.0, 1.1])
def test_matching_keeps_to_the_limit_too(balance):
    x = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)  # of 512 codes
    plain = SemanticIDs.fit(x, codebook_size=8, settings=SETTINGS)
    balanced = SemanticIDs.fit(x, codebook_size=8, settings=SETTINGS, balance=balance)
    assert (
        np.bincount(balanced.codes[:, 0]).max()
        <= balance * 50
        < np.bincount(plain.codes[:, 0]).max()
    )
    assert len(np.unique(balanced.codes, axis=0)) == 400
    assert balanced.mse < 1.05 * plain.mse


def test_what_matching_leaves_beyond_the_limit_is_told():
    x = np.ones((600, 4), np.float32) + 1e-3 * clusters(600)[:, :4]
    x[:100] += 10 * clusters(100)[:, :4]
    with pytest.warns(UserWarning, match="balance") as told:
        ids = SemanticIDs.fit(x, depth=4, codebook_size=8, settings=SETTINGS, balance=1.0)
    largest = np.bincount(ids.codes[:, 0]).max()
    assert largest > 75
    assert f"first codes of 75 items; got one of {largest} once all" in str(told[-1].message)


def test_equal_vectors_beyond_the_limit_are_told():
    x = np.concatenate([clusters(200), np.ones((200, 6), np.float32)])
    with pytest.warns(UserWarning, match="Raise balance, or remove equal vectors"):
        balanced_fit(ResidualQuantizer(6, 2, 8), x, 1.2, **SETTINGS)


def test_a_limit_out_of_reach_does_not_run_away():
    x = np.concatenate([clusters(600), np.ones((200, 6), np.float32)])
    plain = ResidualQuantizer(6, 3, 16).fit(x, **SETTINGS)
    with pytest.warns(UserWarning, match="got one of 2"):
        priced = balanced_fit(ResidualQuantizer(6, 3, 16), x, 1.5, **SETTINGS)
    vectors = torch.from_numpy(x)
    errors = [
        float((vectors - q.decode(q.encode(vectors))).square().sum()) for q in (priced, plain)
    ]
    assert figures(priced, x)[0] <= figures(plain, x)[0]
    assert errors[0] < 4 * errors[1]


def test_errors_say_what_is_wrong():
    x = clusters(100)
    with pytest.raises(ConfigError, match="at least 1"):
        balanced_fit(ResidualQuantizer(6, 2, 8), x, 0.5)
    with pytest.raises(ConfigError, match="needs a ResidualQuantizer"):
        balanced_fit(NeuralResidualQuantizer(6, 2, 8, width=4), x, 2.0)
    with pytest.raises(ConfigError, match="target_bits both set penalties"):
        balanced_fit(ResidualQuantizer(6, 2, 8), x, 2.0, target_bits=3.0)
