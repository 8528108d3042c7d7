import copy
import itertools

import numpy as np
import pytest
import torch

from rqtoolkit import ResidualAutoencoder, ResidualQuantizer
from rqtoolkit.errors import ArtifactError, ConfigError, DataError, ShapeError
from rqtoolkit.functional.rate_distortion import distortion, perplexity, usage
from rqtoolkit.quantizers import load_quantizer
from rqtoolkit.semantic_ids.collisions import match_codes


def embeddings(rows, dim=24, seed=0):
    """Unit vectors near a common direction, told by a few hidden numbers, one column constant."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 4, generator=generator)
    mixing = torch.randn(4, dim - 1, generator=torch.Generator().manual_seed(7))
    x = torch.cat([torch.tanh(hidden @ mixing) + 2, torch.zeros(rows, 1)], dim=1)
    return x / x.norm(dim=1, keepdim=True)


def small(**options):
    return ResidualAutoencoder(24, 3, 16, latent_dim=8, hidden=(32, 16), **options)


def untrained(**options):
    """A quantizer of three small levels, its codebooks drawn from latents."""
    quantizer = ResidualAutoencoder(5, 3, [6, 7, 8], latent_dim=4, hidden=[9], **options)
    quantizer.quantizer.fit(quantizer.latents(torch.randn(100, 5)), iterations=1, rounds=0, beam=1)
    return quantizer


@pytest.fixture(scope="module")
def fitted():
    x = embeddings(2000)
    return small().fit(x, epochs=15, batch_size=50), x


def test_decode_and_latents_are_the_networks_formula(fitted):
    quantizer, x = fitted
    tensors = {name: value.double() for name, value in quantizer.stored()[1].items()}

    def mlp(part, z):
        for layer in (0, 2, 4):
            z = z @ tensors[f"{part}.{layer}.weight"].T + tensors[f"{part}.{layer}.bias"]
            z = z.relu() if layer < 4 else z
        return z

    codes = quantizer.encode(x[:20])
    latents = mlp("encoder", (x[:20] - tensors["center"]) / tensors["spread"])
    assert torch.allclose(quantizer.latents(x[:20]).double(), latents, atol=1e-4)
    tables = tensors["quantizer.tables"]
    for depth in (1, 2, 3):
        summed = sum(tables[level][codes[:, level]] for level in range(depth))
        expected = mlp("decoder", summed) * tensors["spread"] + tensors["center"]
        decoded = quantizer.decode(codes[:, :depth])
        assert torch.allclose(decoded.double(), expected, atol=1e-5)


def test_widest_beam_finds_the_nearest_of_all_sums_in_latents():
    quantizer = untrained()
    x = torch.randn(20, 5)
    every = torch.tensor(list(itertools.product(range(6), range(7), range(8))))
    nearest = torch.cdist(quantizer.latents(x), quantizer.quantizer.decode(every)).argmin(dim=1)
    assert torch.equal(quantizer.encode(x, beam=42), every[nearest])


def test_unit_vectors_do_not_collapse(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x)
    assert min(usage(codes, quantizer.codebook_sizes)) > 0.9
    assert min(perplexity(codes, quantizer.codebook_sizes)) > 10
    new = embeddings(1000, seed=1)
    variance = (new - new.mean(dim=0)).square().sum(dim=1).mean()
    assert distortion(new, quantizer.decode(quantizer.encode(new))) < 0.25 * variance


def test_few_vectors_do_not_collapse():
    x = embeddings(150)
    codes = small().fit(x, epochs=30).encode(x)
    assert min(usage(codes, [16] * 3)) > 0.9


def test_each_level_lowers_the_error(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x)
    errors = [distortion(x, quantizer.decode(codes[:, :depth])) for depth in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True)
    assert torch.equal(quantizer.encode(x, depth=2), codes[:, :2])


def test_codes_match_whatever_the_scale_and_place():
    x = embeddings(300)
    fits = [small().fit(scale * x + shift, epochs=2) for scale, shift in ((1, 0), (64, 8))]
    codes = [fits[0].encode(x), fits[1].encode(64 * x + 8)]
    assert (codes[0] == codes[1]).float().mean() > 0.9
    assert fits[1].spread == pytest.approx(64 * float(fits[0].spread), rel=1e-4)


def test_file_round_trip_to_the_bit(fitted, tmp_path):
    quantizer, x = fitted
    quantizer.save(tmp_path / "a.safetensors")
    loaded = load_quantizer(tmp_path / "a.safetensors")
    assert isinstance(loaded, ResidualAutoencoder)
    assert (loaded.latent_dim, loaded.hidden) == (8, [32, 16])
    codes = quantizer.encode(x)
    assert torch.equal(loaded.encode(x), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match="another class"):
        ResidualQuantizer.load(tmp_path / "a.safetensors")


def test_same_seed_same_quantizer_whatever_came_before():
    x = embeddings(300)
    used = small().fit(x, epochs=1, seed=5)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fits = [
        quantizer.fit(x.numpy(), epochs=2, seed=seed)
        for quantizer, seed in ((used, 0), (small(), 0), (small(), 1))
    ]
    states = [torch.cat([v.flatten() for v in q.stored()[1].values()]) for q in fits]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    torch.manual_seed(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_chunks_do_not_matter(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x[:200])
    assert torch.equal(quantizer.encode(x[:200], max_bytes=5000), codes)
    assert torch.allclose(quantizer.latents(x, max_bytes=5000), quantizer.latents(x), atol=1e-5)


def test_shapes():
    quantizer = untrained(channels_first=True)
    x = torch.randn(2, 5, 3, 4)
    codes = quantizer.encode(x)
    assert codes.shape == (2, 3, 4, 3)
    assert quantizer.decode(codes).shape == x.shape
    assert quantizer.latents(x).shape == (2, 3, 4, 4)
    assert quantizer.encode(torch.empty(0, 5, 3, 4)).shape == (0, 3, 4, 3)
    with pytest.raises(ShapeError, match="dim"):
        quantizer.encode(torch.randn(2, 4, 3, 4))


@pytest.mark.parametrize(
    "x",
    [
        np.ones((40, 3), np.float32),
        np.repeat(np.eye(3, dtype=np.float32), 20, axis=0),
        1e6 + np.random.default_rng(0).normal(size=(60, 3)),
        1e12 * np.random.default_rng(0).normal(size=(60, 3)),
        np.random.default_rng(0).normal(size=(8, 3)),
    ],
    ids=["constant", "duplicates", "far away", "huge", "no more rows than codewords"],
)
def test_degenerate_data(x):
    quantizer = ResidualAutoencoder(3, 3, 8, latent_dim=4, hidden=(16,))
    epochs = 1200 // len(x)
    quantizer.fit(x, epochs=epochs, batch_size=8, learning_rate=1e-2, patience=epochs)
    vectors = torch.as_tensor(x, dtype=torch.float32)
    decoded = quantizer.decode(quantizer.encode(vectors))
    assert decoded.isfinite().all()
    spread = (vectors - vectors.mean(dim=0)).square().sum()
    assert (vectors - decoded).square().sum() <= 0.6 * spread + 1e-4 * vectors.square().sum() ** 0.5


def test_batches_smaller_than_the_codebook_start_it_all_the_same():
    x = embeddings(400)
    quantizer = ResidualAutoencoder(24, 2, 64, latent_dim=8, hidden=(16,))
    quantizer.fit(x, epochs=6, batch_size=16)
    assert min(usage(quantizer.encode(x), quantizer.codebook_sizes)) > 0.5


def test_training_ends_by_time_and_by_patience():
    calls = []
    x = embeddings(300)
    small().fit(x, epochs=10**6, time_budget=1e-3, progress=lambda *call: calls.append(call))
    assert calls == [("autoencoder", 10**6, 10**6)]
    calls.clear()
    quantizer = small()
    quantizer.fit(
        x, epochs=200, patience=1, learning_rate=0.05, progress=lambda *call: calls.append(call)
    )
    assert len(calls) < 200
    assert calls[-1] == ("autoencoder", 200, 200)
    assert quantizer.quantizer.training
    assert not quantizer.eval().fit(x, epochs=1).quantizer.training


def test_precision_of_a_parent_does_not_reach_the_quantizer(fitted):
    quantizer, x = fitted
    codes = quantizer.encode(x[:50])
    parent = torch.nn.Sequential(copy.deepcopy(quantizer)).to(torch.bfloat16)
    kinds = {value.dtype for value in parent.state_dict().values() if value.is_floating_point()}
    assert kinds == {torch.float32}
    assert torch.equal(parent[0].encode(x[:50]), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(x[:50]), codes)
        assert torch.equal(quantizer.decode(codes), parent[0].decode(codes))


def test_matching_gives_every_item_a_code_of_its_own(fitted):
    quantizer, x = fitted[0], fitted[1][:600]
    raw = quantizer.encode(x)
    codes = torch.from_numpy(match_codes(quantizer, x, np.arange(len(x))))
    assert len(codes.unique(dim=0)) == len(x) > len(raw.unique(dim=0))
    assert (codes == raw).all(dim=1).float().mean() > 0.5
    latents = quantizer.latents(x)
    alone, matched = (
        distortion(latents, quantizer.quantizer.decode(chosen)) for chosen in (raw, codes)
    )
    assert matched < 1.5 * alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ({"time_budget": -1.0}, "time_budget=-1.0"),
    ],
)
def test_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        small().fit(embeddings(20), **options)


def test_refusals():
    with pytest.raises(ConfigError, match="hidden=0"):
        ResidualAutoencoder(4, 2, 8, hidden=(0,))
    with pytest.raises(ConfigError, match="latent_dim=0"):
        ResidualAutoencoder(4, 2, 8, latent_dim=0)
    with pytest.raises(ConfigError, match="frozen"):
        small().freeze().fit(embeddings(20))
    with pytest.raises(DataError, match="at least as many vectors"):
        small().fit(embeddings(5))
    with pytest.raises(DataError, match="NaN"):
        small().encode(torch.full((2, 24), torch.nan))
    with pytest.raises(ConfigError, match="depth=4"):
        untrained().encode(torch.randn(2, 5), depth=4)
