"""Masks, depth dropout and depths asked for."""

import copy

import pytest
import torch

from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ConfigError, DataError, ShapeError

PARTS = [
    {},
    {"shared_codebook": True},
    {"update": "gradient"},
    {"codebook_dim": 3},
    {"similarity": "cosine"},
    {"similarity": "cosine", "codebook_dim": 3, "estimator": "rotation"},
    {"forward_beam": 3},
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(x, dim=4, depth=3, size=8, **options):
    quantizer = ResidualQuantizer(dim, depth, size, **options)
    quantizer(x, generator=generator(7))
    assert quantizer.state.is_initialized
    return quantizer


def assert_same_state(one, other):
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize("options", PARTS)
@pytest.mark.parametrize("garbage", [0.0, torch.nan, torch.inf, 1e30])
def test_masks_equal_removal(options, garbage):
    """From the k-means start on, in outputs, losses, statistics, gradients and tables."""
    x = torch.randn(4, 25, 4)
    mask = torch.rand(4, 25) < 0.5
    padded = x.masked_fill(~mask[..., None], garbage)
    torch.manual_seed(1)
    removed = ResidualQuantizer(
        4, 3, [8, 5, 6] if "shared_codebook" not in options else 8, **options
    )
    masked = copy.deepcopy(removed)
    with torch.no_grad():
        removed.state.counts[0, 0] = masked.state.counts[0, 0] = 0  # some entry restarts, too
    for step in range(4):
        one, other = x[mask].requires_grad_(), padded.clone().requires_grad_()
        expected = removed(one, generator=generator(step))
        out = masked(other, mask, generator=generator(step))
        assert torch.equal(out.codes[mask], expected.codes)
        assert out.codes[~mask].eq(-1).all()
        assert out.quantized[~mask].eq(0).all()
        torch.testing.assert_close(out.quantized[mask], expected.quantized)
        for name in ("commitment_loss", "codebook_loss"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name))
        for name in ("usage", "perplexity", "distortion", "dead"):
            found, wanted = getattr(out.stats, name), getattr(expected.stats, name)
            assert found == pytest.approx(wanted, rel=1e-4), name
        loss, wanted = (
            o.quantized.square().sum() + o.commitment_loss + o.codebook_loss
            for o in (out, expected)
        )
        (gradient,) = torch.autograd.grad(loss, other)
        torch.testing.assert_close(gradient[mask], torch.autograd.grad(wanted, one)[0])
        assert gradient[~mask].eq(0).all()
        assert_same_state(removed, masked)


def test_masks_equal_removal_while_vectors_are_gathered():
    torch.manual_seed(1)
    removed = ResidualQuantizer(4, 2, 16)
    masked = copy.deepcopy(removed)
    for step in range(5):  # 32 vectors are needed, some 6 come at a time
        x, mask = torch.randn(12, 4, generator=generator(step)), torch.arange(12) % 2 == 0
        removed(x[mask], generator=generator(step))
        masked(x, mask, generator=generator(step))
        assert_same_state(removed, masked)
    assert not masked.state.is_initialized
    assert len(masked.state.gathered) == 30


def test_masks_of_channels_first_maps():
    maps = torch.randn(2, 4, 5, 6)
    quantizer = trained(torch.randn(64, 4))
    first = ResidualQuantizer(4, 3, 8, channels_first=True)
    first.load_state_dict(quantizer.state_dict())
    mask = torch.rand(2, 5, 6) < 0.5
    out = first(maps, mask, generator=generator())
    expected = quantizer(maps.movedim(1, -1), mask, generator=generator())
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.quantized, expected.quantized.movedim(-1, 1))
    assert_same_state(quantizer, first)


@pytest.mark.parametrize("options", [*PARTS, {"update": "paper"}, {"tau": 0.5}])
def test_a_batch_of_padding_alone_changes_nothing(options):
    for start in (False, True):
        quantizer = ResidualQuantizer(4, 3, 8, **options)
        if start:
            quantizer(torch.randn(64, 4))
        state = copy.deepcopy(quantizer.state_dict())
        x = torch.full((2, 3, 4), torch.nan, requires_grad=True)
        out = quantizer(x, torch.zeros(2, 3, dtype=torch.bool))
        for name, tensor in quantizer.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert out.codes.eq(-1).all()
        assert out.quantized.eq(0).all()
        assert out.commitment_loss.item() == out.codebook_loss.item() == 0
        assert out.stats.usage == out.stats.perplexity == out.stats.distortion == [0, 0, 0]
        loss = out.quantized.sum() + out.commitment_loss + out.codebook_loss
        assert torch.autograd.grad(loss, x)[0].eq(0).all()


def test_what_decode_says_of_padding():
    quantizer = trained(torch.randn(64, 4))
    mask = torch.tensor([[True, False, True]])
    codes = quantizer(torch.randn(1, 3, 4), mask).codes
    with pytest.raises(DataError, match=r"codes from -1.* padding: pass codes\[mask\]"):
        quantizer.decode(codes)
    assert quantizer.decode(codes[mask]).shape == (2, 4)


