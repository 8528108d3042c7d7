import pytest
import torch

from rqtoolkit import ResidualQuantizer
from rqtoolkit.errors import ConfigError
from rqtoolkit.functional.rate_distortion import distortion
from rqtoolkit.quantizers.joint import mean_error, refine_tables, scaled_levels


def mixture(rows, seed, dim=12):
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(20, dim, generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(20, (rows,), generator=generator)
    return centers[drawn] + torch.randn(rows, dim, generator=generator)


def error(quantizer, x, depth=None):
    return distortion(x, quantizer.decode(quantizer.encode(x)[:, :depth]))


@pytest.fixture(scope="module")
def x():
    return mixture(6000, seed=1)


@pytest.fixture(scope="module")
def fitted(x):
    return ResidualQuantizer(12, 3, 32).fit(x, seed=0)


def test_joint_training_beats_k_means_on_unseen_vectors(x, fitted):
    unseen = mixture(3000, seed=2)
    alone = ResidualQuantizer(12, 3, 32).fit(x, rounds=0, seed=0)
    assert error(fitted, unseen) < error(alone, unseen)


def test_refinement_never_returns_worse_than_its_start(x):
    start, held_out = torch.randn(3, 32, 12), mixture(500, seed=3)
    for judges in (held_out, None):
        found = refine_tables(x, start, [32] * 3, 3, rounds=2, beam=2, held_out=judges)
        rows = x if judges is None else judges
        before, after = (mean_error(rows, t, [32] * 3, 3, beam=2) for t in (start, found))
        assert after <= before
        again = refine_tables(x, found, [32] * 3, 3, rounds=2, beam=2, held_out=judges)
        assert mean_error(rows, again, [32] * 3, 3, beam=2) <= after


def test_scales_of_levels_by_hand():
    # Level 1 is right, level 2 twice too long: the factors are 1 and a half.
    tables = torch.tensor([[[-4.0], [4.0]], [[-2.0], [2.0]]])
    x = torch.tensor([[-5.0], [-3.0], [3.0], [5.0]])
    found = scaled_levels(x, tables, codebook_sizes=[2, 2], beam=2)
    torch.testing.assert_close(found, torch.tensor([[[-4.0], [4.0]], [[-1.0], [1.0]]]))


def test_scale_and_offset_of_the_data_change_little(x, fitted):
    relative = error(fitted, x)
    for scale, offset in ((2.0**20, 0.0), (2.0**-20, 0.0), (1e6, 30.0)):
        moved = (x + offset) * scale
        other = ResidualQuantizer(12, 3, 32).fit(moved, seed=0)
        assert error(other, moved) / scale**2 == pytest.approx(relative, rel=0.03)


def test_prefix_weight_makes_short_codes_better(x, fitted):
    nested = ResidualQuantizer(12, 3, 32).fit(x, seed=0, prefix_weight=1.0)
    short, whole = (error(nested, x, d) / error(fitted, x, d) for d in (1, 3))
    assert short <= 1.01
    assert whole < 1.1


def test_a_warm_start_goes_on_from_the_tables(x, fitted):
    again = ResidualQuantizer(12, 3, 32)
    again.state.set_tables(fitted.codebooks, vectors=1)
    again.fit(x, seed=0, warm_start=True, rounds=0)
    torch.testing.assert_close(again.codebooks, fitted.codebooks, rtol=1e-4, atol=1e-5)
    again.fit(x, seed=0, warm_start=True)
    assert error(again, x) <= 1.01 * error(fitted, x)


def test_seed_fixes_the_result_and_no_time_means_no_rounds(x, fitted):
    twin = ResidualQuantizer(12, 3, 32).fit(x, seed=0, threads=1)
    assert torch.equal(twin.codebooks, fitted.codebooks)
    rounds = []
    hasty = ResidualQuantizer(12, 3, 32).fit(
        x, time_budget=1e-9, progress=lambda *step: rounds.append(step)
    )
    assert [done for what, done, _ in rounds if what == "joint least squares"] == [4]
    assert error(hasty, x) < error(fitted, x) * 1.5


def test_what_encoding_needs_is_kept_until_a_table_changes(x, fitted):
    quantizer = ResidualQuantizer(12, 3, 32)
    quantizer.load_state_dict(fitted.state_dict())
    codes = quantizer.encode(x[:50])
    kept = quantizer.state._kept
    assert torch.equal(quantizer.encode(x[:50]), codes)
    assert quantizer.state._kept is kept
    with torch.no_grad():
        quantizer.state.tables[0].add_(5.0)
    assert not torch.equal(quantizer.encode(x[:50]), codes)
    assert quantizer.state._kept is not kept


@pytest.mark.parametrize(
    "wrong",
    [{"prefix_weight": -1.0}, {"time_budget": 0.0}, {"rate_weight": 1.0, "target_bits": 8.0}],
)
def test_impossible_settings_are_refused(x, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ResidualQuantizer(12, 3, 32).fit(x, **wrong)
