"""Grouped residual quantizers: one group, product quantization, faiss's figures, rotations."""

import copy

import numpy as np
import pytest
import torch

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer
from rqtoolkit.errors import ArtifactError, ConfigError, ShapeError
from rqtoolkit.functional.codes import pack_codes
from rqtoolkit.functional.kmeans import import_faiss
from rqtoolkit.functional.rate_distortion import relative_error
from rqtoolkit.quantizers import load_quantizer
from rqtoolkit.quantizers.rotations import balanced_rotation, procrustes, random_rotation


def correlated(rows=3000, dim=16, seed=0):
    generator = np.random.default_rng(seed)
    spread = 1.0 / np.arange(1, dim + 1)
    mixing = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    return (generator.normal(size=(rows, dim)) * spread @ mixing + 0.3).astype(np.float32)


def error_of(quantizer, x):
    return relative_error(x, quantizer.decode(quantizer.encode(torch.from_numpy(x))))


@pytest.fixture(scope="module")
def data():
    return correlated()


def test_one_group_is_a_residual_quantizer(data):
    x = torch.from_numpy(data)
    plain = ResidualQuantizer(16, 3, [16, 8, 8]).fit(data, seed=3)
    grouped = GroupedResidualQuantizer(16, 3, [16, 8, 8], groups=1).fit(data, seed=3)
    codes = grouped.encode(x)
    assert torch.equal(codes, plain.encode(x))
    assert torch.equal(grouped.decode(codes), plain.decode(codes))


def test_each_group_is_quantized_alone_level_after_level(data):
    x = torch.from_numpy(data)
    grouped = GroupedResidualQuantizer(16, 2, [16, 8], groups=4).fit(data, seed=1)
    codes = grouped.encode(x)
    assert codes.shape == (3000, 8)
    assert grouped.codebook_sizes == (16,) * 4 + (8,) * 4
    for group, part in enumerate(grouped.parts):
        own = x[:, 4 * group : 4 * group + 4]
        assert torch.equal(codes[:, group::4], part.encode(own))
        assert torch.equal(
            grouped.decode(codes)[:, 4 * group : 4 * group + 4], part.decode(codes[:, group::4])
        )


def test_a_prefix_that_ends_inside_a_level_leaves_the_rest_at_zero(data):
    grouped = GroupedResidualQuantizer(16, 2, 8, groups=4).fit(data, seed=1)
    codes = grouped.encode(torch.from_numpy(data[:50]))
    cut = grouped.decode(codes[:, :3])
    assert torch.equal(cut[:, 12:], torch.zeros(50, 4))
    assert torch.equal(cut[:, :12], grouped.decode(codes[:, :4])[:, :12])
    errors = [relative_error(data[:50], grouped.decode(codes[:, :d])) for d in (4, 8)]
    assert errors[1] < errors[0]


def test_depth_one_is_as_good_as_the_product_quantizer_of_faiss(data):
    faiss = import_faiss()
    fit, held_out = data[:2500], data[2500:]
    product = faiss.ProductQuantizer(16, 4, 5)
    product.train(fit)
    theirs = relative_error(held_out, product.decode(product.compute_codes(held_out)))
    ours = error_of(GroupedResidualQuantizer(16, 1, 32, groups=4).fit(fit, seed=0), held_out)
    assert ours < 1.03 * theirs


def test_as_good_as_the_product_residual_quantizer_of_faiss(data):
    faiss = import_faiss()
    fit, held_out = data[:2500], data[2500:]
    product = faiss.ProductResidualQuantizer(16, 2, 3, 4)
    product.train(fit)
    theirs = relative_error(held_out, product.decode(product.compute_codes(held_out)))
    ours = error_of(GroupedResidualQuantizer(16, 3, 16, groups=2).fit(fit, seed=0), held_out)
    assert ours < 1.03 * theirs


def test_rotations_lower_the_error_of_correlated_data(data):
    fit, held_out = data[:2500], data[2500:]
    errors = {
        rotation: error_of(
            GroupedResidualQuantizer(16, 1, 16, groups=4, rotation=rotation).fit(fit, seed=0),
            held_out,
        )
        for rotation in (None, "random", "pca", "opq")
    }
    assert errors["pca"] < 0.95 * errors["random"]
    assert errors["opq"] < 0.95 * errors["random"]
    assert errors["opq"] < 1.03 * errors["pca"]


@pytest.mark.parametrize("rotation", ["random", "pca", "opq"])
def test_rotations_are_orthogonal_and_quantizing_turns_back(data, rotation):
    grouped = GroupedResidualQuantizer(16, 1, 8, groups=2, rotation=rotation).fit(data, seed=0)
    torch.testing.assert_close(grouped.axes @ grouped.axes.T, torch.eye(16), rtol=0, atol=1e-5)
    x = torch.from_numpy(data[:100])
    codes = grouped.encode(x)
    turned = torch.cat([part.decode(codes[:, g::2]) for g, part in enumerate(grouped.parts)], dim=1)
    torch.testing.assert_close(grouped.decode(codes), turned @ grouped.axes)


