import numpy as np
import pytest
import torch

from rqtoolkit import (
    GroupedResidualQuantizer,
    NeuralResidualQuantizer,
    ResidualAutoencoder,
    ResidualQuantizer,
)
from rqtoolkit.errors import ConfigError, DataError, ShapeError


def fitted():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    return ResidualQuantizer(4, 3, 8).fit(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda q: q.encode(torch.zeros(3, 5)),
        lambda q: q(torch.zeros(3, 5)),
        lambda q: q.decode(torch.zeros(2, 4, dtype=torch.int64)),
        lambda q: q.decode(torch.tensor(3)),
        lambda q: q.fit(torch.zeros(3)),
        lambda q: q.fit(np.zeros((30, 5))),
    ],
)
def test_wrong_shapes(call):
    with pytest.raises(ShapeError, match=r"ResidualQuantizer\.\w+: .*got"):
        call(fitted())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: q.encode(torch.full((2, 4), torch.nan)), "NaN"),
        (lambda q: q.decode(torch.tensor([[8]])), "codes from 8 to 8"),
        (lambda q: q.decode(torch.tensor([[-1]])), "codes from -1"),
        (lambda q: q.decode(torch.tensor([[0.5]])), "integers"),
        (lambda q: q.fit(np.full((30, 4), "a")), "numeric"),
        (lambda q: q.fit(np.zeros((7, 4))), "at least as many vectors; got 7"),
        (lambda q: q.fit(np.zeros((30, 4)), max_rows=5), "got 5"),
        (lambda q: q.fit(np.full((30, 4), np.inf)), "first in row 0"),
        (lambda q: q.fit(np.full((30, 4), 1e-25)), "largest value of X is 1e-25"),
        (lambda q: q.fit(np.full((30, 4), 1e300)), "first in row 0"),
        (lambda q: q.fit(torch.full((30, 4), 1e19)), "scale them"),
        (lambda q: q.fit([[1.0] * 4]), "numpy array or torch tensor; got list"),
        (lambda q: q.encode(np.zeros((3, 4))), "got ndarray"),
        (lambda q: q.encode(torch.zeros(3, 4, dtype=torch.int32)), "floating point"),
        (lambda q: q.decode(np.zeros((3, 3))), "got ndarray"),
    ],
)
def test_unusable_data(call, message):
    with pytest.raises(DataError, match=message):
        call(fitted())


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 0},
        {"depth": 0},
        {"codebook_size": 0},
        {"codebook_size": [4, 4]},
        {"codebook_size": [4, 4, 5], "shared_codebook": True},
        {"update": "adam"},
        {"decay": 1.0},
        {"restart_threshold": -1},
        {"beam": 0},
        {"beam": 2.5},
        {"dim": 4.5},
        {"codebook_size": 4.7},
        {"codebook_size": "444"},
        {"codebook_size": True},
        {"codebook_size": []},
        {"decay": torch.nan},
        {"restart_threshold": 1.0},  # a share of the mean, not a count
        {"estimator": "gumbel"},
        {"similarity": "dot"},
        {"codebook_dim": 0},
        {"depth_dropout": 1.5},
        {"depth_dropout": torch.nan},
        {"tau": -0.5},
        {"tau": torch.inf},
        {"forward_beam": 0},
    ],
)
def test_impossible_arguments(arguments):
    with pytest.raises(
        ConfigError, match=r"ResidualQuantizer: \w+=.* (must|has to|is unknown|differs)"
    ):
        ResidualQuantizer(**{"dim": 4, "depth": 3, "codebook_size": 8, **arguments})


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"tau": 0.5, "forward_beam": 4}, ["tau=0.5", "forward_beam=4"]),
        ({"similarity": "cosine", "forward_beam": 4}, ["similarity='cosine'", "forward_beam=4"]),
        ({"update": "paper", "similarity": "cosine"}, ["update='paper'", "got 'cosine'"]),
        ({"update": "paper", "codebook_dim": 2}, ["update='paper'", "2, 0.0 and 1"]),
        ({"update": "paper", "tau": 0.5}, ["update='paper'", "0.5 and 1"]),
        ({"update": "paper", "forward_beam": 2}, ["update='paper'", "0.0 and 2"]),
    ],
)
def test_arguments_that_do_not_go_together(arguments, names):
    with pytest.raises(ConfigError, match=r"ResidualQuantizer: .*(Leave|Choose)") as caught:
        ResidualQuantizer(4, 3, 8, **arguments)
    for name in names:
        assert name in str(caught.value)


def test_the_row_named_is_the_user_s():
    quantizer = fitted()
    x = np.random.default_rng(0).normal(size=(1000, 4))
    x[700, 2] = np.nan
    with pytest.raises(DataError, match="first in row 700"):
        quantizer.fit(x, max_rows=990, seed=1)


def test_no_target_beyond_the_bits_of_the_codes():
    x = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(ConfigError, match=r"target_bits=9\.5 exceeds.* 9 bits"):
        fitted().fit(x, target_bits=9.5)


@pytest.mark.parametrize(
    "quantizer",
    [
        ResidualQuantizer(4, 3, 8),
        GroupedResidualQuantizer(4, 3, 8, groups=2),
        NeuralResidualQuantizer(4, 3, 8, width=8),
        ResidualAutoencoder(4, 3, 8, latent_dim=2, hidden=(8,)),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_every_kind_checks_what_it_encodes(quantizer):
    name, x = type(quantizer).__name__, torch.randn(5, 4)
    for settings, message in [
        ({"beam": 0}, "beam=0 must be"),
        ({"depth": 0}, "depth=0 must be"),
        ({"depth": -1}, "depth=-1 must be"),
        ({"depth": 4}, "depth=4 exceeds the quantizer's 3"),
    ]:
        with pytest.raises(ConfigError, match=f"{name}.encode: {message}"):
            quantizer.encode(x, **settings)
    with pytest.raises(DataError, match=rf"{name}.encode: .*first in row 1"):
        quantizer.encode(torch.tensor([[0.0] * 4, [torch.nan] * 4]))
    with pytest.raises(ShapeError, match=rf"{name}.encode: .*\(2, 5\)"):
        quantizer.encode(torch.zeros(2, 5))
    assert quantizer.encode(x[:0], depth=2).shape[0] == 0


@pytest.mark.parametrize("kind", [NeuralResidualQuantizer, ResidualAutoencoder])
def test_quantizers_that_are_no_layers_say_what_to_call(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} is no layer .* encode\(x\)"):
        kind(4, 2, 8)(torch.zeros(3, 4))


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path):
    sizes = [np.int64(8), np.int64(4)]
    quantizers = [
        ResidualQuantizer(np.int64(4), np.int64(2), sizes, beam=np.int64(2)),
        ResidualAutoencoder(np.int64(4), 2, sizes, latent_dim=np.int64(2), hidden=[np.int64(8)]),
    ]
    for quantizer in quantizers:
        assert "np." not in repr(quantizer)
        quantizer.save(tmp_path / "quantizer")
        loaded = type(quantizer).load(tmp_path / "quantizer")
        assert repr(loaded) == repr(quantizer)
    with pytest.raises(ConfigError, match=r"codebook_size=\[8, 4\] differs"):
        ResidualQuantizer(4, 2, sizes, shared_codebook=True)
    with pytest.raises(ConfigError, match="=-1 must be a whole number"):
        quantizers[0].encode(torch.zeros(2, 4), icm_rounds=np.int64(-1))
