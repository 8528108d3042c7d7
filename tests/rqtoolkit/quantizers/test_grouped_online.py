"""Grouped residual quantizers inside a network: masks, depths, one draw for all, statistics."""

import copy

import pytest
import torch

from rqtoolkit import GroupedResidualQuantizer, ResidualQuantizer
from rqtoolkit.errors import ConfigError, DataError, ShapeError


def quantizer_of(groups=2, **online):
    torch.manual_seed(1)
    return GroupedResidualQuantizer(8, 3, 16, groups=groups, kmeans_init=False, **online)


def test_masked_vectors_change_nothing_for_the_rest():
    grouped = quantizer_of()
    alone = copy.deepcopy(grouped)
    x = torch.randn(4, 6, 8)
    mask = torch.rand(4, 6) < 0.6
    x[~mask] = torch.nan
    out = grouped(x, mask, generator=torch.Generator().manual_seed(3))
    kept = alone(x[mask], generator=torch.Generator().manual_seed(3))
    assert torch.equal(out.codes[mask], kept.codes)
    assert (out.codes[~mask] == -1).all()
    assert (out.quantized[~mask] == 0).all()
    torch.testing.assert_close(out.quantized[mask], kept.quantized)
    torch.testing.assert_close(out.commitment_loss, kept.commitment_loss)
    torch.testing.assert_close(grouped.state_dict(), alone.state_dict())


def test_depth_keeps_the_first_levels_of_every_group():
    grouped = quantizer_of().eval()
    x = torch.randn(20, 8)
    out = grouped(x, depth=2)
    assert out.codes.shape == (20, 4)
    torch.testing.assert_close(out.quantized, grouped.decode(grouped(x).codes[:, :4]))
    with pytest.raises(ConfigError, match="depth=4"):
        grouped(x, depth=4)


@pytest.mark.parametrize("kind", ["grouped", "residual"])
def test_each_vector_may_have_a_depth_of_its_own(kind):
    quantizer = quantizer_of() if kind == "grouped" else ResidualQuantizer(8, 3, 16)
    quantizer.eval()
    groups = getattr(quantizer, "groups", 1)
    x, depth = torch.randn(5, 4, 8), torch.randint(1, 4, (5, 4))
    out = quantizer(x, depth=depth)
    assert torch.equal(out.depths, depth)
    for number in (1, 2, 3):
        chosen = depth == number
        prefix = out.codes[chosen][:, : number * groups]
        torch.testing.assert_close(out.quantized[chosen], quantizer.decode(prefix))
    with pytest.raises(ShapeError, match="depth has to be one number"):
        quantizer(x, depth=depth[0])
    with pytest.raises(DataError, match="depth has to be integers"):
        quantizer(x, depth=depth.float())


def test_all_groups_drop_the_same_levels():
    grouped = quantizer_of(depth_dropout=1.0)
    out = grouped(torch.randn(64, 5, 8))
    assert set(out.depths.unique().tolist()) == {1, 2, 3}
    assert (out.depths == out.depths[:, :1]).all()  # a draw for each sample
    grouped.eval()
    assert grouped(torch.randn(2, 8)).depths is None


def test_dropped_levels_add_nothing_in_any_group():
    grouped = quantizer_of(depth_dropout=0.5).freeze()
    x = torch.randn(40, 8)
    out = grouped(x)
    for row, depth in enumerate(out.depths.tolist()):
        prefix = out.codes[row : row + 1, : 2 * depth]
        torch.testing.assert_close(out.quantized[row : row + 1], grouped.decode(prefix))


def test_gradients_are_the_identity_where_vectors_count():
    grouped = quantizer_of(groups=4)
    x = torch.randn(6, 8, requires_grad=True)
    mask = torch.tensor([True, True, False, True, False, True])
    grouped(x, mask).quantized.sum().backward()
    torch.testing.assert_close(x.grad, mask[:, None].float().expand(6, 8))


def test_distortion_is_that_of_whole_vectors_and_dead_entries_are_listed_like_codes():
    grouped = quantizer_of()
    grouped.state_dict()["parts.1.state.counts"][2, :5] = 0  # group 1, level 2
    x = torch.randn(300, 8)
    frozen = grouped.freeze()(x)
    sums = [grouped.decode(frozen.codes[:, : 2 * d]) for d in (1, 2, 3)]
    errors = [float((x - s).square().sum(dim=1).mean()) for s in sums]
    assert frozen.stats.distortion == pytest.approx(errors, rel=1e-5)
    assert frozen.stats.dead == [0, 0, 0, 0, 0, 5]
    assert len(frozen.stats.usage) == 6


def test_no_dead_entries_where_none_restart():
    out = quantizer_of(restart_threshold=0.0)(torch.randn(10, 8))
    assert out.stats.dead == []


def test_every_online_option_reaches_the_groups(tmp_path):
    options = {
        "update": "gradient",
        "similarity": "cosine",
        "codebook_dim": 2,
        "estimator": "rotation",
        "depth_dropout": 0.5,
        "tau": 0.1,
    }
    grouped = quantizer_of(**options)
    x = torch.randn(30, 8, requires_grad=True)
    out = grouped(x)
    (out.quantized.square().mean() + out.commitment_loss + out.codebook_loss).backward()
    assert all(p.grad is not None for p in grouped.parameters())
    grouped.save(tmp_path / "grouped.safetensors")
    loaded = GroupedResidualQuantizer.load(tmp_path / "grouped.safetensors")
    assert loaded.online == grouped.online
    assert torch.equal(loaded.encode(x), grouped.eval().encode(x))


def test_the_state_carries_the_beam():
    fitted = GroupedResidualQuantizer(8, 2, 4, groups=2).fit(torch.randn(64, 8), beam=3)
    other = GroupedResidualQuantizer(8, 2, 4, groups=2)
    assert (fitted.beam, other.beam) == (3, 1)
    other.load_state_dict(fitted.state_dict())
    assert other.beam == 3