def test_balanced_rotation_evens_out_the_products_of_variances(data):
    axes = balanced_rotation(torch.from_numpy(data), 4).numpy()
    turned = (data - data.mean(axis=0)) @ axes.T
    covariance = turned.T @ turned / len(turned)
    off_diagonal = covariance - np.diag(np.diag(covariance))
    assert np.abs(off_diagonal).max() < 1e-5 * covariance.max()
    products = np.log(np.diag(covariance)).reshape(4, 4).sum(axis=1)
    sorted_products = np.log(np.sort(np.diag(covariance))[::-1]).reshape(4, 4).sum(axis=1)
    assert np.ptp(products) < 0.35 * np.ptp(sorted_products)


def test_procrustes_finds_a_rotation():
    x = torch.from_numpy(correlated(200, 6))
    rotation = random_rotation(6, torch.Generator().manual_seed(4))
    torch.testing.assert_close(procrustes(x, x @ rotation.T), rotation, rtol=0, atol=1e-5)


def test_training_online_moves_every_group():
    torch.manual_seed(0)
    grouped = GroupedResidualQuantizer(8, 2, 8, groups=2, rotation="random", decay=0.9)
    x = torch.randn(64, 8, requires_grad=True)
    before = [part.codebooks.clone() for part in grouped.parts]
    for _ in range(10):
        grouped(x + torch.randn(64, 8))
    assert all(not torch.equal(a, b.codebooks) for a, b in zip(before, grouped.parts, strict=True))
    out = grouped.eval()(x)
    assert out.codes.shape == (64, 4)
    torch.testing.assert_close(out.quantized, grouped.decode(out.codes))
    turned = (x @ grouped.axes.T).detach()
    partial = [
        part.partial_sums(out.codes[:, group::2]) for group, part in enumerate(grouped.parts)
    ]
    errors = turned[:, None] - torch.cat(partial, dim=2)
    torch.testing.assert_close(out.commitment_loss.detach(), errors.square().mean())
    weights = torch.randn(64, 8)
    (out.quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights)  # straight through, rotation and back
    assert len(out.stats.usage) == 4


def test_channels_first(data):
    x = torch.from_numpy(data[:60]).reshape(5, 12, 16)
    last = GroupedResidualQuantizer(16, 2, 8, groups=2).fit(data, seed=0)
    first = GroupedResidualQuantizer(16, 2, 8, groups=2, channels_first=True).fit(data, seed=0)
    codes = first.encode(x.movedim(-1, 1))
    assert torch.equal(codes, last.encode(x))
    assert torch.equal(first.decode(codes), last.decode(codes).movedim(-1, 1))


@pytest.mark.parametrize("rotation", [None, "opq"])
def test_a_file_brings_everything_back(data, tmp_path, rotation):
    grouped = GroupedResidualQuantizer(
        16, 2, [8, 4], groups=2, rotation=rotation, update="gradient"
    ).fit(data, seed=2)
    grouped.save(tmp_path / "grouped.safetensors")
    again = load_quantizer(tmp_path / "grouped.safetensors")
    assert isinstance(again, GroupedResidualQuantizer)
    assert again._settings() == grouped._settings()
    x = torch.from_numpy(data[:100])
    assert torch.equal(again.encode(x), grouped.encode(x))
    assert torch.equal(again.decode(again.encode(x)), grouped.decode(grouped.encode(x)))
    halved = torch.nn.Sequential(copy.deepcopy(grouped)).to(torch.bfloat16)[0]
    assert torch.equal(halved.encode(x), grouped.encode(x))
    with pytest.raises(ArtifactError, match="another class"):
        ResidualQuantizer.load(tmp_path / "grouped.safetensors")


def test_a_seed_fixes_the_result(data):
    def fitted(seed):
        return GroupedResidualQuantizer(16, 1, 8, groups=4, rotation="opq").fit(data, seed=seed)

    first, second, other = fitted(5), fitted(5), fitted(6)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.axes, other.axes)


def test_what_cannot_be_is_refused(data):
    with pytest.raises(ConfigError, match="groups=3 does not divide dim=16"):
        GroupedResidualQuantizer(16, 2, 8, groups=3)
    with pytest.raises(ConfigError, match="rotation='flip' is unknown"):
        GroupedResidualQuantizer(16, 2, 8, groups=2, rotation="flip")
    grouped = GroupedResidualQuantizer(16, 2, 8, groups=2)
    with pytest.raises(ShapeError, match=r"GroupedResidualQuantizer\.fit"):
        grouped.fit(data[:, :8])
    with pytest.raises(ShapeError, match="depth"):
        grouped.decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ConfigError, match="frozen"):
        grouped.freeze().fit(data)


@pytest.mark.parametrize("rotation", [None, "pca"])
def test_an_index_of_faiss_holds_the_codes(data, rotation):
    x = torch.from_numpy(data[:500])
    grouped = GroupedResidualQuantizer(16, 2, [16, 8], groups=2, rotation=rotation).fit(data)
    codes = grouped.encode(x)
    index = grouped.to_faiss(codes=codes)
    packed = pack_codes(codes, grouped.codebook_sizes)
    assert (import_faiss().vector_to_array(index.codes).reshape(500, -1) == packed).all()
    decoded = grouped.decode(codes).numpy()
    np.testing.assert_allclose(index.sa_decode(packed), decoded, rtol=0, atol=1e-6)
    distances, _ = index.search(data[:20], 1)
    exact = np.square(data[:20, None] - decoded).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(distances[:, 0], exact, rtol=1e-4)