def test_masks_that_do_not_fit_are_refused():
    quantizer, x = trained(torch.randn(64, 4)), torch.randn(2, 3, 4)
    with pytest.raises(ShapeError, match=r"mask has to have shape \(2, 3\); got \(2, 3, 4\)"):
        quantizer(x, torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(DataError, match=r"boolean tensor.* got torch.float32. Pass mask.bool\(\)"):
        quantizer(x, torch.ones(2, 3))
    with pytest.raises(DataError, match="got list"):
        quantizer(x, [[True] * 3] * 2)


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}, {"shared_codebook": True}])
def test_depth_dropout_quantizes_with_a_prefix(options):
    quantizer = trained(torch.randn(64, 4), depth_dropout=1.0, **options)
    x = torch.randn(40, 5, 4)
    before = copy.deepcopy(quantizer).eval()
    out = quantizer(x, generator=generator())
    assert out.depths.shape == (40, 5)
    assert (out.depths == out.depths[:, :1]).all()  # one number for each sample
    assert set(out.depths.unique().tolist()) == {1, 2, 3}
    assert torch.equal(out.codes, before.encode(x))  # of all levels, whatever counts
    for depth in (1, 2, 3):
        chosen = out.depths == depth
        expected = before.decode(out.codes[chosen][:, :depth])
        torch.testing.assert_close(out.quantized[chosen], expected)
    # Distortion of a level: over the vectors that use it
    sums = before.partial_sums(out.codes)
    squares = (x[..., None, :] - sums).square().sum(-1)
    used = out.depths[..., None] > torch.arange(3)
    expected = [squares[..., d][used[..., d]].mean().item() for d in range(3)]
    assert out.stats.distortion == pytest.approx(expected, rel=1e-4)
    if "codebook_dim" not in options:
        wanted = squares[used].sum() / used.sum() / 4
        torch.testing.assert_close(out.commitment_loss, wanted)
    assert quantizer.eval()(x).depths is None


@pytest.mark.parametrize("chance", [1.0, 0.4])
def test_all_depths_are_drawn_equally_often(chance):
    """Also the whole stack: an off-by-one here leaves the last level without training."""
    depth, draws = 4, 20000
    quantizer = ResidualQuantizer(1, depth, 2, depth_dropout=chance, kmeans_init=False)
    depths = quantizer(torch.randn(draws, 1), generator=generator()).depths
    observed = torch.bincount(depths, minlength=depth + 1)[1:]
    expected = torch.full((depth,), draws * chance / depth)
    expected[-1] += draws * (1 - chance)
    assert ((observed - expected).square() / expected).sum() < 16.3  # chi-square, 3 dof, p = .001


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_depth_dropout_trains_every_level(update):
    quantizer = trained(torch.randn(64, 4), depth_dropout=1.0, update=update)
    before = quantizer.codebooks.clone()
    for _ in range(5):
        out = quantizer(torch.randn(64, 4))
        if update == "gradient":
            (gradient,) = torch.autograd.grad(out.codebook_loss, quantizer.state.tables)
            assert gradient.flatten(1).norm(dim=1).min() > 0
    if update == "ema":
        assert (quantizer.codebooks != before).any(dim=2).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", PARTS)
def test_a_depth_asked_for(training, options):
    quantizer = trained(torch.randn(64, 4), **options).train(training)
    x = torch.randn(20, 4)
    before = copy.deepcopy(quantizer).eval()
    out = quantizer(x, depth=2, generator=generator())
    assert out.codes.shape == (20, 2)
    assert out.depths.eq(2).all()
    torch.testing.assert_close(out.quantized, before.decode(out.codes))
    assert [len(figure) for figure in (out.stats.usage, out.stats.distortion)] == [2, 2]
    sums = before.partial_sums(out.codes)
    if not options.get("codebook_dim"):
        wanted = (x[:, None] - sums).square().mean()
        torch.testing.assert_close(out.commitment_loss, wanted)
    if not training:
        beam = options.get("forward_beam", 1)
        assert torch.equal(out.codes, quantizer.encode(x, depth=2, beam=beam))
    elif options.get("update") != "gradient":  # the levels beyond learn all the same
        assert (quantizer.codebooks[-1] != before.codebooks[-1]).any()


def test_depths_out_of_range_are_refused():
    quantizer = ResidualQuantizer(4, 3, 8)
    for depth in (0, 4, -1, 1.5):
        with pytest.raises(ConfigError, match=r"ResidualQuantizer\.forward: depth="):
            quantizer(torch.randn(2, 4), depth=depth)


def test_a_frozen_quantizer_still_drops_depths_and_draws_codes():
    """Its tables stay; what makes the network around it robust goes on."""
    quantizer = trained(torch.randn(64, 4), depth_dropout=1.0, tau=1.0).freeze()
    x = torch.randn(64, 4)
    state = copy.deepcopy(quantizer.state_dict())
    one, other = (quantizer(x, generator=generator(seed)) for seed in (1, 2))
    assert not torch.equal(one.codes, other.codes)
    assert not torch.equal(one.depths, other.depths)
    for name, tensor in quantizer.state_dict().items():
        assert torch.equal(tensor, state[name]), name
