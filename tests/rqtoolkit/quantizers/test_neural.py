import copy

import numpy as np
import pytest
import torch

from rqtoolkit import NeuralResidualQuantizer, ResidualQuantizer
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.functional.rate_distortion import distortion
from rqtoolkit.quantizers import load_quantizer


def curved(rows, dim=12, seed=0):
    """Vectors whose size and place are told by a few hidden numbers."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 4, generator=generator)
    mixing = torch.randn(4, dim, generator=torch.Generator().manual_seed(7))
    return torch.tanh(hidden @ mixing) * (0.7 * hidden[:, :1]).exp() + 3


def untrained(seed=1, **options):
    """A quantizer with all weights random, so that every codeword depends on those before."""
    quantizer = NeuralResidualQuantizer(5, 3, [6, 7, 8], width=9, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return quantizer


@pytest.fixture(scope="module")
def fitted():
    x = curved(2000)
    quantizer = NeuralResidualQuantizer(12, 3, 16, width=32, candidates=8)
    return quantizer.fit(
        x, epochs=8, batch_size=100, learning_rate=4e-3, training_beam=2, beam=4
    ), x


def by_formula(quantizer, partial, level, code):
    """One codeword, written out as in the class's docstring, float64."""
    layer = copy.deepcopy(quantizer.levels.rest[level - 1]).double()

    def block(net, z):
        return net[2](torch.relu(net[0](z)))

    hidden = layer.read(partial)
    hidden = torch.relu(hidden + block(layer.mix, torch.relu(hidden)))
    z = layer.embed(layer.table[code]) + layer.describe(hidden)
    for net in layer.blocks:
        z = z + block(net, z)
    gain = layer.scale * layer.gain(hidden).exp()
    return gain * (layer.table[code] + layer.out(torch.relu(z)))


@pytest.mark.parametrize("blocks", [0, 2])
def test_decode_is_the_formula(blocks):
    quantizer = untrained(blocks=blocks)
    codes = torch.tensor([[0, 6, 7], [5, 0, 3], [2, 2, 2]])
    decoded = quantizer.decode(codes)
    with torch.no_grad():
        for row, vector in zip(codes, decoded, strict=True):
            partial = quantizer.levels.first[row[0]].double()
            for level in (1, 2):
                partial = partial + by_formula(quantizer, partial, level, row[level])
            assert vector.tolist() == pytest.approx(partial.tolist(), rel=1e-4, abs=1e-5)


def test_all_candidates_and_beam_1_are_exhaustive_greedy_search():
    quantizer = untrained(blocks=1)
    x = torch.randn(40, 5)
    codes = quantizer.encode(x, beam=1, candidates=8)
    for row, found in zip(x, codes, strict=True):
        prefix = []
        for size in (6, 7, 8):
            grown = torch.tensor([[*prefix, code] for code in range(size)])
            errors = (row - quantizer.decode(grown)).square().sum(dim=1)
            prefix.append(int(errors.argmin()))
        assert found.tolist() == prefix


def test_widest_beam_is_exhaustive_search():
    quantizer = untrained()
    x = torch.randn(20, 5)
    codes = quantizer.encode(x, beam=6 * 7, candidates=8)
    every = torch.cartesian_prod(*(torch.arange(size) for size in (6, 7, 8)))
    best = torch.cdist(x, quantizer.decode(every)).argmin(dim=1)
    assert torch.equal(codes, every[best])


def test_prefixes(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x[:50])
    sums = quantizer.partial_sums(codes)
    for depth in (1, 2, 3):
        assert torch.allclose(quantizer.decode(codes[:, :depth]), sums[:, depth - 1], atol=1e-5)
    errors = (x[:50, None] - sums).square().sum(dim=2).mean(dim=0)
    assert errors.diff().max() < 0
    assert quantizer.encode(x[:50], depth=2).shape == (50, 2)


def test_error_below_that_of_the_tables(fitted):
    quantizer, x = fitted
    tables = ResidualQuantizer(12, 3, 16).fit(x, beam=4)
    new = curved(1000, seed=1)
    ours, theirs = (distortion(new, q.decode(q.encode(new))) for q in (quantizer, tables))
    assert ours < 0.9 * theirs


def test_wider_beams_and_longer_lists_are_no_worse(fitted):
    quantizer, x = fitted

    def error(**options):
        return distortion(x, quantizer.decode(quantizer.encode(x, **options)))

    assert error(beam=8) <= error(beam=4) <= error(beam=1)
    assert error(candidates=16, beam=1) <= error(candidates=2, beam=1)


def test_file_round_trip_to_the_bit(fitted, tmp_path):
    quantizer, x = fitted
    quantizer.save(tmp_path / "a.safetensors")
    loaded = load_quantizer(tmp_path / "a.safetensors")
    assert isinstance(loaded, NeuralResidualQuantizer)
    assert (loaded.beam, loaded.candidates, loaded.width) == (4, 8, 32)
    codes = quantizer.encode(x)
    assert torch.equal(loaded.encode(x), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match="another class"):
        ResidualQuantizer.load(tmp_path / "a.safetensors")


def test_same_seed_same_quantizer():
    x = curved(300)
    fits = [
        NeuralResidualQuantizer(12, 2, 8, width=8).fit(x.numpy(), epochs=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    states = [torch.cat([v.flatten() for v in q.state_dict().values()]) for q in fits]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_chunks_do_not_matter(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x[:200])
    assert torch.equal(quantizer.encode(x[:200], max_bytes=50_000), codes)
    assert torch.equal(torch.cat([quantizer.encode(row[None]) for row in x[:50]]), codes[:50])
    small = quantizer.levels.decode(codes, max_bytes=5_000)
    assert torch.allclose(small, quantizer.decode(codes), atol=1e-5)


def test_shapes():
    quantizer = untrained(channels_first=True)
    x = torch.randn(2, 5, 3, 4)
    codes = quantizer.encode(x)
    assert codes.shape == (2, 3, 4, 3)
    assert quantizer.decode(codes).shape == x.shape
    assert quantizer.encode(torch.empty(0, 5, 3, 4)).shape == (0, 3, 4, 3)
    with pytest.raises(ShapeError, match="dim"):
        quantizer.encode(torch.randn(2, 4, 3, 4))


@pytest.mark.parametrize(
    "x",
    [
        np.ones((40, 3), np.float32),
        np.repeat(np.eye(3, dtype=np.float32), 20, axis=0),
        np.outer(np.linspace(-1, 1, 60), [1, 2, 3]),
        1e6 + np.random.default_rng(0).normal(size=(60, 3)),
        1e12 * np.random.default_rng(0).normal(size=(60, 3)),
        np.random.default_rng(0).normal(size=(8, 3)),
    ],
    ids=["constant", "duplicates", "line", "far away", "huge", "no more rows than codewords"],
)
def test_degenerate_data(x):
    quantizer = NeuralResidualQuantizer(3, 3, 8, width=8).fit(x, epochs=3, batch_size=16)
    vectors = torch.as_tensor(x, dtype=torch.float32)
    decoded = quantizer.decode(quantizer.encode(vectors))
    assert decoded.isfinite().all()
    spread = (vectors - vectors.mean(dim=0)).square().sum()
    assert (vectors - decoded).square().sum() <= 0.3 * spread + 1e-4 * vectors.square().sum() ** 0.5


def test_where_nothing_is_gained_the_tables_of_all_rows_stay():
    x = torch.randn(120, 16, generator=torch.Generator().manual_seed(0))
    quantizer = NeuralResidualQuantizer(16, 2, 64, width=16)
    quantizer.fit(x, epochs=30, patience=3, learning_rate=0.01, beam=4, seed=5)
    tables = ResidualQuantizer(16, 2, 64).fit(x, seed=5)
    codes = tables.encode(x, beam=4)
    assert torch.equal(quantizer.encode(x), codes)
    assert torch.allclose(quantizer.decode(codes), tables.decode(codes), atol=1e-5)


def test_a_budget_of_time_ends_training():
    calls = []
    quantizer = NeuralResidualQuantizer(12, 2, 8, width=8)
    quantizer.fit(
        curved(300), epochs=10**6, time_budget=1e-3, progress=lambda *call: calls.append(call)
    )
    assert ("networks", 10**6, 10**6) in calls


def test_precision_of_a_parent_does_not_reach_the_quantizer():
    quantizer = untrained()
    x = torch.randn(30, 5)
    codes = quantizer.encode(x)
    parent = torch.nn.Sequential(copy.deepcopy(quantizer)).to(torch.bfloat16)
    assert {value.dtype for value in parent.state_dict().values()} == {torch.float32}
    assert torch.equal(parent[0].encode(x), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x), codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"beam": 0}, "beam=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"time_budget": -1.0}, "time_budget=-1.0"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        NeuralResidualQuantizer(12, 2, 8).fit(curved(20), **options)


def test_refusals():
    with pytest.raises(ConfigError, match="width=0"):
        NeuralResidualQuantizer(4, 2, 8, width=0)
    with pytest.raises(ConfigError, match="frozen"):
        NeuralResidualQuantizer(12, 2, 8).freeze().fit(curved(20))
    with pytest.raises(DataError, match="at least as many vectors"):
        NeuralResidualQuantizer(12, 2, 8).fit(curved(5))
    with pytest.raises(ConfigError, match="depth=4"):
        untrained().encode(torch.randn(2, 5), depth=4)
